"""Where the reference files lie that other software wrote (tests/data/README.md says which)."""

from pathlib import Path

DATA = Path(__file__).parent / "data"

"""Models that come with the package."""

from pathlib import Path

CODEC = Path(__file__).parent / "codec"  # the unit encoder and the vocoder that are used where none is given
STARTER = Path(__file__).parent / "starter"  # a small HuBERT and its codebook, trained on synthetic speech alone
ENCODERS = {"starter": STARTER / "encoder", "codec": CODEC / "unit_encoder" / "encoder"}  # by name

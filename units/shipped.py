"""Models that come with the package."""

from pathlib import Path

CODEC = Path(__file__).parent / "codec"  # the unit encoder and the vocoder that are used where none is given
STARTER = Path(__file__).parent / "starter"  # a small HuBERT and its codebook, trained on synthetic speech alone
UNIT_ENCODERS = {"starter": STARTER, "codec": CODEC / "unit_encoder"}  # by name: encoder and codebook
ENCODERS = {name: folder / "encoder" for name, folder in UNIT_ENCODERS.items()}  # by name, without the codebook

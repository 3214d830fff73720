"""A published unit vocoder (CodeHiFiGAN) becomes a vocoder folder.

    python -m units.vocoder.adopt vocoder.pt runs/7b/unit_encoder runs/7b/vocoder --vocoder_config config.json

A published vocoder does not say which units it speaks. That it was made for those of the unit encoder is your word; all that
can be checked is their number.
"""

from __future__ import annotations

import sys
from pathlib import Path

from units.codebook import Codebook
from units.vocoder.unit_vocoder import UnitVocoder


def main(weights: Path, unit_encoder: Path, out: Path, vocoder_config: Path | None = None) -> None:
    """A published CodeHiFiGAN becomes a vocoder folder for the units of an encoder.

    Args:
        weights: vocoder.pt, g_00500000 and the like
        unit_encoder: the folder of the encoder that it was made for
        out: the folder to make
        vocoder_config: its json; config.json beside the weights if not given
    """
    codebook = Codebook.load(unit_encoder / "codebook.json")
    made = UnitVocoder.from_pretrained(weights, config=vocoder_config, codebook=codebook)
    made.codebook.check_same(codebook, str(weights), str(unit_encoder))
    print(f"a vocoder for {codebook.name} ({codebook.fingerprint}) in {made.save_pretrained(out)}")


def cli() -> None:
    """Entry point; user errors end in one line and exit code 2."""
    from jsonargparse import auto_cli

    try:
        auto_cli(main)
    except (OSError, ValueError) as error:
        print(f"units.vocoder.adopt: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

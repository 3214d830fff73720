"""The `units-adopt-vocoder` command: a published unit vocoder (CodeHiFiGAN) becomes a vocoder folder.

    units-adopt-vocoder vocoder.pt runs/7b/unit_encoder runs/7b/vocoder --vocoder_config config.json

The files of a published vocoder do not name the units that it was trained on. You state that they are those of the unit
encoder; only their number can be checked.
"""

from __future__ import annotations

from pathlib import Path

from units.codebook import Codebook
from units.runtime.command import command


@command("units-adopt-vocoder")
def main(weights: Path, unit_encoder: Path, out: Path, vocoder_config: Path | None = None) -> None:
    """Make a vocoder folder of a published CodeHiFiGAN, for the units of an encoder.

    Args:
        weights: vocoder.pt, g_00500000 or the like
        unit_encoder: folder of the unit encoder that the vocoder was trained with
        out: folder to write
        vocoder_config: JSON config of the published vocoder; config.json beside the weights if not given
    """
    codebook = Codebook.load(unit_encoder / "codebook.json")
    from units.vocoder.unit_vocoder import UnitVocoder

    vocoder = UnitVocoder.from_pretrained(weights, config=vocoder_config, codebook=codebook)
    vocoder.codebook.check_same(codebook, str(weights), str(unit_encoder))
    print(f"vocoder for {codebook.name} ({codebook.fingerprint}) in {vocoder.save_pretrained(out)}")


if __name__ == "__main__":
    main.cli()

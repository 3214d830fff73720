"""Published ears and voices become folders as the rest of the house reads them.

    python -m units.adopt encoder mhubert_base_vp_en_es_fr_it3.pt mhubert_base_vp_en_es_fr_it3_L11_km1000.bin runs/7b/unit_encoder
    python -m units.adopt vocoder vocoder.pt runs/7b/unit_encoder runs/7b/vocoder --vocoder_config config.json

A published vocoder does not say which units it speaks. That it was made for those of the unit encoder is your word; all that
can be looked at is their number.
"""

from __future__ import annotations

import sys
from pathlib import Path

from units.codebook import Codebook
from units.encoder import UnitEncoder
from units.vocoder import UnitVocoder


def encoder(model: str, kmeans: Path, out: Path, layer: int | None = None) -> None:
    """An encoder and its k-means become a unit encoder folder.

    Args:
        model: a transformers folder, a hub id, or a fairseq .pt
        kmeans: centres: a joblib .bin of scikit-learn, .npy, or .safetensors
        out: the folder to make
        layer: the layer they were fitted on; known for the published pairs
    """
    made = UnitEncoder.join(model, kmeans, layer)
    print(f"{made.codebook.name} ({made.codebook.fingerprint}) in {made.save_pretrained(out)}")


def vocoder(weights: Path, unit_encoder: Path, out: Path, vocoder_config: Path | None = None) -> None:
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
    print(f"a voice for {codebook.name} ({codebook.fingerprint}) in {made.save_pretrained(out)}")


def cli() -> None:
    """Entry point: `python -m units.adopt {encoder,vocoder} ...`; user errors end in one line and exit code 2."""
    from jsonargparse import auto_cli

    try:
        auto_cli([encoder, vocoder])
    except (OSError, ValueError) as error:
        print(f"units.adopt: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

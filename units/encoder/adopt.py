"""A published encoder and its k-means become a unit encoder folder.

python -m units.encoder.adopt mhubert_base_vp_en_es_fr_it3.pt mhubert_base_vp_en_es_fr_it3_L11_km1000.bin runs/7b/unit_encoder
"""

from __future__ import annotations

import sys
from pathlib import Path

from units.encoder.unit_encoder import UnitEncoder


def main(model: str, kmeans: Path, out: Path, layer: int | None = None) -> None:
    """An encoder and its k-means become a unit encoder folder.

    Args:
        model: a transformers folder, a hub id, or a fairseq .pt
        kmeans: centres: a joblib .bin of scikit-learn, .npy, or .safetensors
        out: the folder to make
        layer: the layer they were fitted on; known for the published pairs
    """
    made = UnitEncoder.join(model, kmeans, layer)
    print(f"{made.codebook.name} ({made.codebook.fingerprint}) in {made.save_pretrained(out)}")


def cli() -> None:
    """Entry point; user errors end in one line and exit code 2."""
    from jsonargparse import auto_cli

    try:
        auto_cli(main)
    except (OSError, ValueError) as error:
        print(f"units.encoder.adopt: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

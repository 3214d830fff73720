"""A published encoder and its k-means become a unit encoder folder.

units-adopt-encoder mhubert_base_vp_en_es_fr_it3.pt mhubert_base_vp_en_es_fr_it3_L11_km1000.bin runs/7b/unit_encoder
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command


@command("units-adopt-encoder", optional=["layer"])
def main(model: str, kmeans: Path, out: Path, layer: int | None = None) -> None:
    """Make a unit encoder folder of a published encoder and its k-means.

    Args:
        model: a transformers folder, a hub id, or a fairseq .pt
        kmeans: centres: a joblib .bin of scikit-learn, .npy, or .safetensors
        out: the folder to make
        layer: the layer that the k-means was fitted on, counted from 1; not needed for the published pairs
    """
    if layer is not None and layer < 1:
        raise ValueError(f"layer is {layer}; layers are counted from 1")
    from units.encoder.unit_encoder import UnitEncoder

    made = UnitEncoder.join(model, kmeans, layer)
    print(f"{made.codebook.name} ({made.codebook.fingerprint}) in {made.save_pretrained(out)}")


if __name__ == "__main__":
    main.cli()

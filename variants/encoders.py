"""The encoder that a system listens with: HuBERT, wav2vec 2.0, Whisper, or the starter, at one layer.

encoder = open_encoder("starter", 0)          # 0: the last layer
states = encoder(wavs)                        # one float32 (N, D) for each wav (T,)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from units.encoder.unit_encoder import Features, open_features
from variants.references import STARTER_NAME, located

Window = Literal["full", "utterance", "padded"]
PUBLISHED_WIDTHS = {
    "openai/whisper-tiny": 384,
    "openai/whisper-tiny.en": 384,
    "openai/whisper-base": 512,
    "openai/whisper-small": 768,
    "openai/whisper-medium": 1024,
    "openai/whisper-large-v2": 1280,
    "openai/whisper-large-v3": 1280,
}


def open_encoder(encoder: str, layer: int, device: str = "cpu", window: Window = "full") -> Features:
    """Features of a folder, a hub id, a fairseq .pt, or `starter`.

    Args:
        layer: counted from 1; 0 is the last one.
        window: for Whisper: full pads each wav to 30 s, as Whisper was trained and as the published models read it;
            utterance reads the wav alone, which takes a fraction of the time and gives states that are much alike;
            padded is full with the states of the padding too, as the published LLaMA-Omni reads them.

    Raises: FileNotFoundError if there is no such encoder; ValueError if it lacks the layer.
    """
    folder = located(encoder)
    layer = layer or depth(folder)
    if window != "utterance" and folder.suffix != ".pt" and _config(folder).model_type == "whisper":
        from units.encoder.whisper_window import FullWindowFeatures, WholeWindowFeatures

        kind = WholeWindowFeatures if window == "padded" else FullWindowFeatures
        return kind.from_pretrained(folder, layer).to(device)
    features = open_features(folder, layer, device)
    if encoder == STARTER_NAME:
        features.name = STARTER_NAME
    return features


def depth(folder: Path) -> int:
    """How many layers an encoder has.

    Raises: ValueError for a fairseq checkpoint, which does not state it.
    """
    if folder.suffix == ".pt":
        raise ValueError(f"{folder} does not state how many layers it has; give encoder_layer")
    config = _config(folder)
    return getattr(config, "encoder_layers", None) or config.num_hidden_layers


def width_of(encoder: str) -> int:
    """The width D of an encoder's states, without its weights where its config states it."""
    if encoder in PUBLISHED_WIDTHS:  # so that a plan downloads nothing
        return PUBLISHED_WIDTHS[encoder]
    folder = located(encoder)
    if folder.suffix == ".pt":
        return open_features(folder, 1).dim
    config = _config(folder)
    return getattr(config, "d_model", None) or config.hidden_size


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)

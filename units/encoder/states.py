"""The states of one layer of an encoder, as systems that listen read them: HuBERT, wav2vec 2.0, Whisper, the starter.

features = open_states("starter", 0)          # 0: the last layer
states = features(wavs)                       # one float32 (N, D) for each wav (T,)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from units.encoder.unit_encoder import Features, open_features
from units.runtime.hub import local_folder
from units.runtime.provenance import weights_hash
from units.shipped import ENCODERS

Window = Literal["full", "utterance", "padded"]
WEIGHTS = ("*.safetensors", "*.bin", "*.pt")


def open_states(
    encoder: str | Path,
    layer: int = 0,
    device: str = "cpu",
    window: Window = "full",
    dtype: torch.dtype = torch.float32,
) -> Features:
    """Features of a transformers folder or hub id, a fairseq .pt, or `starter` or `codec`.

    Args:
        layer: counted from 1; 0 is the last one.
        window: for Whisper: full pads each wav to 30 s, as Whisper was trained and as the published models read it;
            utterance reads the wav alone, which takes a fraction of the time and gives states that are much alike;
            padded is full with the states of the padding too, as the published LLaMA-Omni reads them.
        dtype: of the encoder's matrix products.

    Raises: FileNotFoundError if there is no such encoder; ValueError if it lacks the layer.
    """
    name, folder = str(encoder), encoder_folder(encoder)
    layer = layer or depth(folder)
    if folder.suffix != ".pt" and encoder_config(folder).model_type == "whisper":
        from units.encoder import whisper_window

        kinds = {
            "full": whisper_window.FullWindowFeatures,
            "utterance": whisper_window.UtteranceFeatures,
            "padded": whisper_window.WholeWindowFeatures,
        }
        features: Features = kinds[window].from_pretrained(folder, layer, dtype=dtype).to(device)
    else:
        features = open_features(folder, layer, device, dtype)
    if name in ENCODERS:
        features.name = name
    return features


def encoder_folder(encoder: str | Path) -> Path:
    """The folder or file of an encoder: `starter` or `codec`, which come with the package, a path, or a hub id.

    Raises: FileNotFoundError if it does not exist.
    """
    folder = ENCODERS.get(str(encoder)) or local_folder(encoder)
    if not folder.exists():
        raise FileNotFoundError(f"there is no encoder {encoder}")
    return folder


def depth(folder: Path) -> int:
    """How many layers an encoder has.

    Raises: ValueError for a fairseq checkpoint, which does not state it.
    """
    if folder.suffix == ".pt":
        raise ValueError(f"{folder} does not state how many layers it has; give the layer")
    config = encoder_config(folder)
    return getattr(config, "encoder_layers", None) or config.num_hidden_layers


def encoder_config(folder: Path) -> Any:
    """The transformers config of a folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder)


def fingerprint(part: Path) -> str:
    """Hash of the weight files of a model: their names, sizes, first and last megabyte. Checkpoints below do not count.

    Raises: FileNotFoundError if it holds no weights.
    """
    files = [part] if part.is_file() else next((found for kind in WEIGHTS if (found := sorted(part.glob(kind)))), [])
    if not files:
        raise FileNotFoundError(f"{part} holds no weights ({', '.join(WEIGHTS)})")
    return weights_hash({path.name: path for path in files})

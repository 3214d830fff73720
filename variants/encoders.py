"""The encoder that a system listens with: HuBERT, wav2vec 2.0, Whisper, or the starter, at one layer.

encoder = open_encoder("starter", 0)          # 0: the last layer
states = encoder(wavs)                        # one float32 (N, D) for each wav (T,)
"""

from __future__ import annotations

from stages.start_models.real_models import preset_folder
from units.encoder.states import Window, encoder_config, open_states
from units.encoder.unit_encoder import Features, open_features
from variants.references import located

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
    """As units.encoder.states.open_states."""
    return open_states(encoder, layer, device, window)


def width_of(encoder: str) -> int:
    """The width D of an encoder's states, without its weights where its config states it."""
    for hub, width in PUBLISHED_WIDTHS.items():  # so that a plan downloads nothing
        if encoder in (hub, preset_folder(hub)):
            return width
    folder = located(encoder)
    if folder.suffix == ".pt":
        return open_features(folder, 1).dim
    config = encoder_config(folder)
    return getattr(config, "d_model", None) or config.hidden_size

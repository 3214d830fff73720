"""Whisper's encoder as a recogniser uses it: the last layer with its norm, in a full window of padding.

The published speech LLMs on Whisper (BLSP, LLaMA-Omni) read these states. UtteranceFeatures reads the utterance alone,
which takes a fraction of the time; WhisperFeatures (whisper.py) is that for units, without a norm.

Frame i is computed around sample 320 i. A wav of T samples has ceil(T / 320) frames; the padding's are cut. A wav that
is longer than the window is read by windows end to end, and nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from units.audio import SAMPLE_RATE, FrameGrid
from units.encoder.whisper import FFT, MEL_HOP, WhisperFeatures

CONVOLVED = 2  # mel frames of an encoder frame


class UtteranceFeatures(WhisperFeatures):
    """WhisperFeatures as a system listens with: the states of the last layer come after its norm."""

    def __init__(self, model: nn.Module, layer: int, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Take over an encoder; arguments as for WhisperFeatures."""
        norm = model.layer_norm if layer == len(model.layers) else nn.Identity()
        super().__init__(model, layer, name, dtype)
        self.model.layer_norm = norm.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, layer: int, name: str | None = None, dtype: torch.dtype = torch.float32
    ) -> Self:
        """Open a transformers Whisper folder or hub id. Raises: as WhisperFeatures.from_pretrained."""
        from transformers import WhisperConfig

        made = super().from_pretrained(folder, layer, name, dtype)
        assert isinstance(made, cls)
        if layer < WhisperConfig.from_pretrained(folder).encoder_layers:  # only the layers up to it were loaded
            made.model.layer_norm = nn.Identity()
        return made

    @torch.inference_mode()
    def _batch(self, wavs: list[np.ndarray]) -> list[Tensor]:
        return [self.model.layer_norm(one) for one in super()._batch(wavs)]


class FullWindowFeatures(UtteranceFeatures):
    """States of one layer of a transformers Whisper encoder; those of the last one after its norm."""

    grid = FrameGrid(CONVOLVED * MEL_HOP, 1)

    def __init__(self, model: nn.Module, layer: int, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Take over an encoder; arguments as for WhisperFeatures."""
        super().__init__(model, layer, name, dtype)
        self.window = self.config.max_source_positions * CONVOLVED * MEL_HOP  # samples: 30 s

    def _set_positions(self) -> None:
        """Keep the published table, to the last digit."""

    def is_long(self, wav: np.ndarray | Tensor) -> bool:
        """Whether a wav is longer than the window."""
        return len(wav) > self.window

    def windows(self, wav: np.ndarray) -> Iterator[Tensor]:
        """Features of a wav of any length, a window at a time, in order: together (N, D)."""
        for start in range(0, len(wav), self.window):
            yield self._batch([wav[start : start + self.window]])[0]

    def _embedded(self, wav: np.ndarray) -> Tensor:
        """What the first layer reads, (positions, D)."""
        mel = self.mel(wav)
        x = functional.gelu(self.model.conv1(mel[None]))
        return functional.gelu(self.model.conv2(x))[0].T + self.model.embed_positions.weight

    def mel(self, wav: np.ndarray) -> Tensor:
        """Log-mels of a wav (T,) in its window, float32 (mels, frames), as transformers' WhisperFeatureExtractor."""
        tensor = torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32)).to(self.device)
        return self._log_mel(functional.pad(tensor, (0, self.window - len(tensor))))

    def _log_mel(self, wav: Tensor) -> Tensor:
        """Mel windows are centred on every 160th sample; the one at the very end is left out, as upstream."""
        found = torch.stft(wav, FFT, MEL_HOP, window=self._hann, center=True, pad_mode="reflect", return_complex=True)
        mel = (self._bank @ found[:, :-1].abs().square()).clamp(min=1e-10).log10()
        return mel.maximum(mel.max() - 8.0) / 4 + 1


@dataclass(frozen=True)
class WindowGrid(FrameGrid):
    """The frames of whole windows, the padding's too. window: samples of one."""

    window: int = 30 * SAMPLE_RATE

    def num_frames(self, num_samples: int) -> int:
        """Frames of a wav of `num_samples`: those of all windows that it reaches into."""
        return -(-num_samples // self.window) * (self.window // self.hop)


class WholeWindowFeatures(FullWindowFeatures):
    """As FullWindowFeatures, with the states of the padding: LLaMA-Omni's published models read 1,500 of any wav."""

    def __init__(self, model: nn.Module, layer: int, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Take over an encoder; arguments as for WhisperFeatures."""
        super().__init__(model, layer, name, dtype)
        self.grid = WindowGrid(CONVOLVED * MEL_HOP, 1, self.window)

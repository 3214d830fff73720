"""Whisper's encoder as features: any layer, in a window of the utterance instead of 30 seconds of padding.

    units-fit --manifest train.jsonl --out enc --encoder openai/whisper-tiny.en --layer 3 --size 500 --centring frame

Whisper (Radford et al. 2022, arXiv 2212.04356) reads 30 s, whatever is spoken in it. Here it reads the utterance and
SILENCE seconds after it: a 3 s wav takes a thirteenth of the time, and the states of whisper-tiny.en keep a cosine of
0.98 to 0.99. Frame i is computed around the samples that HuBERT's frame i sees, so durations, vocoders and unit sets
are the same: the mel windows are not centred on sample 0 but begin there.

The last layer of a recogniser forgets how words sound; on whisper-tiny.en the third of four keeps most for a vocoder.

T samples, N frames of one wav, M frames of a batch, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from units.audio import HUBERT_GRID, SAMPLE_RATE
from units.encoder.hubert import _exact_float32, _Layer, _Product

FFT = 400  # samples of a mel window
MEL_HOP = 160  # samples between mel frames; the second convolution halves their rate
SILENCE = 0.3  # seconds after the utterance
WINDOW = 20  # seconds: longer wavs are encoded in windows,
SAME_TABLE = 1e-3  # largest difference of a table of positions that is Whisper's, rounded
CONTEXT = 4.5  # with so many seconds on either side; together below Whisper's 30 s


class WhisperFeatures:
    """States of one layer of a transformers Whisper encoder. Same interface as HubertFeatures.

    Layers are counted from 1, as in transformers' `hidden_states[layer]`; the norm after the last layer is left out.
    """

    grid = HUBERT_GRID
    # for the fingerprint: no wav is normalised, and the last norm is not among the weights
    normalise = pre_norm = False
    cut_long = False

    def __init__(self, model: nn.Module, layer: int, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Take over an encoder.

        Args:
            model: a transformers WhisperEncoder.
            layer: the last layer to keep.
            name: of the encoder, in the codebook.
            dtype: of the layers' matrix products; sums and norms stay in float32.

        Raises: ValueError for a layer that the model does not have.
        """
        depth = len(model.layers)
        if not 1 <= layer <= depth:
            raise ValueError(f"layer is {layer}; {name!r} has layers 1 to {depth}")
        self.layer, self.name, self.dtype = layer, name, dtype
        self.config = model.config
        self.dim: int = model.config.d_model
        model.layers = model.layers[:layer]
        model.layer_norm = nn.Identity()
        self.model = model.eval().requires_grad_(False)
        self._set_positions()
        self._take_weights()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, layer: int, name: str | None = None, dtype: torch.dtype = torch.float32
    ) -> WhisperFeatures:
        """Open a transformers Whisper folder or hub id; the decoder, if there is one, is not kept.

        Raises: FileNotFoundError; ValueError if weights are missing.
        """
        from transformers import WhisperConfig, WhisperModel
        from transformers.utils import logging

        config = WhisperConfig.from_pretrained(folder)
        config.encoder_layers = max(1, min(layer, config.encoder_layers))
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would list the layers above, which are not loaded on purpose
        try:
            model, found = WhisperModel.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True
            )
        finally:
            logging.set_verbosity(verbosity)
        missing = sorted(key for key in found["missing_keys"] if ".layers." in key or "conv" in key)
        if missing := [key for key in missing if key.removeprefix("model.").startswith("encoder.")]:
            raise ValueError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}; is it a whole checkpoint?")
        if any(key.endswith("encoder.embed_positions.weight") for key in found["missing_keys"]):
            table = model.encoder.embed_positions.weight
            table.data = positions(*table.shape)
        return cls(model.encoder, layer, name or str(folder), dtype)

    def _set_positions(self) -> None:
        """Put the table of positions where it was rounded differently, or not saved: a folder need not hold it."""
        table = self.model.embed_positions.weight
        computed = positions(*table.shape)
        if (table.cpu() - computed).abs().max() < SAME_TABLE:
            table.data = computed.to(table.device)

    def _take_weights(self) -> None:
        from transformers.audio_utils import mel_filter_bank

        model = self.model
        bank = mel_filter_bank(1 + FFT // 2, self.config.num_mel_bins, 0.0, 8000.0, SAMPLE_RATE, "slaney", "slaney")
        self._bank = torch.from_numpy(bank.T.astype(np.float32)).to(self.device)  # (mels, bins)
        self._hann = torch.hann_window(FFT, device=self.device)
        self._layers = [_WhisperLayer(layer, self.dtype) for layer in model.layers]

    @property
    def device(self) -> torch.device:
        return self.model.conv1.weight.device

    @property
    def manner(self) -> str:
        """How features are computed, as far as units depend on it."""
        return str(self.dtype).removeprefix("torch.")

    def to(self, device: str | torch.device) -> WhisperFeatures:
        self.model.to(device)
        self._take_weights()
        return self

    def compile(self) -> None:
        """torch.compile the layers' feed-forward parts; the first calls are slow."""
        for layer in self._layers:
            layer.feed = torch.compile(layer.feed, dynamic=True)  # type: ignore[method-assign]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a transformers folder of the encoder up to this layer, without a decoder.

        It is in half precision if that loses nothing, as with the published weights, and without the table of
        positions, which from_pretrained computes.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.encoder_layers = self.layer
        self.config.save_pretrained(folder)
        weights = {f"model.encoder.{name}": value.cpu() for name, value in self.model.state_dict().items()}
        table = weights["model.encoder.embed_positions.weight"]
        if torch.equal(table, positions(*table.shape)):
            del weights["model.encoder.embed_positions.weight"]
        halves = {name: value.half() for name, value in weights.items()}
        exact = all(bool((halves[name].float() == value).all()) for name, value in weights.items())
        chosen = halves if exact else weights
        save_file({name: value.contiguous() for name, value in chosen.items()}, folder / "model.safetensors")

    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, D) for each wav (T,), N = grid.num_frames(T)."""
        batch = iter(self._batch([wav for wav in wavs if not self.is_long(wav)]))
        return [torch.cat(list(self.windows(wav))) if self.is_long(wav) else next(batch) for wav in wavs]

    def is_long(self, wav: np.ndarray | Tensor) -> bool:
        """Whether a wav is longer than Whisper's 30 s."""
        return len(wav) > (WINDOW + 2 * CONTEXT) * SAMPLE_RATE

    def windows(self, wav: np.ndarray) -> Iterator[Tensor]:
        """Features of a wav of any length, a window at a time, in order: together (N, D)."""
        size, beside = round(WINDOW * self.grid.rate), round(CONTEXT * self.grid.rate)
        total = self.grid.num_frames(len(wav))
        for start in range(0, total, size):
            first, last = max(0, start - beside), min(total, start + size + beside)
            part = wav[first * self.grid.hop : (last - 1) * self.grid.hop + self.grid.receptive_field]
            yield self._batch([part])[0][start - first : start - first + size]

    @torch.inference_mode()
    def _batch(self, wavs: list[np.ndarray]) -> list[Tensor]:
        if not wavs:
            return []
        with _exact_float32(self.device, self.dtype):
            hidden = [self._embedded(wav) for wav in wavs]
            counts = [len(one) for one in hidden]
            joined = torch.cat(hidden)
            for layer in self._layers:
                joined = layer(joined, counts, pre_norm=True)
        return [one[: self.grid.num_frames(len(wav))] for one, wav in zip(joined.split(counts), wavs)]

    def _embedded(self, wav: np.ndarray) -> Tensor:
        """What the first layer reads, (N + silence, D): mels, two convolutions, positions."""
        tensor = torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32)).to(self.device)
        mel = self._log_mel(functional.pad(tensor, (0, round(SILENCE * SAMPLE_RATE))))
        x = functional.gelu(self.model.conv1(mel[None]))
        x = functional.gelu(self.model.conv2(x))[0].T
        return x + self.model.embed_positions.weight[: len(x)]

    def _log_mel(self, wav: Tensor) -> Tensor:
        """Log-mels (mels, frames) as Whisper's, 100 a second, at most eight decades below the loudest."""
        spectrum = torch.stft(wav, FFT, MEL_HOP, window=self._hann, center=False, return_complex=True)
        mel = (self._bank @ spectrum.abs().square()).clamp(min=1e-10).log10()
        return mel.maximum(mel.max() - 8) / 4 + 1


def positions(count: int, width: int) -> Tensor:
    """Whisper's table of positions, float32 (count, width): sines, then cosines, of ever longer waves.

    It is computed in double precision, so that every machine rounds it to the same.
    Source: openai/whisper, whisper/model.py, `sinusoids`.
    """
    falling = np.exp(-np.log(10_000) / (width // 2 - 1) * np.arange(width // 2))
    angles = np.arange(count)[:, None] * falling
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32))


class _WhisperLayer(_Layer):
    """One layer of Whisper's encoder, under the names of HuBERT's."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.self_attn
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        biases = [torch.zeros_like(attention.q_proj.bias) if p.bias is None else p.bias for p in three]
        self.qkv = _Product([p.weight for p in three], biases, dtype)
        self.out = _Product([attention.out_proj.weight], [attention.out_proj.bias], dtype)
        self.wide = _Product([layer.fc1.weight], [layer.fc1.bias], dtype)
        self.narrow = _Product([layer.fc2.weight], [layer.fc2.bias], dtype)
        self.activation = layer.activation_fn
        self.norm, self.final_norm, self.heads = layer.self_attn_layer_norm, layer.final_layer_norm, attention.num_heads

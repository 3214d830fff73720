"""HuBERT features at one layer, exact in batches.

A padded batch gives what one file at a time gives: the first convolution's GroupNorm takes its statistics over each
wav's own samples, and padding is hidden from the positional convolution and the attention. Layers above the one asked
for are dropped. Long audio goes through overlapping windows, so memory is bounded.

B batch, T samples, N frames, D feature width.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, num_frames

WINDOW = 60 * SAMPLE_RATE  # samples: longer wavs are cut into windows of this length ...
CONTEXT = 2 * SAMPLE_RATE  # samples: ... that also see this much on either side


class HubertFeatures:
    """Layer `layer` (1-based) of a transformers HuBERT, as fairseq's `output_layer` and `hidden_states[layer]` count."""

    def __init__(self, model: nn.Module, layer: int, name: str, normalise: bool = False) -> None:
        depth = len(model.encoder.layers)
        if not 1 <= layer <= depth:
            raise ValueError(f"layer {layer} asked of {name!r}, which has layers 1 to {depth}")
        if layer < depth or model.config.do_stable_layer_norm:
            model.encoder.layers = model.encoder.layers[:layer]
        if model.config.do_stable_layer_norm:
            model.encoder.layer_norm = nn.Identity()  # the large layout's final norm is no part of any layer
        self.model = model.eval().requires_grad_(False)
        self.layer, self.name, self.normalise = layer, name, normalise
        self.dim: int = model.config.hidden_size

    @classmethod
    def from_pretrained(cls, folder: str | Path, layer: int, name: str | None = None) -> HubertFeatures:
        """Open a transformers HuBERT folder or hub id; layers above `layer` are not kept."""
        from transformers import AutoFeatureExtractor, HubertModel

        model = HubertModel.from_pretrained(folder, dtype=torch.float32)
        try:
            normalise = bool(AutoFeatureExtractor.from_pretrained(folder).do_normalize)
        except OSError:
            normalise = False
        return cls(model, layer, name or str(folder), normalise)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: str | torch.device) -> HubertFeatures:
        self.model.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder that ends at this layer."""
        import copy

        from transformers import Wav2Vec2FeatureExtractor

        model = copy.deepcopy(self.model)
        model.config.num_hidden_layers = len(model.encoder.layers)
        if isinstance(model.encoder.layer_norm, nn.Identity):
            model.encoder.layer_norm = nn.LayerNorm(self.dim, eps=model.config.layer_norm_eps)
        model.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=self.normalise).save_pretrained(folder)

    @torch.inference_mode()
    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, D) for each wav (T,), N = num_frames(T)."""
        short = [i for i, wav in enumerate(wavs) if len(wav) <= WINDOW]
        found: dict[int, Tensor] = {}
        if short:
            found = dict(zip(short, self._batch([self._prepared(wavs[i]) for i in short])))
        return [found[i] if i in found else self._windowed(self._prepared(wav)) for i, wav in enumerate(wavs)]

    def _prepared(self, wav: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(wav).to(self.device)
        return nn.functional.layer_norm(tensor, tensor.shape) if self.normalise else tensor

    def _batch(self, wavs: list[Tensor]) -> list[Tensor]:
        """Features of wavs of any lengths, run as one padded batch."""
        lengths = torch.tensor([len(wav) for wav in wavs], device=self.device)
        padded = nn.utils.rnn.pad_sequence(wavs, batch_first=True)  # (B, T)
        hidden = self._convolve(padded, lengths)  # (B, N, D of the last convolution)
        counts = [num_frames(len(wav)) for wav in wavs]
        alike = min(counts) == max(counts)
        mask = (
            None
            if alike
            else torch.arange(hidden.shape[1], device=self.device) < torch.tensor(counts, device=self.device)[:, None]
        )
        hidden = self.model.feature_projection(hidden)
        hidden = self.model.encoder(hidden, attention_mask=mask).last_hidden_state
        return [one[:count].float() for one, count in zip(hidden, counts)]

    def _convolve(self, padded: Tensor, lengths: Tensor) -> Tensor:
        hidden = padded[:, None]
        for layer, kernel, stride in zip(
            self.model.feature_extractor.conv_layers, self.model.config.conv_kernel, self.model.config.conv_stride
        ):
            lengths = (lengths - kernel) // stride + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden = layer.activation(own_group_norm(layer.conv(hidden), lengths, norm))
            else:
                hidden = layer(hidden)
        return hidden.transpose(1, 2)

    def _windowed(self, wav: Tensor) -> Tensor:
        """Features of a long wav: windows of WINDOW samples, each seen with CONTEXT on both sides."""
        total = num_frames(len(wav))
        pieces = []
        for first in range(0, total, WINDOW // HOP):
            last = min(total, first + WINDOW // HOP)
            seen_from = max(0, first - CONTEXT // HOP)
            seen_to = min(total, last + CONTEXT // HOP)
            part = wav[seen_from * HOP : (seen_to - 1) * HOP + RECEPTIVE_FIELD]
            pieces.append(self._batch([part])[0][first - seen_from : last - seen_from])
        return torch.cat(pieces)


def own_group_norm(x: Tensor, lengths: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm with one channel a group, (B, C, T'), whose statistics leave out each row's padding."""
    if norm.num_groups != norm.num_channels:
        raise ValueError(
            f"GroupNorm with {norm.num_groups} groups of {norm.num_channels} channels; HuBERT has one channel a group"
        )
    if bool((lengths == x.shape[-1]).all()):
        return norm(x)
    stats = [torch.var_mean(row[:, :length], dim=1, correction=0) for row, length in zip(x, lengths.tolist())]
    var, mean = (torch.stack(column)[..., None] for column in zip(*stats))  # (B, C, 1)
    scale = norm.weight[:, None] * torch.rsqrt(var + norm.eps)
    return torch.addcmul(norm.bias[:, None] - mean * scale, x, scale)

"""HuBERT features at one layer: exact in batches, exact at any length up to a window, bounded in memory beyond it.

The wavs of a batch are never padded. Convolutions run wav by wav; the layers' matrix products run over all frames of
the batch, concatenated; attention and the positional convolution are limited to one wav. So a batch gives the features
that one file at a time gives. Layers above the requested one are neither loaded nor run.

Beyond WINDOW, attention is limited to a window with CONTEXT on either side. The convolutions and their normalisation
still cover the whole wav.

T samples, N frames of one wav, M frames of a batch, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from units.audio import SAMPLE_RATE
from units.encoder.convolutions import ConvFrontEnd

WINDOW = 100  # seconds: longer wavs are cut into windows of this length; the cut of fairseq's and SpeechGPT's readers
CONTEXT = 5  # seconds on either side of a window that its attention covers too
LENGTHS = 1024  # frames: GPUs convolve in multiples of it, since cuDNN makes a plan for every new length
# All but cuDNN's, which torch prefers on new GPUs. It also makes a plan for each new length, which takes longer than a
# wav of 12 s (github.com/modelscope/FunASR/issues/3704).
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
ARCHITECTURES = ("hubert", "wav2vec2")  # transformers model types whose layers are HuBERT's


class HubertFeatures:
    """Features of one layer of a transformers HuBERT, without the final norm of the large layout.

    Layers are counted from 1, as by fairseq's `output_layer` and transformers' `hidden_states[layer]`.
    """

    def __init__(
        self, model: nn.Module, layer: int, name: str, normalise: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        """Take over a model.

        Args:
            model: a transformers HubertModel or Wav2Vec2Model.
            layer: the last layer to keep.
            name: of the encoder, in the codebook.
            normalise: bring each wav to mean 0 and variance 1 first, as the large models need.
            dtype: of the matrix products; sums and norms stay in float32.

        Raises: ValueError for another architecture, or a layer that the model does not have.
        """
        config = model.config
        if config.model_type not in ARCHITECTURES:
            raise ValueError(f"{name!r} is a {config.model_type}; supported architectures are {ARCHITECTURES}")
        depth = len(model.encoder.layers)
        if not 1 <= layer <= depth:
            raise ValueError(f"layer is {layer}; {name!r} has layers 1 to {depth}")
        self.layer, self.name, self.normalise, self.dtype = layer, name, normalise, dtype
        self.cut_long = False  # True: cut long wavs as fairseq's and SpeechGPT's readers do
        self.dim: int = config.hidden_size
        self.pre_norm: bool = config.do_stable_layer_norm
        if layer < depth or self.pre_norm:
            model.encoder.layers = model.encoder.layers[:layer]
        self.model = model.eval().requires_grad_(False)
        self._take_weights()

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, layer: int, name: str | None = None, dtype: torch.dtype = torch.float32
    ) -> HubertFeatures:
        """Open a transformers folder or hub id, or a fairseq checkpoint (.pt).

        Raises: FileNotFoundError; ValueError if it is none of these, or lacks weights.
        """
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel
        from transformers.utils import logging

        if Path(folder).suffix == ".pt":
            from units.encoder.published.fairseq_hubert import read_fairseq_hubert

            model, normalise = read_fairseq_hubert(Path(folder), layer)
            return cls(model, layer, name or Path(folder).name, normalise, dtype)
        config = AutoConfig.from_pretrained(folder)
        config.num_hidden_layers = max(1, min(layer, getattr(config, "num_hidden_layers", 0)))
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would list the layers above, which are not loaded on purpose
        try:
            model, found = AutoModel.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True
            )
        finally:
            logging.set_verbosity(verbosity)
        unused = "masked_spec_embed"  # in training only
        if unused in found["missing_keys"]:
            # transformers drew it at random, and the codebook's fingerprint covers all weights
            model.masked_spec_embed.data.zero_()
        if missing := sorted(set(found["missing_keys"]) - {unused}):
            raise ValueError(f"{folder} lacks {len(missing)} weights, such as {missing[0]}; is it a whole checkpoint?")
        try:
            normalise = bool(AutoFeatureExtractor.from_pretrained(folder).do_normalize)
        except (OSError, ValueError) as error:
            if (settings := Path(folder) / "preprocessor_config.json").exists():
                raise ValueError(f"{settings} is damaged ({error!r:.200}); copy it again") from error
            if isinstance(error, ValueError):
                raise
            normalise = False
        return cls(model, layer, name or str(folder), normalise, dtype)

    def _take_weights(self) -> None:
        model = self.model
        self.front_end = ConvFrontEnd(model.feature_extractor, self.dtype)
        self.grid = self.front_end.grid
        self.positions = _Positions(model.encoder.pos_conv_embed)
        self.layers = [_Layer(layer, self.dtype) for layer in model.encoder.layers]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def manner(self) -> str:
        """How features are computed, as far as units depend on it."""
        return f"{str(self.dtype).removeprefix('torch.')}{f', cut each {WINDOW} s' if self.cut_long else ''}"

    def to(self, device: str | torch.device) -> HubertFeatures:
        self.model.to(device)
        self._take_weights()
        return self

    def compile(self) -> None:
        """torch.compile the layers' feed-forward parts; the first calls are slow."""
        for layer in self.layers:
            layer.feed = torch.compile(layer.feed, dynamic=True)  # type: ignore[method-assign]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder that ends at this layer."""
        from transformers import Wav2Vec2FeatureExtractor

        self.model.config.num_hidden_layers = self.layer
        self.model.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=self.normalise).save_pretrained(folder)

    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, D) for each wav (T,), N = grid.num_frames(T)."""
        batch = iter(self._batch([wav for wav in wavs if not self.is_long(wav)]))
        return [torch.cat(list(self.windows(wav))) if self.is_long(wav) else next(batch) for wav in wavs]

    def is_long(self, wav: np.ndarray | Tensor) -> bool:
        """Whether a wav is longer than a window."""
        return len(wav) > WINDOW * SAMPLE_RATE

    @torch.inference_mode()
    def windows(self, wav: np.ndarray) -> Iterator[Tensor]:
        """Features of a wav of any length, a window at a time, in order: together (N, D)."""
        if self.cut_long:
            for part in self.cut(self._prepared(wav)):
                yield self._transform([self.front_end(part)])[0]
            return
        size, beside = round(WINDOW * self.grid.rate), round(CONTEXT * self.grid.rate)
        total = self.grid.num_frames(len(wav))
        starts = range(0, total, size)
        windows = [(max(0, start - beside), min(total, start + size + beside)) for start in starts]
        segments = self.front_end.segments(self._prepared(wav), windows)
        for start, (first, _), frames in zip(starts, windows, segments):
            yield self._transform([frames])[0][start - first : start - first + size]

    def cut(self, wav: Tensor) -> list[Tensor]:
        """Cut a long wav as fairseq does: parts of 100 seconds, encoded separately; each join loses a frame."""
        parts = wav.split(WINDOW * SAMPLE_RATE)
        return [part for part in parts if self.grid.num_frames(len(part))]

    @torch.inference_mode()
    def _batch(self, wavs: list[np.ndarray]) -> list[Tensor]:
        return self._transform([self.front_end(self._prepared(wav)) for wav in wavs]) if wavs else []

    def _prepared(self, wav: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(wav))
        if self.device.type == "cuda":  # from pinned memory the copy does not block
            tensor = tensor.pin_memory()
        tensor = tensor.to(self.device, non_blocking=tensor.is_pinned())
        return functional.layer_norm(tensor, tensor.shape) if self.normalise else tensor

    def _transform(self, frames: list[Tensor]) -> list[Tensor]:
        """The layer's features (N, D) of several wavs, from their frames (N, C) after the convolutions."""
        counts = [len(one) for one in frames]
        encoder = self.model.encoder
        projected = self.model.feature_projection(torch.cat(frames).float()[None])
        hidden = (projected[0] if isinstance(projected, tuple) else projected)[0]  # (M, D)
        with _exact_float32(self.device, self.dtype):
            hidden += self.positions(hidden, counts)
            if not self.pre_norm:
                hidden = encoder.layer_norm(hidden)
            for layer in self.layers:
                hidden = layer(hidden, counts, self.pre_norm)
        return list(hidden.split(counts))


@contextmanager
def _exact_float32(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """On a GPU, keep float32 exact and avoid cuDNN's attention; on a CPU change nothing, as threads may be running."""
    if device.type != "cuda":
        yield
        return
    # by default cuDNN rounds float32 to 10 bits (TF32), and a GPU would give other units than a CPU
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=dtype != torch.float32), sdpa_kernel(ATTENTION):
        yield


class _Positions:
    """The convolutional positional embedding, with its weight norm folded in once."""

    def __init__(self, embed: nn.Module) -> None:
        conv = embed.conv
        self.weight, self.bias = conv.weight.detach(), conv.bias.detach()
        self.padding, self.groups = conv.padding, conv.groups
        self.norm, self.trim, self.activation = getattr(embed, "batch_norm", None), embed.padding, embed.activation

    def __call__(self, x: Tensor, counts: list[int]) -> Tensor:
        """Positional embeddings (M, D) of the concatenated frames of several wavs, `counts` of each."""
        x = x if self.norm is None else self.norm(x.T[None])[0].T
        if x.device.type == "cpu":
            return torch.cat([self._convolved(one) for one in x.split(counts)])
        return self._at_once(x, counts)

    def _at_once(self, x: Tensor, counts: list[int]) -> Tensor:
        """The same in one convolution: zeros between two wavs, as many as its padding, keep them apart."""
        apart = x.new_zeros(self.padding[0], x.shape[1])
        rows = len(x) + len(counts) * len(apart)
        parts = [part for one in x.split(counts) for part in (one, apart)]
        found = self._convolved(torch.cat([*parts, x.new_zeros(-rows % LENGTHS, x.shape[1])]))
        return torch.cat(found[:rows].split([len(part) for part in parts])[::2])

    def _convolved(self, x: Tensor) -> Tensor:
        x = functional.conv1d(x.T[None], self.weight, self.bias, padding=self.padding, groups=self.groups)
        return self.activation(self.trim(x))[0].T


class _Layer:
    """One transformer layer over the concatenated frames of several wavs (M, D), `counts` of each."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        attention, feed = layer.attention, layer.feed_forward
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = _Product([p.weight for p in three], [p.bias for p in three], dtype)
        self.out = _Product([attention.out_proj.weight], [attention.out_proj.bias], dtype)
        self.wide = _Product([feed.intermediate_dense.weight], [feed.intermediate_dense.bias], dtype)
        self.narrow = _Product([feed.output_dense.weight], [feed.output_dense.bias], dtype)
        self.activation = feed.intermediate_act_fn
        self.norm, self.final_norm, self.heads = layer.layer_norm, layer.final_layer_norm, attention.num_heads

    def __call__(self, x: Tensor, counts: list[int], pre_norm: bool) -> Tensor:
        if pre_norm:
            x = x + self.attend(self.norm(x), counts)
            return x + self.feed(self.final_norm(x))
        x = self.norm(x + self.attend(x, counts))
        return self.final_norm(x + self.feed(x))

    def attend(self, x: Tensor, counts: list[int]) -> Tensor:
        """Every frame attends to the frames of the same wav."""
        qkv = self.qkv(x).unflatten(1, (3, self.heads, -1))  # (M, 3, heads, D / heads)
        qkv = qkv.permute(1, 2, 0, 3)[:, None]  # (3, 1, heads, M, D / heads)
        # only attention runs wav by wav: for short wavs on a GPU, launch overhead dominates, so the rest is batched
        found = [functional.scaled_dot_product_attention(*of_wav) for of_wav in qkv.split(counts, dim=3)]
        return self.out(torch.cat(found, dim=2)[0].transpose(0, 1).flatten(1)).float()

    def feed(self, x: Tensor) -> Tensor:
        return self.narrow(self.activation(self.wide(x))).float()


class _Product:
    """x -> x @ weight.T + bias in `dtype`; several matrices are concatenated."""

    def __init__(self, weights: list[Tensor], biases: list[Tensor], dtype: torch.dtype) -> None:
        many = len(weights) > 1  # a single one is not copied
        self.weight = (torch.cat(weights) if many else weights[0]).detach().to(dtype)
        self.bias = (torch.cat(biases) if many else biases[0]).detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias)

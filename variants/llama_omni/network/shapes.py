"""Shapes of the adaptor and of the speech decoder, without torch, so that commands list these options fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from units.runtime.command import check_range
from units.runtime.settings import check_types

DecoderInput = Literal["state", "state_and_word", "gate"]
DecoderKind = Literal["ctc", "autoregressive"]


@dataclass(frozen=True)
class AdaptorShape:
    """The shape of an adaptor."""

    rate: int = 5
    """Encoder frames that are joined to one embedding; what is left over at the end of a sound is dropped."""
    inner: int = 2048
    """Width of the hidden layer."""

    def __post_init__(self) -> None:
        check_types(self, "adaptor.")
        check_range("rate", self.rate, 1)
        check_range("inner", self.inner, 1)

    def embeddings(self, frames: int) -> int:
        """How many embeddings M a sound of so many frames gives; 0 if it has fewer than one takes."""
        return frames // self.rate


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a speech decoder."""

    layers: int = 2
    """Llama layers."""
    width: int = 4096
    """Width of the layers."""
    heads: int = 32
    """Attention heads."""
    inner: int = 11008
    """Width of the feed-forward layers."""
    upsample: int = 25
    """Frames of a token: each state is repeated so often. Units a token, times 1.5 to 2, is enough. For kind
    autoregressive the most units of a token, where an answer does not end."""
    input: DecoderInput = "state"
    """state: the LLM's state that predicts a token, as published. state_and_word: also the embedding of that token,
    which makes the decoder learn several times faster. gate: both, in shares that a learned gate gives, as in
    LLaMA-Omni2."""
    kind: DecoderKind = "ctc"
    """ctc: all units of a token at once, as LLaMA-Omni. autoregressive: one unit after the other, as LLaMA-Omni2."""
    read: int = 3
    """For kind autoregressive: tokens that are read before units are written."""
    write: int = 10
    """For kind autoregressive: units that are written before further tokens are read; at most those of `read` tokens,
    or speech runs ahead of its text."""

    def __post_init__(self) -> None:
        check_types(self, "decoder.")
        for name in ("layers", "width", "heads", "inner", "upsample", "read", "write"):
            check_range(name, getattr(self, name), 1)
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"decoder: a width of {self.width} and {self.heads} heads; each head needs an even, whole width"
            )
        for name, choices in (("input", get_args(DecoderInput)), ("kind", get_args(DecoderKind))):
            if getattr(self, name) not in choices:
                raise ValueError(f"decoder: {name} is {getattr(self, name)!r}; it is {' or '.join(choices)}")

    @classmethod
    def published(cls, text: str, upsample: int) -> DecoderShape:
        """From a published config: ctc_decoder_config is "(layers,width,heads,inner)".

        Raises: ValueError if it is anything but four whole numbers.
        """
        parts = str(text).strip().removeprefix("(").removesuffix(")").split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
            raise ValueError(f"ctc_decoder_config is {text!r:.80}; it is four whole numbers, such as (2,4096,32,11008)")
        layers, width, heads, inner = (int(part) for part in parts)
        return cls(layers, width, heads, inner, upsample)

    @property
    def published_text(self) -> str:
        """Inverse of `published`."""
        return f"({self.layers},{self.width},{self.heads},{self.inner})"


@dataclass(frozen=True)
class Speaking:
    """What the speech decoder was built for, beside its shape.

    hidden: width of the LLM, H. units: of the codebook, K. rope: rotary parameters of the layers, under the names of
    transformers. epsilon: of the norms.
    """

    hidden: int
    units: int
    rope: Mapping[str, Any] = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_types(self, "speaking.")
        check_range("hidden", self.hidden, 1)
        check_range("units", self.units, 1)
        check_range("epsilon", self.epsilon, 0, exclusive=True)
        if not isinstance(self.rope, Mapping):
            raise ValueError(f"speaking: rope is {self.rope!r:.60}; it is an object with rope_type and rope_theta")

    @classmethod
    def of(cls, shape: Any, units: int) -> Speaking:
        """For an LLM, from its config: the decoder has the LLM's rotary positions, as published.

        Args:
            shape: the config of an LLM.
        """
        text = shape.get_text_config()
        given = dict(getattr(text, "rope_parameters", None) or {})
        theta = given.get("rope_theta") or getattr(text, "rope_theta", None) or 10000.0
        if given.get("rope_type") not in ("linear", "llama3"):
            given = {"rope_type": "default"}
        return cls(text.hidden_size, units, {**given, "rope_theta": theta}, getattr(text, "rms_norm_eps", None) or 1e-5)

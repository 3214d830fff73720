"""The speech decoder of a shape."""

from __future__ import annotations

from variants.llama_omni.network.autoregressive import AutoregressiveDecoder
from variants.llama_omni.network.ctc_decoder import CtcDecoder
from variants.llama_omni.network.decoder import SpeechDecoder
from variants.llama_omni.network.shapes import DecoderKind, DecoderShape, Speaking

KINDS: dict[DecoderKind, type[CtcDecoder] | type[AutoregressiveDecoder]] = {
    "ctc": CtcDecoder,
    "autoregressive": AutoregressiveDecoder,
}


def make_decoder(shape: DecoderShape, made_for: Speaking) -> SpeechDecoder:
    """A new speech decoder."""
    return KINDS[shape.kind](shape, made_for)

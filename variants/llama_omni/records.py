"""What `speechgpt.json` holds of a LLaMA-Omni model, in `extra`, and how its parts are read from its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechgpt.checkpoint import CheckpointFacts
from units.codebook import Codebook
from variants.encoders import Window
from variants.llama_omni.config import INSTRUCTIONS
from variants.llama_omni.network.shapes import AdaptorShape, DecoderShape, Speaking
from variants.llama_omni.template import TemplateName
from variants.references import Reference
from variants.speech_in.facts import listening_fields, listening_json, read_facts

SYSTEM = "llama-omni"
ADAPTOR_FILE, DECODER_FILE = "adaptor.safetensors", "decoder.safetensors"


@dataclass(frozen=True)
class OmniFacts:
    """The parts of a model and how it is spoken to.

    llm, encoder: the frozen parts. layer: of the encoder, counted from 1. width: of its states, D. shape: of the
    adaptor. window: of a Whisper (variants/encoders.py). instructions: what stands beside speech, by what the model is
    asked for. decoder, speaking: of the speech decoder; None for a model of stage 1, which answers in text.
    vocoder: of the decoder's units; None if there is none yet. through_text: whether it answers what it wrote down of
    a question, instead of the recording. codebook: of the units.
    """

    llm: Reference
    encoder: Reference
    layer: int
    width: int
    shape: AdaptorShape
    template: TemplateName
    instructions: Mapping[str, str] = field(default_factory=lambda: INSTRUCTIONS)
    window: Window = "full"
    decoder: DecoderShape | None = None
    speaking: Speaking | None = None
    vocoder: Reference | None = None
    through_text: bool = False
    codebook: Codebook | None = None

    def json(self) -> dict[str, Any]:
        """As `extra` holds it; the codebook has a place of its own."""
        found = listening_json(self)
        for name in ("decoder", "speaking"):
            found[name] = None if found[name] is None else dataclasses.asdict(found[name])
        found["vocoder"] = None if self.vocoder is None else self.vocoder.json()
        del found["codebook"]
        return found

    @classmethod
    def load(cls, folder: Path) -> OmniFacts:
        """Read a model folder's facts. Raises: as read_facts."""
        return read_facts(folder, SYSTEM, cls._read)

    @classmethod
    def _read(cls, facts: CheckpointFacts) -> OmniFacts:
        extra = facts.extra
        return cls(
            **listening_fields(extra, AdaptorShape),
            decoder=None if extra["decoder"] is None else DecoderShape(**extra["decoder"]),
            speaking=None if extra["speaking"] is None else Speaking(**extra["speaking"]),
            vocoder=None if extra["vocoder"] is None else Reference.read(extra, "vocoder"),
            through_text=bool(extra.get("through_text", False)),
            codebook=facts.codebook,
        )

"""What `speechgpt.json` holds of a BLSP model, in `extra`, and how its parts are opened from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.config import INSTRUCTIONS
from variants.blsp.template import TemplateName
from variants.encoders import Window
from variants.references import Reference
from variants.speech_in.facts import listening_fields, listening_json, read_facts, read_part

if TYPE_CHECKING:
    from torch import Tensor

SYSTEM = "blsp"
ADAPTER_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class BlspFacts:
    """The parts of a model and how it is spoken to.

    llm, encoder: the frozen parts. layer: of the encoder, counted from 1. width: of its states, D. window: of
    a Whisper (variants/encoders.py). instructions: what
    stands before speech, by what the model is asked for: answer, transcribe, and the behaviours that it learned.
    """

    llm: Reference
    encoder: Reference
    layer: int
    width: int
    shape: AdapterShape
    template: TemplateName
    instructions: Mapping[str, str] = field(default_factory=lambda: INSTRUCTIONS)
    window: Window = "full"

    def json(self) -> dict[str, Any]:
        """As `extra` holds it."""
        return listening_json(self)

    @classmethod
    def load(cls, folder: Path) -> BlspFacts:
        """Read a model folder's facts. Raises: as read_facts."""
        return read_facts(folder, SYSTEM, lambda facts: cls(**listening_fields(facts.extra, AdapterShape)))


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Weights of a model folder's adapter, by their names in the adapter. Raises: as read_part."""
    return read_part(folder, ADAPTER_FILE, "adapter.")

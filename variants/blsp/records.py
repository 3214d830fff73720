"""What `speechgpt.json` holds of a BLSP model, in `extra`, and how its parts are opened from its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.checkpoint import CheckpointError, CheckpointFacts
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.config import INSTRUCTIONS
from variants.blsp.template import TemplateName
from variants.encoders import Window
from variants.references import Reference

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
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        found |= {"llm": self.llm.json(), "encoder": self.encoder.json(), "shape": dataclasses.asdict(self.shape)}
        return found | {"instructions": dict(self.instructions)}

    @classmethod
    def load(cls, folder: Path) -> BlspFacts:
        """Read a model folder's facts.

        Raises: FileNotFoundError; CheckpointError if they are of another system, or damaged.
        """
        facts = CheckpointFacts.load(folder)
        if facts.system != SYSTEM:
            raise CheckpointError(f"{folder} is of the system {facts.system!r}, not {SYSTEM!r}")
        extra = facts.extra
        try:
            return cls(
                Reference.read(extra, "llm"),
                Reference.read(extra, "encoder"),
                int(extra["layer"]),
                int(extra["width"]),
                AdapterShape(**extra["shape"]),
                extra["template"],
                {str(name): str(text) for name, text in extra["instructions"].items()},
                extra["window"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder}/speechgpt.json lacks or garbles a field of {SYSTEM}: {error}") from error


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Weights of a model folder's adapter, by their names in the adapter.

    Raises: FileNotFoundError; ValueError if the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / ADAPTER_FILE
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {ADAPTER_FILE}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    return {name.removeprefix("adapter."): weight for name, weight in weights.items()}

"""What `speechgpt.json` holds of a LLaMA-Omni model, in `extra`, and how its parts are read from its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.checkpoint import CheckpointError, CheckpointFacts
from units.codebook import Codebook
from variants.encoders import Window
from variants.llama_omni.config import INSTRUCTIONS
from variants.llama_omni.shapes import AdaptorShape, DecoderShape, Speaking
from variants.llama_omni.template import TemplateName
from variants.references import Reference

if TYPE_CHECKING:
    from torch import Tensor

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
        found = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        found |= {"llm": self.llm.json(), "encoder": self.encoder.json(), "shape": dataclasses.asdict(self.shape)}
        for name in ("decoder", "speaking"):
            found[name] = None if found[name] is None else dataclasses.asdict(found[name])
        found["vocoder"] = None if self.vocoder is None else self.vocoder.json()
        del found["codebook"]
        return found | {"instructions": dict(self.instructions)}

    @classmethod
    def load(cls, folder: Path) -> OmniFacts:
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
                AdaptorShape(**extra["shape"]),
                extra["template"],
                {str(name): str(text) for name, text in extra["instructions"].items()},
                extra["window"],
                None if extra["decoder"] is None else DecoderShape(**extra["decoder"]),
                None if extra["speaking"] is None else Speaking(**extra["speaking"]),
                None if extra["vocoder"] is None else Reference.read(extra, "vocoder"),
                bool(extra.get("through_text", False)),
                facts.codebook,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder}/speechgpt.json lacks or garbles a field of {SYSTEM}: {error}") from error


def read_part(folder: Path, file: str, prefix: str) -> dict[str, Tensor]:
    """Weights of a part of a model folder, by their names in the part.

    Args:
        file: ADAPTOR_FILE or DECODER_FILE. prefix: of the names in the file.

    Raises: FileNotFoundError; ValueError if the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / file
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {file}")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}

"""Settings of a BLSP stage: those of every stage, and how speech reaches the LLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from units.runtime.command import check_range
from units.runtime.settings import check_types
from variants.blsp.adapter_shape import AdapterShape
from variants.speech_in.config import ListeningConfig

KINDS = ("text", "ctc", "speech")
CONTINUE = "Continue the following text in a coherent and engaging style with less than 40 words."  # the published one
INSTRUCTIONS: Mapping[str, str] = {
    "continue": CONTINUE,
    "answer": "",
    "transcribe": "Please repeat the following words.",
}


@dataclass
class LossWeights:
    """Parts of the loss, and how much each counts."""

    ce: float = 1.0
    """Cross-entropy with the label."""
    kl: float = 0.0
    """Divergence from what the same LLM predicts when it reads the transcript (BLSP-KD); needs transcripts."""
    temperature: float = 1.0
    """Divides the logits of both, for kl."""

    def __post_init__(self) -> None:
        check_types(self, "loss.")
        check_range("ce", self.ce, 0)
        check_range("kl", self.kl, 0)
        check_range("temperature", self.temperature, 0, exclusive=True)
        if not self.ce and not self.kl:
            raise ValueError("loss: ce and kl are both 0; at least one counts")


@dataclass
class BlspConfig(ListeningConfig):
    """One stage of BLSP: kind text tunes the LLM on text instructions, ctc teaches the adapter to hear words, without
    the LLM, and speech teaches it what the LLM needs to respond."""

    kind: str = "speech"
    """text, ctc, or speech."""
    adapter: AdapterShape = field(default_factory=AdapterShape)
    """Shape of the adapter."""
    norm_gain: float | None = None
    """What the gain of the adapter's norm starts at; the default is the deviation of the LLM's word embeddings. The
    published code starts at 1."""
    template: Literal["blsp", "chat"] = "blsp"
    """How turns are written: blsp as the published code, chat as the tokenizer's chat template."""
    text_form: Literal["published", "both"] = "published"
    """For kind text with the template blsp: published writes a question as one text, as the published stage 1 does;
    both also learns it in pieces, as chats and spoken questions are written. A small LLM needs both."""
    instructions: dict[str, str] = field(default_factory=lambda: dict(INSTRUCTIONS))
    """What stands before speech, by what the model is asked for: answer, transcribe. `continue` is for labels that name
    no instruction."""
    loss: LossWeights = field(default_factory=LossWeights)
    """Parts of the loss, for kind speech."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"{self.stage}: kind is {self.kind!r}; a stage of BLSP is text, ctc or speech")
        check_range("norm_gain", self.norm_gain, 0, exclusive=True)
        if self.kind != "text" and self.lora:
            raise ValueError(f"lora is for kind: text; kind {self.kind} trains parts, such as trainable: [adapter]")
        if self.kind == "ctc" and self.trainable != ["adapter"]:
            raise ValueError(f"trainable is {self.trainable}; kind ctc runs no LLM, so it is [adapter]")
        if self.widen is not None:
            raise ValueError("BLSP has no units: leave widen out")
        self.instructions = {**INSTRUCTIONS, **self.instructions}

    @property
    def has_teacher(self) -> bool:
        """Whether documents also hold their transcripts, for the loss kl."""
        return self.kind == "speech" and self.loss.kl > 0

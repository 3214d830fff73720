"""Settings of a LLaMA-Omni stage: those of every stage, and how speech reaches the LLM and leaves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stages.config import Lora
from units.runtime.command import check_range
from variants.llama_omni.network.shapes import AdaptorShape, DecoderShape
from variants.speech_in.config import ListeningConfig

KINDS = ("hearing", "listening", "speaking")
INSTRUCTIONS: Mapping[str, str] = {
    "answer": "Please directly answer the questions in the user's speech.",  # the published one
    "transcribe": "Please repeat the user's words.",
    "say": "Please read this text aloud:",
}


@dataclass
class OmniConfig(ListeningConfig):
    """One stage of LLaMA-Omni: kind hearing teaches the adaptor words, without the LLM, listening tunes adaptor and LLM
    on text answers, and speaking the speech decoder on their units."""

    kind: str = "listening"
    """hearing, listening, or speaking."""
    adaptor: AdaptorShape = field(default_factory=AdaptorShape)
    """Shape of the adaptor."""
    adaptor_scale: float | None = None
    """Multiplies the adaptor's last layer as it is initialised; by default so that speech is as loud as the LLM's word
    embeddings. The published code has 1."""
    template: Literal["llama_3", "chat", "plain"] = "llama_3"
    """How turns are written: llama_3 as the published code, chat as the tokenizer's chat template, plain for an LLM
    that knows no turns."""
    instructions: dict[str, str] = field(default_factory=lambda: dict(INSTRUCTIONS))
    """What stands beside speech or text, by what the model is asked for: answer, transcribe, say."""
    questions: Literal["spoken", "written"] = "spoken"
    """For kind speaking: written replaces spoken questions by their transcripts, where these are known. The decoder
    then learns from answers to text, and no recording has to be encoded."""
    transcripts: bool = False
    """Also learn to write down spoken questions, where their transcripts are known: an answer names few of the words
    that were heard, so a small model learns to listen several times faster."""
    through_text: bool = False
    """The finished model answers what it wrote down of a spoken question, instead of the recording: it transcribes, and
    then answers as if that had been written. The first sound comes some tokens later. For a small LLM that knows facts
    of written questions and cannot yet recall them by ear; needs transcripts: true, or a model that can transcribe."""
    llm_lora: Lora | None = None
    """For kind listening: train low-rank adapters of the LLM, with trainable: [adaptor, lora]; they are merged into the
    LLM at the end."""
    decoder: DecoderShape = field(default_factory=DecoderShape)
    """For kind speaking: shape of the speech decoder."""
    codebook: str = "unit_encoder"
    """For kind speaking: the unit encoder whose units are spoken, or a vocoder of these units; a folder of the run."""
    vocoder: str | None = "vocoder"
    """For kind speaking: the vocoder that the finished model speaks with, a folder of the run; null for none yet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"{self.stage}: kind is {self.kind!r}; a stage of LLaMA-Omni is {', '.join(KINDS)}")
        check_range("adaptor_scale", self.adaptor_scale, 0, exclusive=True)
        if self.lora:
            raise ValueError("lora trains no adaptor: set llm_lora, and trainable: [adaptor, lora]")
        if self.kind == "hearing" and self.trainable != ["adaptor"]:
            raise ValueError(f"trainable is {self.trainable}; kind hearing runs no LLM, so it is [adaptor]")
        if self.widen is not None:
            raise ValueError("LLaMA-Omni has no units in its vocabulary: leave widen out")
        if self.questions == "written" and self.kind != "speaking":
            raise ValueError("questions: written teaches nobody to listen; it is for kind: speaking")
        learns_lora = isinstance(self.trainable, list) and "lora" in self.trainable
        if bool(self.llm_lora) != learns_lora:
            raise ValueError("llm_lora and trainable: [adaptor, lora] belong together")
        if self.llm_lora and self.kind != "listening":
            raise ValueError(f"llm_lora is for kind: listening; kind {self.kind} trains no LLM")
        if self.llm_lora and self.llm_lora.bits < 16:
            raise ValueError("llm_lora: bits: the LLM is merged at the end, and needs 16")
        self.instructions = {**INSTRUCTIONS, **self.instructions}

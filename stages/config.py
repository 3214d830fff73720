"""What a stage is told. Each field's docstring is its help: `python -m stages.train --help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechgpt.widen import Initialisation


@dataclass
class Source:
    """One set of training documents."""

    path: str
    """A conversation set (.jsonl, .jsonl.gz), a unit set (folder), or plain text, one document a line (.txt);
    relative to the run folder."""
    weight: float = 1.0
    """How often its documents come, relative to their number: 2 shows each twice as often."""
    tasks: list[str] | None = None
    """Take only these tasks of a conversation set."""
    hold_out: bool = True
    """Hold out some of its documents to watch the loss on; false where each document is knowledge of its own."""


@dataclass
class Widening:
    """How a text LLM gets its units."""

    encoder: str
    """Unit encoder folder, relative to the run folder; its codebook says how many units there are."""
    init: Initialisation = "mean"
    """How new embedding rows start: random, mean, or centres."""


@dataclass
class Lora:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685); the defaults are SpeechGPT's third stage."""

    r: int = 8
    """Rank."""
    alpha: int = 16
    """Scale."""
    dropout: float = 0.05
    """Dropout on the adapters' input."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Modules that get an adapter."""


@dataclass
class StageConfig:
    """One stage of training. A stage's file states only what differs from these defaults."""

    stage: str
    """The stage's name: text, stage1, stage2 or stage3."""
    model: str
    """Where it starts: a checkpoint folder relative to the run folder, or a hub id."""
    out: str
    """Where it ends, relative to the run folder."""
    data: list[Source]
    """What it learns from."""
    run: Path = Path("runs/toy")
    """The run folder."""
    widen: Widening | None = None
    """Widen the vocabulary first; for stage 1, which starts from a text LLM."""
    block_size: int = 1024
    """Tokens of a packed block."""
    too_long: Literal["skip", "cut"] = "skip"
    """What becomes of documents longer than a block; either way they are counted."""
    train_on_prompt: bool = False
    """Let the loss cover the human's turns too, as upstream did."""
    unit_loss_weight: float = 1.0
    """Weight of unit tokens in the loss, beside 1 for text. A reply has ten times more units than words, and much of a
    unit cannot be foreseen: below 1, hearing is learned sooner."""
    dev_documents: int = 200
    """Documents, chosen by hash of their content, that are held out to watch the loss on, shared among the sources."""
    lora: Lora | None = None
    """Train low-rank adapters only, merged into the model at the end."""
    prefix: str = ""
    """System text at the start of every conversation."""
    seed: int = 0
    """Seeds order and new embedding rows."""
    training: dict[str, Any] = field(default_factory=dict)
    """Any argument of transformers.TrainingArguments, such as max_steps, learning_rate, deepspeed."""

    def __post_init__(self) -> None:
        reserved = {"output_dir", "seed", "data_seed", "remove_unused_columns"} & self.training.keys()
        if reserved:
            raise ValueError(f"training: {sorted(reserved)} are set by the stage itself; use out and seed")
        if not self.unit_loss_weight > 0:
            raise ValueError(f"unit_loss_weight is {self.unit_loss_weight}; it must be above 0")
        if not self.training.get("max_steps", 0) > 0:
            raise ValueError("training: max_steps must be set, and above 0: a stage is a number of steps")

    def at(self, path: str) -> Path:
        """A path of the config, seen from the run folder; absolute paths stay, and so do hub ids with no such folder."""
        return self.run / path

"""What a stage is told. Each field's docstring is its help: `python -m stages.train --help`."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechgpt.widen import Initialisation

KEPT = "save_total_limit"  # how many checkpoints stay
# What the stage decides itself, and the field that says it.
RESERVED = {"output_dir": "out", "seed": "seed", "data_seed": "seed", "remove_unused_columns": "nothing"}


@dataclass
class Interleaving:
    """Utterances that are spoken here and written there, changing at word boundaries (Spirit LM, arXiv 2402.05755)."""

    alignments: str
    """Which word is said when: a .tsv of id, start, end, label, or a folder of TextGrids; relative to the run folder."""
    tier: str = "words"
    """Tier of the TextGrids that holds the words."""
    span: float = 10.0
    """Words of a part, on average over written and spoken ones."""
    text_share: float = 0.3
    """Share of the words that are written."""

    def __post_init__(self) -> None:
        if not self.span >= 1:
            raise ValueError(f"interleave: span is {self.span}; a part has at least 1 word")
        if not 0 < self.text_share < 1:
            raise ValueError(f"interleave: text_share is {self.text_share}; it lies between 0 and 1")


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
    interleave: Interleaving | None = None
    """For a unit set with word alignments: write some of each utterance's words. Utterances without one stay units."""
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
    bits: Literal[4, 8, 16] = 16
    """Bits of the frozen weights while adapters train; 4 and 8 need bitsandbytes, and no DeepSpeed."""
    merge: bool = True
    """End with a plain model, the adapter added in, and the adapter beside it in `adapter/`; false: the adapter alone."""


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
    batch: int | None = None
    """Blocks of a step over all processes; the accumulation that it takes is worked out, so any number of GPUs trains
    the same. Without it, a step is what `training` says, times the processes."""
    too_long: Literal["skip", "cut", "split"] = "skip"
    """What becomes of documents longer than a block: left out, cut to a block, or split into blocks. All are counted."""
    train_on_prompt: bool = False
    """Let the loss cover the human's turns too, as upstream did."""
    unit_loss_weight: float = 1.0
    """Weight of unit tokens in the loss, beside 1 for text. A reply has ten times more units than words, and much of a
    unit cannot be foreseen: below 1, hearing is learned sooner."""
    unit_noise: float = 0.0
    """Share of the units in prompts that are replaced by any others, drawn anew for each block, so that hearing does not
    hang on single units: a voice never heard before gives others. Held-out documents stay as they are."""
    dev_documents: int = 200
    """Documents, chosen by hash of their content, that are held out to watch the loss on, shared among the sources."""
    trainable: Literal["all", "embeddings", "embeddings_then_all"] = "all"
    """Which weights learn: all, the embedding rows, or first those and after `embeddings_steps` all."""
    embeddings_steps: int = 0
    """For embeddings_then_all: steps at the start in which only the embedding rows move."""
    lora: Lora | None = None
    """Train low-rank adapters only; they are merged into the model at the end, unless told otherwise."""
    attention: Literal[
        "auto", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "varlen", "flex_attention",
        "by_document", "eager",
    ] = "auto"  # fmt: skip
    """How attention is computed. auto is, on a GPU, flash-attention 2 where it is installed, else sdpa; on a CPU
    by_document, which is stages/attention.py, for models that it fits. varlen is flash-attention as torch itself has it,
    for GPUs from Ampere on in half precision: nothing to install, but not yet tried on a GPU."""
    fused_loss: Literal["auto", "always", "never"] = "auto"
    """The loss without whole logits in memory (liger-kernel); auto where it is installed, there is a GPU, and units
    weigh as much as text."""
    samples: int = 2
    """Held-out conversations whose replies the model writes at each look, into samples.jsonl."""
    prefix: str = ""
    """System text at the start of every conversation."""
    seed: int = 0
    """Seeds order and new embedding rows."""
    training: dict[str, Any] = field(default_factory=dict)
    """Any argument of transformers.TrainingArguments, such as max_steps, learning_rate, deepspeed. null is as if it were
    not there, but for save_total_limit, where it keeps all checkpoints."""

    def __post_init__(self) -> None:
        for name in RESERVED.keys() & self.training.keys():
            raise ValueError(f"training: {name} is set by the stage itself; use {RESERVED[name]}")
        known = _training_names()
        for name in self.training.keys() - known:
            raise ValueError(f"training: {name} is no argument of transformers.TrainingArguments{nearest(name, known)}")
        given = {name: value for name, value in self.training.items() if value is not None or name == KEPT}
        self.training = given
        if not given.get("max_steps", 0) > 0:
            raise ValueError("training: max_steps must be set, and above 0: a stage is a number of steps")
        if (kept := given.get(KEPT)) is not None and kept < 2:
            raise ValueError(
                f"training: save_total_limit is {kept}; keep at least 2 checkpoints, one to fall back on while the other "
                "is written, or null for all"
            )
        if not 0 <= self.unit_noise < 1:
            raise ValueError(f"unit_noise is {self.unit_noise}; it is a share, from 0 to below 1")
        if self.unit_noise and self.train_on_prompt:
            raise ValueError(
                "unit_noise changes what is heard, and train_on_prompt learns to say it; leave one of them out"
            )
        if not self.unit_loss_weight > 0:
            raise ValueError(f"unit_loss_weight is {self.unit_loss_weight}; it must be above 0")
        if self.fused_loss == "always" and self.unit_loss_weight != 1:
            raise ValueError(
                "fused_loss: always knows one weight for all tokens; set unit_loss_weight: 1, or fused_loss: never"
            )
        if (self.trainable == "embeddings_then_all") != (self.embeddings_steps > 0):
            raise ValueError("trainable: embeddings_then_all and embeddings_steps above 0 belong together")
        if self.lora and self.trainable != "all":
            raise ValueError(f"lora trains adapters only; it does not go with trainable: {self.trainable}")
        if self.lora and self.lora.bits < 16 and self.training.get("deepspeed"):
            raise ValueError(f"lora: bits: {self.lora.bits} does not go with deepspeed; leave one of them out")
        if self.batch is not None and "gradient_accumulation_steps" in self.training:
            raise ValueError("batch decides the accumulation; leave gradient_accumulation_steps out of training")

    def at(self, path: str) -> Path:
        """A path of the config, seen from the run folder; absolute paths stay, and so do hub ids with no such folder."""
        return self.run / path

    def accumulation(self, processes: int) -> int:
        """Forward passes of a step on each process.

        Raises: ValueError if the batch is not a whole number of passes, naming what would be.
        """
        if self.batch is None:
            return self.training.get("gradient_accumulation_steps", 1)
        each = self.training.get("per_device_train_batch_size", 8)
        if self.batch % (each * processes):
            fits = [n for n in range(1, each + 1) if self.batch % (n * processes) == 0]
            advice = (
                f"set training.per_device_train_batch_size to {' or '.join(map(str, fits))}"
                if fits
                else f"the number of processes must divide {self.batch}; {self.sharing(processes) or 1} would"
            )
            raise ValueError(
                f"batch {self.batch} is not a whole number of passes of {each} blocks on {processes} processes; {advice}"
            )
        return self.batch // (each * processes)

    def sharing(self, processes: int) -> int:
        """So many processes if they can share the batch, by any number of blocks a pass; else the most of them that can by
        the number that the config says, 0 if not even one."""
        if self.batch is None or self.batch % processes == 0:
            return processes
        each = self.training.get("per_device_train_batch_size", 8)
        return max((n for n in range(1, processes + 1) if self.batch % (each * n) == 0), default=0)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing if no known name looks like it."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_names(given: Any, kind: Any, where: str = "") -> Iterator[str]:
    """What is wrong with the names of a config as it was read from yaml, each with the nearest name that exists."""
    kind = _dataclass_in(kind)
    if kind is None:
        return
    known = typing.get_type_hints(kind)
    for entry in given if isinstance(given, list) else [given]:
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if name in known:
                yield from unknown_names(value, known[name], f"{where}{name}.")
            else:
                yield f"{where}{name} is not a setting{nearest(name, known)}"


def _dataclass_in(kind: Any) -> Any:
    """The dataclass in a type such as `list[Source]` or `Lora | None`; None if there is none."""
    if dataclasses.is_dataclass(kind):
        return kind
    return next((found for part in typing.get_args(kind) if (found := _dataclass_in(part))), None)


def _training_names() -> set[str]:
    from transformers import TrainingArguments

    return {field.name for field in dataclasses.fields(TrainingArguments)}

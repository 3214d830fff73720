"""Settings of a stage. The docstring under each field is its help text: `python -m stages.train --help`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechgpt.interleaving import InterleavedReplies
from units.runtime.command import check_range
from units.runtime.settings import check_type, check_types, type_hints

KEPT = "save_total_limit"  # the training argument for how many checkpoints stay
# Training arguments that the stage sets itself, and the field of StageConfig to use instead.
RESERVED = {"output_dir": "out", "seed": "seed", "data_seed": "seed", "remove_unused_columns": "nothing"}
NOISES = ("unit_noise", "reply_noise")  # shares of units that are replaced
MOST_THREADS = 1024
MOST_SEED = 2**32 - 1  # numpy's
# Numbers in `training`: the least, whether it must be above that, and whether it is whole.
TRAINING_NUMBERS: dict[str, tuple[float, bool, bool]] = {
    "max_steps": (1, False, True),
    "per_device_train_batch_size": (1, False, True),
    "per_device_eval_batch_size": (1, False, True),
    "gradient_accumulation_steps": (1, False, True),
    "dataloader_num_workers": (0, False, True),
    "learning_rate": (0, False, False),
    "weight_decay": (0, False, False),
    "warmup_steps": (0, False, False),  # below 1 it is a share of the steps, here and in the next three
    "logging_steps": (0, True, False),
    "save_steps": (0, True, False),
    "eval_steps": (0, True, False),
    "max_grad_norm": (0, False, False),
    "adam_epsilon": (0, True, False),
    "adam_beta1": (0, False, False),
    "adam_beta2": (0, False, False),
}
# Kinds of stages that were written by release 0.1.0, which had names only.
KIND_OF_NAME = {"text": "text", "stage1": "units", "stage2": "cross_modal", "stage3": "chain", "stage4": "preference"}


def check_number(
    name: str, value: Any, least: float, most: float = math.inf, above: bool = False, whole: bool = False
) -> None:
    """Check a number of a config.

    Args:
        name: of the field. least, most: the range. above: `least` itself is not in it. whole: it must be an int.

    Raises: ValueError with the name, the value and what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        kind = "whole number" if whole else "number"
        raise ValueError(f"--{name.replace('_', '-')} is {repr(value)[:60]}; it must be a {kind}")
    check_range(name, value, least, most, exclusive=above)


@dataclass
class Interleaving:
    """Utterances that alternate between units and text at word boundaries (Spirit LM, arXiv 2402.05755)."""

    alignments: str
    """Word alignments: a .tsv of id, start, end, label, or a folder of TextGrids; relative to the run folder."""
    tier: str = "words"
    """Tier of the TextGrids that holds the words."""
    span: float = 10.0
    """Mean number of words in a part, over written and spoken parts."""
    text_share: float = 0.3
    """Share of the words that are written as text."""

    def __post_init__(self) -> None:
        check_types(self, "interleave.")
        check_number("interleave.span", self.span, 1)
        check_number("interleave.text_share", self.text_share, 0, 1, above=True)
        if self.text_share == 1:
            raise ValueError(f"--interleave.text-share is {self.text_share}; it must be below 1")


@dataclass
class Source:
    """One set of training documents."""

    path: str
    """A conversation set or a preference set (.jsonl, .jsonl.gz), a unit set (folder), or plain text, one document a
    line (.txt); relative to the run folder."""
    weight: float = 1.0
    """How often its documents are drawn, relative to their number: 2 draws each twice as often."""
    tasks: list[str] | None = None
    """Use only these tasks of a conversation set."""
    interleave: Interleaving | None = None
    """For a unit set with word alignments: write some words of each utterance as text. Utterances without alignments
    stay units."""
    hold_out: bool = True
    """Hold out some of its documents for evaluation; false where each document is a fact to be learned."""

    def __post_init__(self) -> None:
        check_types(self, "data.")
        check_number("data.weight", self.weight, 0, above=True)


@dataclass
class Widening:
    """How units are added to the vocabulary of a text LLM."""

    encoder: str
    """Unit encoder folder, relative to the run folder; its codebook gives the number of units."""
    init: Literal["random", "mean", "centres"] = "mean"
    """How new embedding rows are initialised: random (small, around 0), mean (around the mean of the old rows), or
    centres (the k-means centres, projected, around that mean)."""
    scale: float | None = None
    """Standard deviation of the new rows around their place, as a multiple of the old rows' own. Default: the model's
    initializer_range for random, next to none for mean, 1 for centres."""

    def __post_init__(self) -> None:
        check_types(self, "widen.")
        if self.scale is not None:
            check_number("widen.scale", self.scale, 0)


@dataclass
class Lora:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685); the defaults are those of SpeechGPT's third stage."""

    r: int = 8
    """Rank."""
    alpha: int = 16
    """Scale."""
    dropout: float = 0.05
    """Dropout on the adapters' input."""
    targets: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])
    """Modules that get an adapter."""
    bits: Literal[4, 8, 16] = 16
    """Bits of the frozen weights while adapters train; 4 and 8 need bitsandbytes, and do not go with DeepSpeed."""
    merge: bool = True
    """Merge the adapter into the model at the end, and also save it in `adapter/`; false saves the adapter alone."""

    def __post_init__(self) -> None:
        check_types(self, "lora.")
        check_number("lora.r", self.r, 1, whole=True)
        check_number("lora.alpha", self.alpha, 0, above=True)
        check_number("lora.dropout", self.dropout, 0, 1)
        if self.dropout == 1:
            raise ValueError(f"--lora.dropout is {self.dropout}; it must be below 1, or the adapters learn nothing")
        if isinstance(self.bits, bool) or self.bits not in (4, 8, 16):
            raise ValueError(f"--lora.bits is {self.bits!r}; it must be 4, 8 or 16")


@dataclass
class Rows:
    """How the embedding rows learn, beside the other weights (docs/decisions/widening.md)."""

    rate: float = 1.0
    """Learning rate of the embedding rows, in that of the other weights. New rows begin far from where they belong, the
    weights of a trained LLM near it."""
    words: Literal["learn", "keep"] = "learn"
    """keep leaves the rows of words as they are; those of units and of the other tokens that widening added learn."""

    def __post_init__(self) -> None:
        check_types(self, "rows.")
        check_number("rows.rate", self.rate, 0, above=True)
        if self.words not in ("learn", "keep"):
            raise ValueError(f"--rows.words is {self.words!r}; it must be learn or keep")


@dataclass
class Preference:
    """How a stage of kind preference learns from pairs of replies (stages/unit_system/preference_loss.py)."""

    loss: Literal["dpo", "dpo_norm", "ipo"] = "dpo"
    """dpo, direct preference optimisation; dpo_norm, the same of means over tokens; or ipo."""
    beta: float = 0.1
    """How closely the model keeps to the one that it starts from: the larger, the closer."""
    sft: float = 0.0
    """Weight of an added term: minus the mean log-likelihood of the chosen reply's tokens (Pang et al. 2024, arXiv
    2404.19733). It is the whole loss of data that are no pairs, such as conversations of earlier stages."""

    def __post_init__(self) -> None:
        check_types(self, "preference.")
        check_number("preference.beta", self.beta, 0, above=True)
        check_number("preference.sft", self.sft, 0)
        if self.loss not in ("dpo", "dpo_norm", "ipo"):
            raise ValueError(f"--preference.loss is {self.loss!r}; it must be dpo, dpo_norm or ipo")


@dataclass
class StageConfig:
    """One stage of training. A stage's file states only what differs from these defaults."""

    stage: str
    """Name of the stage, for messages and for the folder's facts."""
    model: str
    """Model to start from: a checkpoint folder relative to the run folder, or a hub id."""
    out: str
    """Folder of the finished model, relative to the run folder."""
    data: list[Source]
    """Training documents."""
    kind: str = ""
    """Kind of the stage, a word that its system defines. For SpeechGPT: text (a text LLM without units), units (unit
    pre-training), cross_modal or chain (instruction tuning), or preference (of two replies the better one). It decides
    whether the start has units, and what the finished model is said to be capable of. Default: by the names text,
    stage1, stage2, stage3 and stage4; chain for other names."""
    run: Path = Path("runs/toy")
    """Run folder."""
    widen: Widening | None = None
    """Add units to the vocabulary first; for the stage that starts from a text LLM."""
    block_size: int = 1024
    """Tokens of a packed block."""
    batch: int | None = None
    """Blocks of a step over all processes. The accumulation follows from it, so any number of GPUs trains the same.
    Without it, a step has the blocks that `training` gives, times the number of processes."""
    too_long: Literal["skip", "cut", "split"] = "skip"
    """Documents longer than a block are left out, cut to a block, or split into blocks. All are counted."""
    train_on_prompt: bool = False
    """Compute the loss on the human's turns too, as upstream did."""
    unit_loss_weight: float = 1.0
    """Weight of unit tokens in the loss; text tokens weigh 1. A reply has ten times more units than words, and units
    are harder to predict: with a weight below 1 the model learns speech recognition sooner."""
    unit_noise: float = 0.0
    """Share of the units in prompts that are replaced by random units, drawn anew for each block, so that recognition
    does not depend on single units: a new speaker gives other units. Held-out documents are not changed."""
    reply_noise: float = 0.0
    """Share of the units in replies (of all units that the loss counts) that are replaced so where the model reads them
    back; it learns the true ones all the same. What it says next then depends on the text more, and less on the units
    before (word dropout: Bowman et al. 2016, arXiv 1511.06349, section 3.1)."""
    dev_documents: int = 200
    """Documents that are held out for evaluation, chosen by a hash of their content and shared among the sources."""
    trainable: Literal["all", "embeddings", "embeddings_then_all"] | list[str] = "all"
    """Which weights learn: all, the embedding rows, first those and after `embeddings_steps` all, or a list of parts
    that the system names, such as [adapter]. All other weights are frozen."""
    embeddings_steps: int = 0
    """For embeddings_then_all: steps at the start in which only the embedding rows learn."""
    rows: Rows = field(default_factory=Rows)
    """How the embedding rows learn, beside the other weights."""
    lora: Lora | None = None
    """Train low-rank adapters only."""
    preference: Preference | None = None
    """For kind preference: how it learns from pairs of replies. Without it the defaults hold."""
    attention: Literal[
        "auto",
        "sdpa",
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
        "varlen",
        "flex_attention",
        "by_document",
        "eager",
    ] = "auto"
    """How attention is computed. Before the first step it is compared with the model's own, eager, by scores and
    gradients. auto is, on a GPU, flash-attention 2 where it is installed, else sdpa; on a CPU by_document
    (stages/packing/attention.py); and where that is not right for the model, sdpa, eager, or a mask. varlen is torch's
    own flash-attention, for GPUs from Ampere on in half precision: it needs no package, but has not been tried on a GPU
    yet."""
    fused_loss: Literal["auto", "always", "never"] = "auto"
    """Compute the loss without all logits in memory (liger-kernel). auto: where it is installed, there is a GPU, and
    units weigh as much as text."""
    samples: int = 2
    """Held-out documents that the model continues at each evaluation, written to samples.jsonl."""
    prefix: str = ""
    """System text at the start of every conversation."""
    interleave_replies: InterleavedReplies | None = None
    """Write replies of text and units by turns: so many text tokens, then so many units, and so on, so that the sound
    begins before the text ends. The conversation sets stay as they are, and the finished model asks for such replies.
    Default: all text comes first."""
    threads: int | Literal["auto"] = 0
    """CPU threads of each training process; 0 leaves the number to torch. auto times a few steps on one thread and on
    all, and goes on with the faster number, again every hundred steps: for a small model, beside other work
    (docs/decisions/threads.md)."""
    local_steps: int = 1
    """Steps that each of several processes learns alone before all of them average weights and the optimizer's moments
    (local SGD); with 1 they average gradients in every step. For small models on the cores of one machine
    (docs/decisions/local-steps.md)."""
    seed: int = 0
    """Seed of the order of documents and of new weights."""
    training: dict[str, Any] = field(default_factory=dict)
    """Any argument of transformers.TrainingArguments, such as max_steps, learning_rate, deepspeed. null is the same as
    leaving it out, except for save_total_limit, where it keeps all checkpoints."""

    def __post_init__(self) -> None:
        check_types(self)
        self.kind = self.kind or KIND_OF_NAME.get(self.stage, "chain")
        self._check_numbers()
        self._check_training()
        self._check_loss()
        self._check_interleaved()
        self._check_trainable()

    def _check_numbers(self) -> None:
        if self.threads != "auto":
            check_number("threads", self.threads, 0, MOST_THREADS, whole=True)
        check_number("seed", self.seed, 0, MOST_SEED, whole=True)
        check_number("local_steps", self.local_steps, 1, whole=True)
        check_number("block_size", self.block_size, 2, whole=True)  # a block of 1 token has no next one
        for name in ("dev_documents", "samples", "embeddings_steps"):
            check_number(name, getattr(self, name), 0, whole=True)
        if self.batch is not None:
            check_number("batch", self.batch, 1, whole=True)
        check_number("unit_loss_weight", self.unit_loss_weight, 0, above=True)
        for name in NOISES:
            check_number(name, getattr(self, name), 0, 1)

    def _check_training(self) -> None:
        for name in RESERVED.keys() & self.training.keys():
            raise ValueError(f"training: {name} is set by the stage; use {RESERVED[name]}")
        known = _training_types()
        for name in self.training.keys() - known.keys():
            raise ValueError(f"training: {name} is no argument of transformers.TrainingArguments{nearest(name, known)}")
        given = {name: value for name, value in self.training.items() if value is not None or name == KEPT}
        self.training = given
        if "max_steps" not in given:
            raise ValueError("training: max_steps must be set, and above 0")
        for name, (least, above, whole) in TRAINING_NUMBERS.items():
            if name in given:
                most = 1 if name.startswith("adam_beta") else math.inf
                check_number(f"training.{name}", given[name], least, most, above, whole)
        for name, value in given.items():
            if value is not None:
                check_type(f"training.{name}", value, known[name])
        if given.get(KEPT) is not None:  # one to fall back on while the other is written; null for all
            check_number(f"training.{KEPT}", given[KEPT], 2, whole=True)
        for name in ("deepspeed", "fsdp"):
            if self.local_steps > 1 and given.get(name):
                raise ValueError(
                    f"local_steps {self.local_steps} averages whole weights, and training.{name} divides them among "
                    "the processes; leave one of them out"
                )
        if self.batch is not None and "gradient_accumulation_steps" in self.training:
            raise ValueError("batch decides the accumulation; leave gradient_accumulation_steps out of training")

    def _check_loss(self) -> None:
        for name in NOISES:
            if getattr(self, name) == 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be below 1: it is a share of the units")
        if self.unit_noise and self.train_on_prompt:
            raise ValueError(
                "unit_noise changes the units of prompts, and train_on_prompt learns to predict them; leave one of "
                "them out"
            )
        if self.preference and self.kind != "preference":
            raise ValueError(f"preference is for kind: preference; {self.stage} is of kind {self.kind}")
        changed = self.unit_noise or self.reply_noise or self.train_on_prompt or self.unit_loss_weight != 1
        if self.kind == "preference" and changed:
            raise ValueError(
                "unit_noise, reply_noise, train_on_prompt and unit_loss_weight are not for kind: preference, whose "
                "loss is of whole replies; leave them out"
            )
        if self.fused_loss == "always" and not self.weighs_all_tokens_alike:
            raise ValueError(
                "fused_loss: always has one weight for all tokens; set unit_loss_weight: 1, or fused_loss: never"
            )

    def _check_interleaved(self) -> None:
        if self.interleave_replies is not None and self.kind != "chain":
            raise ValueError(
                f"{self.stage}: interleave_replies is for kind: chain, whose replies are text and units, and this is "
                f"of kind {self.kind}; leave it out"
            )

    def _check_trainable(self) -> None:
        if (self.trainable == "embeddings_then_all") != (self.embeddings_steps > 0):
            raise ValueError("trainable: embeddings_then_all and embeddings_steps above 0 belong together")
        if isinstance(self.trainable, list) and not self.trainable:
            raise ValueError("trainable is an empty list; name at least one part, or set trainable: all")
        if self.rows != Rows() and (self.lora or isinstance(self.trainable, list)):
            raise ValueError("rows is for stages whose embedding rows learn; leave it out with lora or a list of parts")
        if self.lora and self.trainable != "all":
            raise ValueError(f"lora trains adapters only; it does not go with trainable: {self.trainable}")
        if self.lora and self.lora.bits < 16 and self.training.get("deepspeed"):
            raise ValueError(f"lora: bits: {self.lora.bits} does not go with deepspeed; leave one of them out")

    @property
    def weighs_all_tokens_alike(self) -> bool:
        """Whether the loss is a plain mean over tokens, which a fused kernel computes."""
        return self.unit_loss_weight == 1

    def at(self, path: str) -> Path:
        """A path of the config, relative to the run folder; absolute paths are not changed."""
        return self.run / path

    def accumulation(self, processes: int) -> int:
        """Forward passes of a step on each process.

        Raises: ValueError if the batch is not a whole number of passes; the message lists what would be.
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
                f"batch {self.batch} is not a whole number of passes of {each} blocks on {processes} processes; "
                f"{advice}"
            )
        return self.batch // (each * processes)

    def sharing(self, processes: int) -> int:
        """The number of processes that can share the batch: all of them if their number divides it, else the largest
        number that divides it at the configured blocks a pass; 0 if there is none."""
        if self.batch is None or self.batch % processes == 0:
            return processes
        each = self.training.get("per_device_train_batch_size", 8)
        return max((n for n in range(1, processes + 1) if self.batch % (each * n) == 0), default=0)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing if no known name is close."""
    close = difflib.get_close_matches(name, sorted(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_names(given: Any, kind: Any, where: str = "") -> Iterator[str]:
    """One message for each unknown name of a config as it was read from yaml, with the nearest name that exists."""
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


def _training_types() -> dict[str, Any]:
    """The arguments of transformers.TrainingArguments and their types."""
    from transformers import TrainingArguments

    hints = type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in dataclasses.fields(TrainingArguments)}

"""The seam for systems: what the trainer needs from a way for speech to go into and out of an LLM.

A system opens the model that a stage starts from, turns records into token rows, batches them, computes the loss, and
saves the finished model. Packing, resume, checkpoints, logs, sharding and the plan are common to all systems, and name
none. SpeechGPT, with units in the vocabulary, is stages/unit_system.

    from stages.train import train
    train(config, system=MY_SYSTEM)      # MY_SYSTEM: a System; its `open` returns an Opened

B blocks of a batch, L tokens of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from speechgpt.checkpoint import CheckpointFacts
from speechgpt.language_models.adapters import open_language_model
from stages.config import Source, StageConfig
from stages.planning.size import Size

Block = dict[str, Tensor]
Collator = Callable[[list[Block]], dict[str, Any]]
Augmentation = Callable[[dict[str, np.ndarray], np.random.Generator], None]


@dataclass(frozen=True)
class Column:
    """A side column: any number of rows for each document, such as speech features or target units.

    values (n, ...): the rows of all documents, end to end. counts (documents,): how many each document has.
    identifies: whether the rows are part of the hash by which documents are held out; false for rows that are
    kept in one way or another, such as states or the file that they come from.
    """

    values: np.ndarray
    counts: np.ndarray
    identifies: bool = True


@dataclass(frozen=True)
class Documents:
    """Some documents of one task, end to end.

    ids: token ids. train: for each, whether the loss counts it. lengths: tokens of each document. columns: side columns
    by name. A place that is held free for speech is a token, usually the padding token, that the loss does not count; a
    side column says where it lies in its document. So text can never become a place for speech.
    """

    task: str
    ids: np.ndarray
    train: np.ndarray
    lengths: np.ndarray
    columns: Mapping[str, Column] = field(default_factory=dict)


class Opened(ABC):
    """A system at the start of one stage: its settings, model and tokenizer.

    parts: named groups of weights for `trainable`, each as prefixes of parameter names.
    """

    parts: Mapping[str, tuple[str, ...]] = {"llm": ("",)}

    def __init__(self, config: StageConfig, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer

    @property
    def language_model(self) -> Any:
        """The causal LLM in the model. It must keep packed documents apart: the trainer checks that. None if the stage
        runs no LLM."""
        return self.model

    @property
    def added_tokens(self) -> Sequence[int] | None:
        """Ids of the tokens that the text LLM did not have, whose rows are new; None if there are none."""
        return None

    # --- documents

    @abstractmethod
    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        """The documents of one source.

        Args:
            path: the source's file or folder; it exists.

        Raises: ValueError if the source does not fit the model.
        """

    def files(self, source: Source, path: Path) -> list[Path]:
        """All files that decide a source's tokens.

        Raises: FileNotFoundError if one does not exist.
        """
        return [path]

    def cache_key(self, source: Source) -> list[Any]:
        """Settings and versions, as JSON, that decide a source's tokens, besides files and the text tokenizer.

        Raises: ValueError if the source can be seen not to fit the model.
        """
        return []

    # --- batches and loss

    def augmentation(self) -> Augmentation | None:
        """A function that changes the columns of a training block in place, by the random numbers that it is given."""
        return None

    @abstractmethod
    def collator(self) -> Collator:
        """The function that makes B blocks the batch that `loss` takes. It must be picklable, for worker processes."""

    def items(self, batch: dict[str, Any]) -> Tensor:
        """How many items of a batch the loss counts. The loss of a step is the sum over all of its passes and
        processes, divided by the sum of their items."""
        return batch["labels"].ne(-100).sum()

    @abstractmethod
    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """The summed loss of a batch, divided by the items of the whole step.

        Args:
            model: the trained model, which may be wrapped for several processes.
        """

    # --- evaluation

    @abstractmethod
    def report(self, model: Any, held_out: Any, chosen: Sequence[int]) -> dict[str, float]:
        """Figures for log.jsonl on some held-out blocks; names begin with `dev_`, or with `TASK/`.

        Args:
            held_out: stages.packing.blocks.PackedBlocks; not empty.
            chosen: numbers of those blocks.
        """

    def samples(self, model: Any, held_out: Any, count: int) -> list[dict[str, Any]]:
        """What the model replies to some held-out documents, for samples.jsonl."""
        return []

    # --- the finished model

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the finished model.

        Args:
            model: whole, not wrapped.
            state_dict: its weights, if they were gathered from several processes.
        """
        model.save_pretrained(folder, state_dict=state_dict)

    def load(self, folder: Path) -> Any:
        """Open the model that `save` wrote, from its files alone, as a user does; the inverse of `save`.

        A system that overrides one of the two overrides both.
        """
        return open_language_model(folder, final=self.config.at(self.config.out))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if (cls.save is Opened.save) != (cls.load is Opened.load):
            raise TypeError(f"{cls.__name__} overrides one of save and load; they are inverse, so override both")

    @abstractmethod
    def facts(self) -> CheckpointFacts | None:
        """The content of `speechgpt.json`, which is written last; None if the folder has none."""


class System(Protocol):
    """A way for speech to go into and out of an LLM, as stages.train trains it."""

    name: str
    """The name in `speechgpt.json`."""

    def completion_file(self, config: StageConfig) -> str:
        """The file of a finished model that is written last."""

    def open(self, config: StageConfig, **loading: Any) -> Opened:
        """Open the model that a stage starts from.

        Args:
            loading: for `from_pretrained` of the LLM: dtype, attention, quantization.

        Raises: FileNotFoundError or ValueError if it cannot be trained as the config says.
        """

    def size(self, config: StageConfig, file: Path | None) -> Size:
        """Parameters and widths of the model, for the plan, without loading it.

        Args:
            file: the config's own file, to find the stages before it.
        """

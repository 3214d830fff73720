"""A stage of SpeechGPT: what it does with its documents, its loss, and its finished model."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from speechgpt.checkpoint import CheckpointFacts
from speechgpt.interleaving import SETTING
from speechgpt.vocab import UnitVocab
from stages.config import Source, StageConfig
from stages.counted import counted_logits
from stages.held_out import held_out_report
from stages.packing.attention import takes_one_row
from stages.packing.blocks import IGNORED, PackedBlocks, flattened, stacked
from stages.system import Augmentation, Collator, Documents, Opened
from stages.unit_system.documents import DOCUMENTS_VERSION, check_codebook, documents
from stages.unit_system.interleave import INTERLEAVING_VERSION
from stages.unit_system.samples import sample_replies
from units.codebook import Codebook
from units.dataset.unit_set import COMPLETION_FILE, read_unit_set


class UnitOpened(Opened):
    """SpeechGPT at the start of a stage.

    codebook: of the model's units; vocab: which tokens they are. Both are None for a text LLM.
    """

    def __init__(
        self,
        config: StageConfig,
        model: PreTrainedModel | None,
        tokenizer: PreTrainedTokenizerBase,
        codebook: Codebook | None,
    ) -> None:
        super().__init__(config, model, tokenizer)
        self.codebook = codebook
        self.vocab = None if codebook is None else UnitVocab.from_words(tokenizer.get_vocab())

    @property
    def added_tokens(self) -> Sequence[int] | None:
        if self.vocab is None:
            return None
        first = self.vocab.first_unit_id
        return sorted({*range(first, first + self.vocab.size), *self.vocab.special_ids.values()})

    # --- documents

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        return documents(source, path, self.tokenizer, self.config, self.codebook)

    def files(self, source: Source, path: Path) -> list[Path]:
        found = [path]
        if path.is_dir():
            unit_set = read_unit_set(path)
            check_codebook(self.codebook, unit_set.codebook, path)
            found = [*sorted(path.glob("*.parquet")), path / COMPLETION_FILE]
        if source.interleave is None:
            return found
        if not path.is_dir():
            raise ValueError(f"{source.path}: interleave is for unit sets, which are folders; leave it out here")
        aligned = self.config.at(source.interleave.alignments)
        if not aligned.exists():
            raise FileNotFoundError(f"{aligned} does not exist; it is named as the alignments of {source.path}")
        parts = sorted(part for part in aligned.rglob("*") if part.is_file()) if aligned.is_dir() else [aligned]
        return found + parts

    def cache_key(self, source: Source) -> list[Any]:
        config, codebook = self.config, self.codebook
        key: list[Any] = [
            "speechgpt",
            DOCUMENTS_VERSION,
            config.prefix,
            config.train_on_prompt,
            codebook and codebook.fingerprint,
        ]
        if config.interleave_replies:  # absent otherwise, so that caches of chains stay valid
            key += [SETTING, config.interleave_replies.record()]
        if source.interleave:
            key += [INTERLEAVING_VERSION, dataclasses.asdict(source.interleave), config.seed]
        return key

    # --- batches and loss

    def augmentation(self) -> Augmentation | None:
        prompts, replies = self.config.unit_noise, self.config.reply_noise
        if self.vocab is None or not (prompts or replies):
            return None
        return functools.partial(unit_noise, vocab=self.vocab, prompts=prompts, replies=replies)

    def collator(self) -> Collator:
        return flattened if takes_one_row(self.model) else stacked

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """Cross-entropy; unit tokens weigh `unit_loss_weight`."""
        weight = 1.0 if self.vocab is None else self.config.unit_loss_weight
        if weight == 1 and getattr(self.model, "accepts_loss_kwargs", True):
            return model(**batch, num_items_in_batch=items).loss  # a fused kernel, where the stage uses one
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        logits, labels = counted_logits(model, {**inputs, "use_cache": False}, batch["labels"])
        return weighted_loss(self.vocab, weight, logits, labels, items)

    # --- evaluation

    def kinds(self, tokens: Tensor) -> dict[str, Tensor]:
        """Which tokens (n,) are units, and which are text."""
        is_unit = torch.zeros_like(tokens, dtype=torch.bool) if self.vocab is None else self.vocab.is_unit(tokens)
        return {"units": is_unit, "text": ~is_unit}

    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        return held_out_report(model, held_out, chosen, self.kinds)

    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        return sample_replies(model, held_out, self.tokenizer, self.vocab, count)

    # --- the finished model

    def facts(self) -> CheckpointFacts | None:
        if self.codebook is None or self.vocab is None:
            return None
        config = self.config
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        resolved = dataclasses.asdict(config)
        interleaving = config.interleave_replies
        return CheckpointFacts(
            self.codebook,
            config.stage,
            self.vocab.first_unit_id,
            config.prefix,
            resolved,
            versions,
            extra={} if interleaving is None else {SETTING: interleaving.record()},
        )


def unit_noise(
    columns: dict[str, np.ndarray], draw: np.random.Generator, vocab: UnitVocab, prompts: float, replies: float = 0.0
) -> None:
    """Replace a share of the units in prompts, and of those in replies, by random units, in place. Labels stay.

    Args:
        columns: of a block: input_ids and labels, int64 (L,).
    """
    tokens, learned = columns["input_ids"], columns["labels"] != IGNORED
    units = vocab.is_unit(tokens)
    for places, share in ((units & ~learned, prompts), (units & learned, replies)):
        some = np.flatnonzero(places)
        wrong = some[draw.random(len(some)) < share]
        tokens[wrong] = vocab.first_unit_id + draw.integers(vocab.size, size=len(wrong))


def weighted_loss(vocab: UnitVocab | None, unit_weight: float, logits: Tensor, labels: Tensor, items: Any) -> Tensor:
    """Cross-entropy in which a unit token weighs `unit_weight` and a text token 1, summed and divided by `items`.

    Args:
        vocab: which tokens are units; None if none are.
        logits: (n, V), of the counted tokens of a batch.
        labels: (n,), these tokens.
        items: the number of counted tokens of the whole step.
    """
    each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    if vocab is not None:
        each = each * torch.where(vocab.is_unit(labels), unit_weight, 1.0)
    return each.sum() / items

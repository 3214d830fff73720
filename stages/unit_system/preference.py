"""The stage of kind preference: of two replies to a prompt, the model learns to prefer the chosen one.

    python -m stages.train stages/configs/toy/stage4.yaml

A document is a pair: the prompt with the chosen reply, then the prompt with the rejected one. In a block each of the
two is a document of its own, with positions from 0, so neither attends to the other. The tokens with which both begin
are no part of the loss: they are equally likely, and would cancel. The reference model is the one that the stage starts
from. Its log-likelihoods are computed once, and cached with the tokens, so no second model is in memory.

Conversations, or other data of earlier stages, may stand beside the pairs, so that the model keeps what it has learned.
Such a document is a pair without a rejected reply: of the loss it has the term `sft` alone (Ouyang et al. 2022, arXiv
2203.02155, mix pre-training data in for the same reason).

B blocks of a batch, L tokens of a block, P documents of a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from instruct_data.build.preference_sets import Pair, read_preferences
from instruct_data.build.records import READABLE_FORMATS, format_of
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Conversation
from speechgpt.generation.generate import context_length, continuation
from speechgpt.generation.likelihood import Row, log_likelihoods
from speechgpt.inference import open_dialogue
from speechgpt.language_models.adapters import open_language_model
from speechgpt.vocab import UnitVocab
from stages.arguments import half_precision
from stages.config import Preference, Source, StageConfig
from stages.counted import counted_logits
from stages.evaluating import evaluating
from stages.held_out import sample_documents
from stages.packing.attention import any_length, takes_one_row
from stages.packing.blocks import IGNORED, PackedBlocks, flattened, on_device, stacked
from stages.system import Augmentation, Block, Collator, Column, Documents
from stages.unit_system.documents import check_codebook
from stages.unit_system.opened import UnitOpened
from stages.unit_system.preference_loss import preference_loss, sft_loss
from stages.unit_system.samples import SAMPLING
from units.codebook import Codebook
from units.runtime.provenance import fingerprint

PREFERENCES_VERSION = 1  # for caches of tokens: raise it when this file gives other tokens or likelihoods
REFERENCE_PAIRS = 256  # whose likelihoods are computed together


@dataclass(frozen=True)
class Sides:
    """Token ids of a pair: the prompt with each of its replies. common: how many tokens both begin with."""

    task: str
    chosen: list[int]
    rejected: list[int]
    common: int


class PreferenceOpened(UnitOpened):
    """SpeechGPT at the start of a stage of kind preference.

    start: folder of the model that it starts from, which is the reference.
    """

    codebook: Codebook
    vocab: UnitVocab

    def __init__(
        self,
        config: StageConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        codebook: Codebook,
        start: Path,
    ) -> None:
        super().__init__(config, model, tokenizer, codebook)
        self.start = start
        self.start_facts = CheckpointFacts.load(start)
        self.how = config.preference or Preference()
        self.dialogue = open_dialogue(tokenizer, self.start_facts, start)
        if "template" in self.start_facts.extra:
            raise ValueError(
                f"{start} has the published SpeechGPT's template; preferences are for stages of this package"
            )
        if config.prefix != self.dialogue.prefix:
            raise ValueError(
                f"prefix is {config.prefix!r}, and {start} was trained with {self.dialogue.prefix!r}; give the same one"
            )

    # --- documents

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        if not _holds_pairs(path):
            yield from map(_without_rejected, super().documents(source, path))
            return
        pairs = read_preferences(path)
        check_codebook(self.codebook, pairs.codebook, path)
        wanted = (pair for pair in pairs if source.tasks is None or pair.task in source.tasks)
        left_out: Counter[str] = Counter()
        sides = self._sides(wanted, left_out)
        with self._reference() as reference:
            while some := list(itertools.islice(sides, REFERENCE_PAIRS)):
                yield from self._documents(some, reference)
        if left_out:
            print(f"{source.path}: {left_out.total()} pairs left out: {dict(left_out)}", flush=True)

    def _sides(self, pairs: Iterable[Pair], left_out: Counter[str]) -> Iterator[Sides]:
        """The token ids of pairs. Counts those that cannot be used, by the reason."""
        context = context_length(self.model)
        for pair in pairs:
            chosen, rejected = self._ids(pair, pair.chosen), self._ids(pair, pair.rejected)
            if chosen == rejected:
                left_out["both replies have the same tokens"] += 1
            elif max(len(chosen), len(rejected)) > context:
                left_out[f"longer than the context of {context} tokens"] += 1
            else:
                yield Sides(pair.task, chosen, rejected, _common(chosen, rejected))

    def _documents(self, sides: list[Sides], reference: PreTrainedModel) -> Iterator[Documents]:
        """A document of each pair."""
        rows = [Row(ids[: one.common], ids[one.common :]) for one in sides for ids in (one.chosen, one.rejected)]
        with self._precision(reference.device):
            scores = [score.log_probability for score in log_likelihoods(reference, rows)]
        for one, score in zip(sides, zip(scores[::2], scores[1::2])):
            both = (one.chosen, one.rejected)
            columns = {
                "side": Column(np.array([0, len(one.chosen)], np.int64), np.array([2])),
                "reference": Column(np.array(score, np.float32), np.array([2]), identifies=False),
            }
            ids = np.concatenate(both).astype(np.int32)
            train = np.concatenate([np.arange(len(side)) >= one.common for side in both])
            yield Documents(one.task, ids, train, np.array([len(ids)]), columns)

    def _ids(self, pair: Pair, reply: Any) -> list[int]:
        """Token ids of the prompt with one of its replies."""
        if pair.messages:
            return self.dialogue.render(Conversation((*pair.messages, reply))).ids
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + self.dialogue.vocab.encode(reply.parts[0])

    @contextlib.contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        """The model that the stage starts from, before it learns, on the device that trains it."""
        from accelerate import PartialState
        from transformers.integrations import is_deepspeed_zero3_enabled

        device = PartialState().device
        if is_deepspeed_zero3_enabled():  # the model's weights are spread over processes that wait for this one
            with _not_sharded():
                reference = open_language_model(self.start, merge=True, dtype=self.model.dtype)
            yield reference.to(device).eval()
            return
        training, before = self.model.training, self.model.device
        moved = before.type == "cpu" and device.type != "cpu"
        try:
            yield (self.model.to(device) if moved else self.model).eval()
        finally:
            self.model.train(training)
            if moved:
                self.model.to(before)

    def _precision(self, device: torch.device) -> torch.autocast:
        """The precision in which the stage trains."""
        half = half_precision(self.config)
        return torch.autocast(device.type, half or torch.bfloat16, enabled=half is not None)

    def cache_key(self, source: Source) -> list[Any]:
        if not self.how.sft and not _holds_pairs(self.config.at(source.path)):
            raise ValueError(
                f"{source.path} holds no pairs of replies, and what is no pair is trained by preference.sft alone, "
                f"which is {self.how.sft}: set it above 0, or leave {source.path} out"
            )
        half = str(self.config.training.get("bf16")), str(self.config.training.get("fp16"))
        return [*super().cache_key(source), "preference", PREFERENCES_VERSION, fingerprint(self.start), *half]

    # --- batches and loss

    def augmentation(self) -> Augmentation | None:
        return None

    def collator(self) -> Collator:
        return functools.partial(collate, one_row=takes_one_row(self.model))

    def items(self, batch: dict[str, Any]) -> Tensor:
        """Documents."""
        return torch.tensor(len(batch["reference"]))

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """The preference loss of each pair (stages/unit_system/preference_loss.py), and `sft` of other documents."""
        likelihoods, tokens, _ = self.likelihoods(model, batch)
        return self._each_loss(likelihoods, batch["reference"], tokens).sum() / items

    def _each_loss(self, likelihoods: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """Loss of each document, (P,); arguments (P, 2) as of preference_loss."""
        pairs = ~reference.isnan().any(1)
        of_pairs = preference_loss(self.how, likelihoods[pairs], reference[pairs], tokens[pairs])
        of_others = sft_loss(self.how, likelihoods[~pairs], tokens[~pairs])
        each = likelihoods.new_zeros(len(pairs))
        return each.index_put((pairs,), of_pairs).index_put((~pairs,), of_others)

    def likelihoods(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-likelihoods of the chosen and of the rejected replies (P, 2), and how many tokens they have; of these,
        how many are units. All are 0 for a rejected reply that does not exist."""
        inputs = {name: part for name, part in batch.items() if name not in ("labels", "sides", "reference")}
        logits, labels = counted_logits(model, {**inputs, "use_cache": False}, batch["labels"])
        sides = batch["sides"][:, 1:][batch["labels"][:, 1:] != IGNORED]
        each = -functional.cross_entropy(logits, labels, reduction="none")
        parts = torch.stack([each, torch.ones_like(each), self.vocab.is_unit(labels).to(each.dtype)])
        summed = each.new_zeros(3, 2 * len(batch["reference"])).index_add(1, sides, parts)
        likelihoods, tokens, units = summed.view(3, -1, 2)
        return likelihoods, tokens, units

    # --- evaluation

    @torch.no_grad()
    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        """On the chosen held-out blocks: the loss of a pair; `accuracy`, the share of pairs whose chosen reply
        has gained more likelihood than the rejected one; `margin`, by how much, times beta; `kl`, how much likelier the
        reference model finds a reply, which for replies that it drew estimates its divergence from it; `units`, the
        share of counted tokens that are units. Of other documents (`sft_TASK/`), the loss and `units`."""
        with evaluating(model):
            parts = []
            tasks: list[str] = []
            for index in chosen:
                batch = on_device(self.collator()([held_out[index]]), self.model.device)
                likelihoods, tokens, units = self.likelihoods(model, batch)
                gained = likelihoods - batch["reference"]
                loss = self._each_loss(likelihoods, batch["reference"], tokens)
                margin = gained[:, 0] - gained[:, 1]
                columns = (
                    loss,
                    (margin > 0).float(),
                    self.how.beta * margin,
                    -gained.mean(1),
                    units.sum(1),
                    tokens.sum(1),
                )
                parts.append(torch.stack(columns).cpu())
                tasks += [
                    held_out.sources[source].task_names[held_out.sources[source].tasks[document]]
                    for source, document in held_out.documents_of(index)
                ]
        found = torch.cat(parts, dim=1)
        pairs = ~found[2].isnan()
        groups = {"dev_": pairs}
        if len(names := sorted(set(tasks))) > 1:
            groups |= {f"{name}/": torch.tensor([task == name for task in tasks]) for name in names}
        report: dict[str, float] = {}
        for group, inside in groups.items():
            if not inside.any():
                continue
            loss, accuracy, margin, kl, units, tokens = found[:, inside].double().sum(1).tolist()
            means = {"loss": loss}
            if pairs[inside].all():
                means |= {"accuracy": accuracy, "margin": margin, "kl": kl}
            report |= {f"{group}{name}": round(value / int(inside.sum()), 4) for name, value in means.items()}
            report[f"{group}units"] = round(units / tokens, 4)
        return report

    @torch.no_grad()
    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        """What the model replies, greedily, after what both replies of some held-out pairs begin with."""
        with evaluating(model):
            found = []
            for task, source, document in sample_documents(held_out, count):
                tokenised = held_out.sources[source]
                ids, train = tokenised.document(document)
                middle = int(tokenised.column("side", document)[1])
                chosen, rejected = ids[:middle].tolist(), ids[middle:].tolist()
                start = max(1, int(train.argmax()))
                with any_length():
                    reply = continuation(model, chosen[:start], set(self.dialogue.ends), SAMPLING)
                shown = [chosen[:start], reply, chosen[start:]]
                shown += [rejected[start:]] if rejected else []
                names = ("prompt", "reply", "chosen", "rejected")
                found.append({"task": task, **{n: self.tokenizer.decode(part) for n, part in zip(names, shown)}})
        return found

    # --- the finished model

    def facts(self) -> CheckpointFacts | None:
        """As of every stage; what the model has learned to do is what its start had."""
        facts = super().facts()
        return facts and dataclasses.replace(facts, extra=self.start_facts.extra | {"taught": self.start_facts.taught})


def _holds_pairs(path: Path) -> bool:
    """Whether a source is a preference set; a file that is damaged is one, and its reader says what is wrong."""
    return not (path.is_dir() or path.suffix == ".txt" or format_of(path) in READABLE_FORMATS)


def _without_rejected(some: Documents) -> Documents:
    """Documents that are no pairs, in the form of pairs: their second reply is empty, and has no likelihood."""
    count = len(some.lengths)
    begins = np.stack([np.zeros(count, np.int64), some.lengths], axis=1)
    columns = {
        "side": Column(begins.flatten(), np.full(count, 2)),
        "reference": Column(np.full(2 * count, np.nan, np.float32), np.full(count, 2), identifies=False),
    }
    return dataclasses.replace(some, task=f"sft_{some.task}", columns={**some.columns, **columns})


def _common(one: list[int], two: list[int]) -> int:
    """How many tokens two replies to a prompt begin with, that are the same; at least the first."""
    same = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
    return max(1, same)


@contextlib.contextmanager
def _not_sharded() -> Iterator[None]:
    """Within it a model is opened whole, though DeepSpeed ZeRO-3 shards all others."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def collate(blocks: list[Block], one_row: bool) -> dict[str, Any]:
    """Blocks of pairs as a batch.

    Args:
        one_row: end to end as one row, with the bounds of documents.

    Returns: input_ids, labels, position_ids (B, L); sides (B, L), the number of the reply that a token is part of:
        2 p for the chosen one of document p, 2 p + 1 for the rejected one; reference (P, 2), not a number where there
        is no rejected one.
    """
    rows: list[Block] = []
    sides = 0
    for block in blocks:
        begins = block["side"] + block["side_start"]
        places = torch.arange(len(block["input_ids"]))
        number = torch.searchsorted(begins, places, right=True) - 1
        positions = torch.minimum(block["position_ids"], places - begins[number])
        labels = block["labels"].clone()
        labels[begins[begins < len(labels)]] = IGNORED  # the token before it belongs to another reply
        row = {"input_ids": block["input_ids"], "labels": labels, "position_ids": positions, "sides": number + sides}
        rows.append(row)
        sides += len(begins)
    batch = (flattened if one_row else stacked)(rows)
    return batch | {"reference": torch.cat([block["reference"] for block in blocks]).view(-1, 2)}

"""What a stage writes down while it trains: `log.jsonl`, with the loss on held-out documents told apart by units and
text and by task, and `samples.jsonl`, what the model replies to some of them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from speechgpt.dialogue import Dialogue, Message
from speechgpt.vocab import EOA, SPEECHGPT, UnitVocab
from stages.attention import any_length, bounds, takes_bounds
from stages.data import PackedBlocks
from units.runtime.atomic import written_whole

DEV_BLOCKS = 16  # at most, for a look on the way; the last look is at all
SAMPLE_TOKENS = 64  # of a reply
# Said in full: what is left open, transformers takes from the text LLM's generation config, such as Qwen's penalty on
# repetition, and units repeat.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0,
          "use_cache": True}  # fmt: skip


class Watch(TrainerCallback):
    """Writes each training report and each look at the held-out documents into `log.jsonl`."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.began = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """After a resume the log and its clock go on from the checkpoint; what was logged beyond it comes again."""
        self.began = time.monotonic()
        if not state.is_world_process_zero:
            return
        for path in (self.log, self.log.with_name("samples.jsonl")):
            kept = [record for record in read_log(path) if record["step"] <= state.global_step] if path.exists() else []
            if path.exists():
                with written_whole(path) as file:
                    file.writelines(json.dumps(record) + "\n" for record in kept)
            if path == self.log and kept:
                self.began -= kept[-1]["seconds"]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs
    ) -> None:
        logs = logs or {}
        held_out = {name: value for name, value in logs.items() if name.startswith("dev_")}
        if not state.is_world_process_zero or not ("loss" in logs or held_out):
            return
        record: dict[str, Any] = {"step": state.global_step}
        record |= held_out or {name: value for name, value in logs.items() if name not in ("epoch", "step")}
        for name, value in logs.items():
            if held_out and "/" in name:  # asr/text_loss
                task, _, figure = name.partition("/")
                record.setdefault("tasks", {}).setdefault(task, {})[figure] = value
        record["seconds"] = round(time.monotonic() - self.began, 1)
        append(self.log, record)


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict[str, float]]:
    """Records of a log, up to a line that a killed run did not finish."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        records.append(json.loads(line))
    return records


@torch.no_grad()
def held_out_report(
    model: PreTrainedModel, dev: PackedBlocks, vocab: UnitVocab | None, blocks: int
) -> dict[str, float]:
    """Loss, perplexity and token accuracy on the first so many held-out blocks, units and text apart: over all
    (`dev_text_loss`), and, where there are several tasks, of each (`asr/text_loss`)."""
    training = model.training
    model.eval()
    chosen = range(min(blocks, len(dev)))
    parts = [token_losses(model, dev[i]) for i in chosen]
    model.train(training)
    losses, hits, tokens = (torch.cat(column) for column in zip(*parts))
    tasks = torch.cat([dev.tasks(i)[1:][dev[i]["labels"][1:] >= 0] for i in chosen]).to(tokens.device)
    is_unit = torch.zeros_like(tokens, dtype=torch.bool)
    if vocab is not None:
        is_unit = vocab.is_unit(tokens)
    groups = {"dev_": torch.ones_like(is_unit)}
    if len(dev.task_names) > 1:
        groups |= {f"{name}/": tasks == index for index, name in enumerate(dev.task_names)}
    report: dict[str, float] = {}
    for group, inside in groups.items():
        for name, kind in (("units", is_unit), ("text", ~is_unit)):
            among = inside & kind
            if among.any():
                loss = losses[among].mean().item()
                report |= {f"{group}{name}_loss": round(loss, 4), f"{group}{name}_ppl": round(math.exp(min(loss, 50)), 3),
                           f"{group}{name}_accuracy": round(hits[among].float().mean().item(), 4)}  # fmt: skip
    return report


def token_losses(model: PreTrainedModel, block: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and correctness of each counted token of one block, and the tokens themselves."""
    packed = bounds(block["position_ids"]) if takes_bounds(model) else {}
    block = {name: tensor[None].to(model.device) for name, tensor in block.items()}
    told = {name: part.to(model.device) if isinstance(part, Tensor) else part for name, part in packed.items()}
    # with a cache, transformers would not look for packed documents, and they would see one another
    output = model(input_ids=block["input_ids"], position_ids=block["position_ids"], use_cache=False, **told)
    logits = output.logits[:, :-1].float()
    labels = block["labels"][:, 1:]
    counted = labels >= 0
    losses = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="none")
    return losses, logits[counted].argmax(-1) == labels[counted], labels[counted]


@torch.no_grad()
def sample_replies(
    model: Any, dev: PackedBlocks, tokenizer: PreTrainedTokenizerBase, vocab: UnitVocab | None, count: int
) -> list[dict[str, str]]:
    """What the model writes, greedily, after the prompts of some held-out documents, each of another task if there are
    several: {"task", "prompt", "reply", "expected"}."""
    documents = {document for i in range(min(DEV_BLOCKS, len(dev))) for document in dev.documents_of(i)}
    by_task: dict[str, list[tuple[int, int]]] = {}
    for source, document in sorted(documents):
        held = dev.sources[source]
        by_task.setdefault(held.task_names[held.tasks[document]], []).append((source, document))
    queue = [(task, found[i]) for i in range(count) for task, found in sorted(by_task.items()) if i < len(found)]
    ends = {tokenizer.eos_token_id, vocab.markers.get(EOA) if vocab else None} - {None}
    opening = reply_opening(tokenizer, vocab)
    training = model.training
    model.eval()
    samples = []
    for task, (source, document) in queue[:count]:
        ids, _ = dev.sources[source].document(document)
        start = prompt_end(ids, opening)
        prompt = torch.tensor(ids[:start][None].astype(np.int64), device=model.device)
        with any_length():
            written = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=SAMPLE_TOKENS, **GREEDY,
                eos_token_id=sorted(ends), pad_token_id=tokenizer.eos_token_id,
            )[0, start:].tolist()  # fmt: skip
        spelled = [tokenizer.decode(part) for part in (ids[:start].tolist(), written, ids[start:].tolist())]
        samples.append(dict(zip(("task", "prompt", "reply", "expected"), (task, *spelled), strict=True)))
    model.train(training)
    return samples


def reply_opening(tokenizer: PreTrainedTokenizerBase, vocab: UnitVocab | None) -> list[int]:
    """Token ids of `[SpeechGPT]:`, behind which the model replies; none where there can be no conversations."""
    if vocab is None or SPEECHGPT not in vocab.markers:
        return []
    prompt = Dialogue(tokenizer).prompt([Message("human", ("?",))])
    return prompt[prompt.index(vocab.marker(SPEECHGPT)) :]


def prompt_end(ids: np.ndarray, opening: list[int]) -> int:
    """How many tokens of a document, (L,), are the prompt: of a conversation all before its first reply, whatever of them
    the loss counts; of anything else a quarter."""
    if opening and opening[0] in ids:
        return min(int(np.argmax(ids == opening[0])) + len(opening), len(ids))
    return max(1, len(ids) // 4)

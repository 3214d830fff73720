"""What a stage writes down while it trains: `log.jsonl`, with the loss on held-out documents told apart by units and text."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from speechgpt.vocab import UnitVocab
from stages.data import PackedBlocks
from units.manifest import written_whole

DEV_BLOCKS = 16  # at most; a look, not an evaluation


class Watch(TrainerCallback):
    """Logs each training report, and every `eval_steps` the held-out loss, perplexity and accuracy."""

    def __init__(self, log: Path, dev: PackedBlocks, vocab: UnitVocab | None) -> None:
        self.log, self.dev, self.vocab = log, dev, vocab
        self.began = time.monotonic()

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """After a resume the log and its clock go on from the checkpoint; what was logged beyond it comes again."""
        self.began = time.monotonic()
        if not state.is_world_process_zero or not self.log.exists():
            return
        kept = [record for record in read_log(self.log) if record["step"] <= state.global_step]
        with written_whole(self.log) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self.began -= kept[-1]["seconds"] if kept else 0.0

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs=None, **kwargs
    ) -> None:
        if state.is_world_process_zero and "loss" in (logs or {}):
            report = {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            tokens = (
                state.global_step
                * args.train_batch_size
                * args.gradient_accumulation_steps
                * args.world_size
                * self.dev.size
            )
            self._write({"step": state.global_step, **report, "tokens": tokens})

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model=None, **kwargs
    ) -> None:
        every = int(args.eval_steps or 0)
        last = state.global_step == state.max_steps
        if len(self.dev) and (last or (every and state.global_step % every == 0)):
            report = held_out_report(model, self.dev, self.vocab)  # on every rank: ZeRO-3 needs all for a forward pass
            if state.is_world_process_zero:
                self._write({"step": state.global_step, **report})

    def _write(self, record: dict[str, float]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        record["seconds"] = round(time.monotonic() - self.began, 1)
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if any(name.startswith("dev_") for name in record):
            print("  ".join(f"{name} {value:.4g}" for name, value in record.items()), flush=True)


def read_log(path: Path) -> list[dict[str, float]]:
    """Records of a log, up to a line that a killed run did not finish."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        records.append(json.loads(line))
    return records


@torch.no_grad()
def held_out_report(model: PreTrainedModel, dev: PackedBlocks, vocab: UnitVocab | None) -> dict[str, float]:
    """Loss, perplexity and token accuracy on held-out blocks, units and text apart."""
    training = model.training
    model.eval()
    parts = [token_losses(model, dev[i]) for i in range(min(DEV_BLOCKS, len(dev)))]
    model.train(training)
    losses, hits, tokens = (torch.cat(column) for column in zip(*parts))
    is_unit = torch.zeros_like(tokens, dtype=torch.bool)
    if vocab is not None:
        is_unit = (tokens >= vocab.first_unit_id) & (tokens < vocab.first_unit_id + vocab.size)
    report: dict[str, float] = {}
    for name, chosen in (("units", is_unit), ("text", ~is_unit)):
        if chosen.any():
            loss = losses[chosen].mean().item()
            report |= {f"dev_{name}_loss": round(loss, 4), f"dev_{name}_ppl": round(math.exp(min(loss, 50)), 3),
                       f"dev_{name}_accuracy": round(hits[chosen].float().mean().item(), 4)}  # fmt: skip
    return report


def token_losses(model: PreTrainedModel, block: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy and correctness of each counted token of one block, and the tokens themselves."""
    block = {name: tensor[None].to(model.device) for name, tensor in block.items()}
    # with a cache, transformers would not look for packed documents, and they would see one another
    output = model(input_ids=block["input_ids"], position_ids=block["position_ids"], use_cache=False)
    logits = output.logits[:, :-1].float()
    labels = block["labels"][:, 1:]
    counted = labels >= 0
    losses = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="none")
    return losses, logits[counted].argmax(-1) == labels[counted], labels[counted]

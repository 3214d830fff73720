"""Masked prediction, the training of HuBERT: the network, the loss, and the loop with its checkpoints.

B batch, T samples, N frames.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from units.audio import SAMPLE_RATE
from units.encoder.pretraining.pretrain_data import PretrainCorpus, Steps
from units.encoder.pretraining.targets import iteration_targets
from units.encoder.recipes import POSITION_GROUPS, Iteration, PretrainRecipe
from units.runtime.files.atomic import written_whole
from units.runtime.files.saved_states import read_state, state_of
from units.runtime.precision import autocast
from units.runtime.progress import progress

REPORT_EVERY = 100  # steps


def build_model(recipe: PretrainRecipe) -> nn.Module:
    """A HubertModel of the base layout (GroupNorm front end, post-norm) at the recipe's size, without dropout."""
    from transformers import HubertConfig, HubertModel

    return HubertModel(
        HubertConfig(
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.width,
            conv_dim=(recipe.conv_width,) * 7,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=POSITION_GROUPS,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=True,
            mask_time_prob=0.05,
        )
    )


def masked_prediction_loss(
    logits: list[Tensor], targets: Tensor, mask: Tensor, unmasked_weight: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over masked frames plus `unmasked_weight` times that over the others, averaged over the heads.

    Returns: the loss, and the accuracy of the first head on masked frames.
    """
    loss = torch.zeros((), device=mask.device)
    for head, scores in enumerate(logits):
        each = nn.functional.cross_entropy(
            scores.flatten(0, 1).float(), targets[..., head].flatten().long(), reduction="none"
        )
        flat = mask.flatten()
        loss = loss + _mean_where(flat, each) + unmasked_weight * _mean_where(~flat, each)
    hits = logits[0].argmax(-1) == targets[..., 0]
    return loss / len(logits), _mean_where(mask, hits.float())


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """The mean of the chosen values; 0 if there are none, since a crop may be masked whole, and 0 * NaN is NaN."""
    picked = (
        values[chosen] if values.device.type == "cpu" else values.where(chosen, 0.0)
    )  # a GPU would wait to count them
    return picked.sum() / chosen.sum().clamp(min=1)


class PrototypeHead(nn.Module):
    """Scores clusters by minus half the squared distance of a frame to their centres, so the nearest one wins.

    The scores leave out the frame's own length, which is the same for all clusters.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(size, width) / math.sqrt(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """Frames (..., D) -> scores (..., K)."""
        return nn.functional.linear(hidden, self.centres) - 0.5 * self.centres.square().sum(1)


class IterationTraining:
    """Model, heads, optimiser and schedule of one iteration, and the number of steps done."""

    def __init__(self, model: nn.Module, heads: nn.ModuleList, plan: Iteration, recipe: PretrainRecipe, device: str):
        self.model, self.heads, self.recipe, self.device, self.step = model, heads, recipe, device, 0
        self.parts = nn.ModuleDict({"model": model, "heads": heads}).to(device)
        self.optimizer = torch.optim.AdamW(
            self.parts.parameters(), lr=plan.peak_lr, betas=(0.9, 0.98), weight_decay=0.01
        )
        fall = max(1, plan.steps - recipe.warmup)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda s: min((s + 1) / recipe.warmup, max(0.03, 1 - 0.97 * max(0, s - recipe.warmup) / fall)),
        )

    def update(self, wav: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """One optimiser step on wav (B, T), targets (B, N, heads), mask (B, N).

        Returns: loss, masked accuracy and the gradient's norm, (3,), on the model's device; reading them waits for it.
        """
        wav, targets, mask = (x.to(self.device, non_blocking=True) for x in (wav, targets, mask))
        with autocast(self.device):
            hidden = self.model(wav, mask_time_indices=mask).last_hidden_state
            logits = [head(hidden) for head in self.heads]
        loss, accuracy = masked_prediction_loss(logits, targets, mask, self.recipe.unmasked_weight)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return torch.stack([loss, accuracy, norm]).detach()

    def save(self, path: Path) -> None:
        """Write a checkpoint, which appears whole or not at all. Inverse of load."""
        state = {"params": self.parts, "optimizer": self.optimizer, "schedule": self.schedule}
        with written_whole(path, "wb") as file:
            torch.save({**{name: part.state_dict() for name, part in state.items()}, "step": self.step}, file)

    def load(self, path: Path) -> None:
        """Resume from a checkpoint. Raises FileError naming it if it is damaged, or of another training."""
        state = read_state(path, self.device)
        with state_of(path):
            self.parts.load_state_dict(state["params"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step = int(state["step"])


def train_iterations(
    model: nn.Module, corpus: PretrainCorpus, recipe: PretrainRecipe, out: Path, device: str, workers: int
) -> Tensor | None:
    """Train the model in place through all iterations of the recipe, from the last checkpoint in `out` if there is one.

    Args:
        workers: processes that load audio; 0 loads in this one.

    Returns: centres (K, D) of the first head of the last iteration, if heads are prototypes.
    """
    for number, plan in enumerate(recipe.iterations, 1):
        targets = iteration_targets(corpus, model, plan, out / f"targets{number}.safetensors", recipe.seed, device)
        kind = PrototypeHead if recipe.prototypes else nn.Linear
        heads = nn.ModuleList(kind(recipe.width, size) for size in plan.sizes)
        training = IterationTraining(model, heads, plan, recipe, device)
        train_iteration(training, Steps(corpus, targets, recipe, number, plan.steps), number, out, workers)
    return heads[0].centres.detach().cpu() if recipe.prototypes else None


def train_iteration(current: IterationTraining, steps: Steps, number: int, out: Path, workers: int) -> None:
    """Train one iteration in place, from its last checkpoint if there is one.

    Raises: FloatingPointError if a loss or its gradient was not finite; the last checkpoint stays as it is.
    """
    saved = out / f"iteration{number}.pt"
    if saved.exists():
        current.load(saved)
    rest = Subset(steps, range(current.step, len(steps)))
    pinned = torch.device(current.device).type == "cuda"
    began, seconds, history = time.monotonic(), 0.0, []
    current.model.train()
    with (
        (out / "log.jsonl").open("a", encoding="utf-8") as log,
        progress(total=len(steps), initial=current.step, desc=f"iteration {number}", unit="steps") as bar,
    ):
        for wav, targets, mask in DataLoader(rest, batch_size=None, num_workers=workers, pin_memory=pinned):
            history.append(current.update(wav, targets, mask))
            seconds += wav.numel() / SAMPLE_RATE
            bar.update()
            reporting = current.step % REPORT_EVERY == 0
            saving = current.step % current.recipe.save_every == 0 or current.step == len(steps)
            if reporting or saving:
                loss, accuracy, _ = _finite(history, current.step).mean(0).tolist()
            if reporting:
                rate = seconds / (time.monotonic() - began)
                record = {
                    "iteration": number,
                    "step": current.step,
                    "loss": round(loss, 4),
                    "accuracy": round(accuracy, 4),
                    "audio_s_per_s": round(rate, 1),
                }
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.set_postfix_str(f"loss {loss:.3f} masked accuracy {accuracy:.3f} {rate:.0f} audio-s/s")
                history = []
            if saving:
                current.save(saved)


def _finite(history: list[Tensor], last: int) -> Tensor:
    """Results of the updates up to step `last`, float64 (updates, 3).

    Raises: FloatingPointError if a loss or a gradient's norm is not finite.
    """
    found = torch.stack(history).cpu().double()
    for step, (loss, _, norm) in enumerate(found.tolist(), last - len(history) + 1):
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {step}: the loss is {loss}, its gradient's norm {norm}. The last checkpoint is from before it. "
                "Begin in another --out, with a lower peak_lr"
            )
    return found

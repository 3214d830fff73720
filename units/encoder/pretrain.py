"""HuBERT pre-training by masked prediction, for a language or a machine with no encoder of its own.

    python -m units.encoder.pretrain --manifest runs/toy/corpus/train.jsonl --out runs/toy/hubert   # minutes, one CPU
    python -m units.encoder.pretrain --manifest big.jsonl --out runs/hubert --device cuda --recipe.width 768 ...

The recipe is HuBERT's (Hsu et al. 2021, arXiv 2106.07447): cluster MFCCs, predict the clusters of masked frames, then
cluster what was learned and go on with those targets. Here each iteration predicts several codebooks at once
(section IV-B, cluster ensembles) and unmasked frames count as well, at half weight; and every crop is changed in
speed, tilt and noise while its targets stay those of the clean wav, so that units follow the words, not the voice.

It departs from the paper, and from fairseq where that says more, also in these: a linear head for each codebook
instead of cosines to label embeddings over a temperature; one network goes on through the iterations, with fresh heads
and optimiser, instead of a new one in each; masked spans of 8 frames (paper: 10); no dropout and no layerdrop; a
positional convolution 32 wide (128); the front end learns at its full gradient (fairseq: a tenth) and without a penalty
on its features; MFCCs as in `units/encoder/mfcc.py`, and features mean-free per utterance before they are clustered.

Writes `OUT/lengths.json` (samples of each utterance, or why it is unreadable; a resumed run reads them there, and until there
are targets tries the unreadable ones again), targets and a checkpoint of each iteration, `OUT/hubert` (a transformers folder, half precision), `OUT/log.jsonl`, and last
`OUT/pretrain.json`. A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from units.audio import SAMPLE_RATE
from units.corpus.manifest import read_manifest
from units.encoder import kmeans
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.pretrain_data import Corpus, Features, Iteration, PretrainRecipe, Steps
from units.runtime.ahead import usual_loaders
from units.runtime.atomic import written_whole
from units.runtime.precision import autocast, check_device
from units.runtime.progress import progress

REPORT_EVERY = 100  # steps
SAMPLED, SAMPLED_FRAMES = 2000, 120_000  # utterances, and frames of them, that targets are fitted on


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
            num_conv_pos_embedding_groups=16,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=True,
            mask_time_prob=0.05,
        )  # fmt: skip
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
    """The mean of the chosen values, 0 where none is: crops may be masked whole, and 0 * NaN is NaN."""
    picked = values[chosen] if values.device.type == "cpu" else values.where(chosen, 0.0)  # GPUs count before they pick
    return picked.sum() / chosen.sum().clamp(min=1)


class Round:
    """One iteration in training: model, heads, optimiser and schedule, with the step they have reached."""

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

        Returns: loss, masked accuracy and the gradient's norm, (3,), where the model is: to read them is to wait for it.
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
        """Write a checkpoint; it appears whole or not at all. Inverse of load."""
        state = {"params": self.parts, "optimizer": self.optimizer, "schedule": self.schedule}
        with written_whole(path, "wb") as file:
            torch.save({**{name: part.state_dict() for name, part in state.items()}, "step": self.step}, file)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        self.parts.load_state_dict(state["params"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]


def train_iteration(current: Round, steps: Steps, number: int, out: Path, workers: int) -> None:
    """Train one iteration in place, from its last checkpoint if there is one.

    Raises: FloatingPointError if a loss or its gradient was not finite; the last checkpoint stays as it is.
    """
    saved = out / f"iteration{number}.pt"
    if saved.exists():
        current.load(saved)
    rest = Subset(steps, range(current.step, len(steps)))
    pinned = torch.device(current.device).type == "cuda"
    began, heard, history = time.monotonic(), 0.0, []
    current.model.train()
    with (
        (out / "log.jsonl").open("a", encoding="utf-8") as log,
        progress(total=len(steps), initial=current.step, desc=f"iteration {number}", unit="steps") as bar,
    ):
        for wav, targets, mask in DataLoader(rest, batch_size=None, num_workers=workers, pin_memory=pinned):
            history.append(current.update(wav, targets, mask))
            heard += wav.numel() / SAMPLE_RATE
            bar.update()
            reporting = current.step % REPORT_EVERY == 0
            saving = current.step % current.recipe.save_every == 0 or current.step == len(steps)
            if reporting or saving:
                loss, accuracy, _ = _finite(history, current.step).mean(0).tolist()
            if reporting:
                rate = heard / (time.monotonic() - began)
                record = {"iteration": number, "step": current.step, "loss": round(loss, 4),
                          "accuracy": round(accuracy, 4), "audio_s_per_s": round(rate, 1)}  # fmt: skip
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.set_postfix_str(f"loss {loss:.3f} masked accuracy {accuracy:.3f} {rate:.0f} audio-s/s")
                history = []
            if saving:
                current.save(saved)


def _finite(history: list[Tensor], last: int) -> Tensor:
    """What the updates up to step `last` returned, float64 (updates, 3). Raises FloatingPointError if one is not finite."""
    found = torch.stack(history).cpu().double()
    for step, (loss, _, norm) in enumerate(found.tolist(), last - len(history) + 1):
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {step}: the loss is {loss}, its gradient's norm {norm}. The last checkpoint is from before it. Begin in "
                "another --out, with a lower peak_lr"
            )
    return found


def main(
    manifest: Path, out: Path, recipe: PretrainRecipe = PretrainRecipe(), device: str = "cpu",
    workers: int | None = None, threads: int = 0, start: str | None = None,
) -> None:  # fmt: skip
    """Pre-train a HuBERT.

    Args:
        manifest: utterances to learn from; text is not used
        out: folder for checkpoints and the result
        recipe: the encoder and how it is trained
        device: cpu, cuda, or cuda:N
        workers: processes that load audio; 0 loads in this one, as on a CPU if not given; beside a GPU up to 8
        threads: CPU threads, torch's own choice if 0
        start: a transformers HuBERT folder to go on from, of the recipe's size; a fresh one if not given
    """
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    settled = (out / "targets1.safetensors").exists()  # labels of what was readable then
    corpus = Corpus(read_manifest(manifest), recipe.shortest, out / "lengths.json", torch.get_num_threads(), settled)
    hours = corpus.lengths.sum() / SAMPLE_RATE / 3600
    print(
        f"{len(corpus.utterances)} utterances, {hours:.2f} hours; left out: {len(corpus.refused)} not readable, "
        f"{len(corpus.short)} shorter than {recipe.shortest / SAMPLE_RATE:.2f} s"
    )
    model = build_model(recipe)
    if start:
        model.load_state_dict(type(model).from_pretrained(start, dtype=torch.float32).state_dict())
    for number, plan in enumerate(recipe.iterations, 1):
        sizes = [size for layer in plan.clusters for size in plan.clusters[layer]]
        targets = _targets(corpus, model, plan, out / f"targets{number}.safetensors", recipe.seed, device)
        heads = nn.ModuleList(nn.Linear(recipe.width, size) for size in sizes)
        current = Round(model, heads, plan, recipe, device)
        loaders = usual_loaders(device) if workers is None else workers
        train_iteration(current, Steps(corpus, targets, recipe, number, plan.steps), number, out, loaders)
    model.half().cpu().save_pretrained(out / "hubert")
    with written_whole(out / "pretrain.json") as file:
        json.dump({"recipe": dataclasses.asdict(recipe), "utterances": len(corpus.utterances), "hours": round(hours, 2),
                   "refused": len(corpus.refused), "too_short": len(corpus.short)}, file, indent=1)  # fmt: skip


def _targets(corpus: Corpus, model: nn.Module, plan: Iteration, saved: Path, seed: int, device: str) -> np.ndarray:
    """Labels of every frame for one iteration, (total frames, heads), from `saved` if a run that was killed had made them."""
    from safetensors.numpy import load_file, save_file

    if saved.exists():
        targets = load_file(saved)["targets"]
        if len(targets) != corpus.first_frame[-1]:
            raise ValueError(
                f"{saved} labels {len(targets)} frames, the corpus has {corpus.first_frame[-1]}: it changed; give another --out"
            )
        return targets
    codebooks = [(_extractor(model, layer, device), sizes) for layer, sizes in plan.clusters.items()]
    targets = make_targets(corpus, codebooks, seed)
    part = saved.with_suffix(".part")
    save_file({"targets": targets}, str(part))
    part.replace(saved)
    return targets


def make_targets(corpus: Corpus, codebooks: list[tuple[Features, list[int]]], seed: int) -> np.ndarray:
    """Cluster features and label every frame; the whole corpus is decoded once for all codebooks.

    Args:
        codebooks: features, and the sizes of the codebooks to fit on them.

    Returns: (total frames, heads), heads in the order of `codebooks`; uint16 where every codebook allows it, else int32.
    """
    by_length = np.argsort(corpus.lengths, kind="stable")
    drawn = by_length[np.sort(np.random.default_rng(seed).permutation(len(by_length))[:SAMPLED])]
    jobs = []
    for extract, sizes in codebooks:
        pieces = (piece for _, [batch] in corpus.heard(drawn, [(extract, lambda x: x)]) for piece in batch)
        frames = kmeans.sample_frames(pieces, SAMPLED_FRAMES, seed)
        fits = [kmeans.fit(frames, min(size, len(frames)), seed) for size in sizes]
        told = (f"K={size} inertia {fit.inertia:.3f} dead {fit.dead}" for size, fit in zip(sizes, fits))
        print(f"targets of {extract.name}:", ", ".join(told))
        jobs.append((extract, _assigner([fit.centres.to(extract.device) for fit in fits])))
    largest = max(size for _, sizes in codebooks for size in sizes)
    heads = sum(len(sizes) for _, sizes in codebooks)
    labels = np.empty((int(corpus.first_frame[-1]), heads), np.uint16 if largest <= 1 << 16 else np.int32)
    for rows, results in corpus.heard(by_length, jobs):
        for row, *columns in zip(rows, *results):
            labels[corpus.first_frame[row] : corpus.first_frame[row + 1]] = np.concatenate(columns, axis=1)
    return labels


def _assigner(centres: list[Tensor]) -> Callable[[Tensor], np.ndarray]:
    """Features (N, D) -> the nearest of each codebook's centres, (N, codebooks)."""
    return lambda x: torch.stack([kmeans.assign(x, own) for own in centres], dim=1).cpu().numpy()


def _extractor(model: nn.Module, layer: int, device: str) -> Features:
    """Features for targets: MFCC for layer 0, else the model as it stands."""
    if layer == 0:
        return MfccFeatures()
    return HubertFeatures(copy.deepcopy(model), layer, f"layer {layer}").to(device)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

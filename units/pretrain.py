"""HuBERT pre-training by masked prediction, for a language or a machine with no encoder of its own.

    python -m units.pretrain --manifest runs/toy/corpus/train.jsonl --out runs/toy/hubert   # minutes, one CPU
    python -m units.pretrain --manifest big.jsonl --out runs/hubert --device cuda --recipe.width 768 ...

The recipe is HuBERT's (Hsu et al. 2021, arXiv 2106.07447): cluster MFCCs, predict the clusters of masked frames, then
cluster what was learned and go on with those targets. Here each iteration predicts several codebooks at once
(section IV-B, cluster ensembles) and unmasked frames count as well, at half weight; and every crop is changed in
speed, tilt and noise while its targets stay those of the clean wav, so that units follow the words, not the voice.

Writes `OUT/hubert` (a transformers folder, half precision), `OUT/log.jsonl`, and last `OUT/pretrain.json`.
A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from units import kmeans
from units.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, AudioError, load_wav, num_frames
from units.hubert import HubertFeatures
from units.manifest import Utterance, read_manifest, written_whole
from units.mfcc import MfccFeatures


@dataclass
class Iteration:
    """One round of targets and training."""

    steps: int
    """Optimiser steps."""
    clusters: dict[int, list[int]]
    """Codebook sizes to predict, by the layer of the previous iteration they are fitted on; layer 0 is MFCC."""
    peak_lr: float = 1.5e-3
    """Learning rate after warm-up; it falls linearly to 3 percent of this."""


def _two_iterations() -> list[Iteration]:
    return [Iteration(5000, {0: [100, 500]}), Iteration(15000, {0: [100], 3: [200, 500]})]


@dataclass
class PretrainRecipe:
    """The encoder and how it is trained. The defaults made the shipped starter encoder."""

    width: int = 256
    """Hidden width D."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 4
    """Attention heads."""
    conv_width: int = 64
    """Channels of the convolutional front end."""
    batch_seconds: float = 10.0
    """Audio in one step."""
    max_crop_seconds: float = 3.0
    """Longest stretch of one utterance in a step."""
    iterations: list[Iteration] = field(default_factory=_two_iterations)
    """Rounds of clustering and training."""
    mask_start: float = 0.08
    """Probability that a masked span starts at a frame."""
    mask_span: int = 8
    """Frames of a masked span."""
    unmasked_weight: float = 0.5
    """Weight of the loss on frames that are not masked."""
    speed_range: float = 0.08
    """A crop is played faster or slower by up to this share (tempo, pitch and vocal tract together)."""
    noise_probability: float = 0.5
    """Share of crops with white noise added at 10 to 40 dB."""
    warmup: int = 150
    """Steps of linear warm-up in each iteration."""
    seed: int = 0
    """Seeds weights, order, masks and perturbation."""
    save_every: int = 500
    """Steps between checkpoints."""

CROP_STEP = 4000  # samples: crops come in few lengths, so that the CPU's kernels are prepared once for each


class Corpus:
    """Readable utterances of a manifest with their lengths; unreadable ones are counted and left out."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self.utterances: list[Utterance] = []
        self.refused: dict[str, str] = {}
        lengths = []
        for utterance in tqdm(utterances, desc="reading", unit=" files", mininterval=2):
            try:
                lengths.append(len(self._load(utterance)))
                self.utterances.append(utterance)
            except (AudioError, FileNotFoundError) as error:
                self.refused[utterance.id] = str(error)
        if not lengths:
            raise ValueError(f"none of {len(utterances)} utterances is readable; first reason: {next(iter(self.refused.values()), 'empty manifest')}")
        self.lengths = np.array(lengths)
        self.first_frame = np.concatenate([[0], np.cumsum([num_frames(n) for n in lengths])])

    @staticmethod
    def _load(utterance: Utterance) -> np.ndarray:
        return load_wav(utterance.audio, utterance.start, utterance.duration)

    def wav(self, index: int) -> np.ndarray:
        return self._load(self.utterances[index])

    def features(self, extract: HubertFeatures | MfccFeatures, order: np.ndarray, batch: int = 16) -> Iterator[list[Tensor]]:
        """Mean-free features of the utterances in `order`, a batch at a time."""
        for start in tqdm(range(0, len(order), batch), desc=f"features of {extract.name}", unit=" batches", mininterval=2):
            wavs = [self.wav(i) for i in order[start : start + batch]]
            yield [piece - piece.mean(0) for piece in extract(wavs)]


def make_targets(corpus: Corpus, extract: HubertFeatures | MfccFeatures, sizes: list[int], seed: int) -> Tensor:
    """Cluster features and label every frame: int32 (total frames, len(sizes))."""
    by_length = np.argsort(corpus.lengths, kind="stable")
    sample = np.sort(np.random.default_rng(seed).permutation(len(by_length))[: max(1, min(len(by_length), 2000))])
    frames = kmeans.sample_frames((x for batch in corpus.features(extract, by_length[sample]) for x in batch), 120_000, seed)
    fits = [kmeans.fit(frames, min(size, len(frames)), seed) for size in sizes]
    print("targets:", ", ".join(f"K={size} inertia {fit.inertia:.3f} dead {fit.dead}" for size, fit in zip(sizes, fits)))
    labels = torch.empty(int(corpus.first_frame[-1]), len(sizes), dtype=torch.int32)
    done = 0
    for batch in corpus.features(extract, by_length):
        for piece in batch:
            first = int(corpus.first_frame[by_length[done]])
            for head, fit in enumerate(fits):
                labels[first : first + len(piece), head] = kmeans.assign(piece, fit.centres.to(piece.device)).cpu()
            done += 1
    return labels


class Steps(torch.utils.data.Dataset):
    """Step i of an iteration: crops of similar utterances, perturbed, with their targets. A function of seed and i alone."""

    def __init__(self, corpus: Corpus, targets: Tensor, recipe: PretrainRecipe, iteration: int, steps: int) -> None:
        self.corpus, self.targets, self.recipe, self.salt, self.steps = corpus, targets, recipe, iteration, steps
        self.by_length = np.argsort(corpus.lengths, kind="stable")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """wav (B, T), targets (B, N, heads), mask (B, N)."""
        draw = np.random.default_rng([self.recipe.seed, self.salt, step])
        longest = round(self.recipe.max_crop_seconds * SAMPLE_RATE)
        anchor = int(draw.integers(len(self.by_length)))
        length = min(longest, int(self.corpus.lengths[self.by_length[anchor]]))
        rows = max(1, round(self.recipe.batch_seconds * SAMPLE_RATE / length))
        members = [self.by_length[(anchor + i) % len(self.by_length)] for i in range(rows)]
        length = min(longest, *(int(self.corpus.lengths[m]) for m in members))
        length = int(length / (1 + self.recipe.speed_range))
        length = max(RECEPTIVE_FIELD, length - length % CROP_STEP)
        crops, targets = zip(*(self._crop(m, length, draw) for m in members))
        targets_t = torch.stack(targets)
        return torch.from_numpy(np.stack(crops)), targets_t, self._mask(targets_t.shape[:2], draw)

    def _crop(self, index: int, length: int, draw: np.random.Generator) -> tuple[np.ndarray, Tensor]:
        wav = self.corpus.wav(index)
        speed = draw.uniform(1 - self.recipe.speed_range, 1 + self.recipe.speed_range)
        taken = min(len(wav), round(length * speed))
        start = int(draw.integers(len(wav) - taken + 1))
        at = start + np.linspace(0, taken - 1, length)
        crop = np.interp(at, np.arange(len(wav)), wav).astype(np.float32)
        centres = at[np.arange(num_frames(length)) * HOP + RECEPTIVE_FIELD // 2]
        first, frames = self.corpus.first_frame[index], num_frames(len(wav))
        frame = np.clip(np.round((centres - RECEPTIVE_FIELD // 2) / HOP).astype(int), 0, frames - 1)
        return self._perturb(crop, draw), self.targets[first + torch.from_numpy(frame)]

    def _perturb(self, crop: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        tilt = draw.uniform(-0.4, 0.4)
        crop = np.concatenate([crop[:1], crop[1:] - np.float32(tilt) * crop[:-1]])
        if draw.random() < self.recipe.noise_probability:
            level = np.sqrt(np.mean(crop**2)) * 10 ** (-draw.uniform(10, 40) / 20)
            crop = crop + (level * draw.standard_normal(len(crop))).astype(np.float32)
        return crop

    def _mask(self, shape: torch.Size, draw: np.random.Generator) -> Tensor:
        starts = draw.random(shape) < self.recipe.mask_start
        starts[:, shape[1] // 3] = True  # at least one span a row
        mask = np.zeros(shape, bool)
        for shift in range(self.recipe.mask_span):
            mask[:, shift:] |= starts[:, : shape[1] - shift]
        return torch.from_numpy(mask)


def build_model(recipe: PretrainRecipe) -> nn.Module:
    """A HubertModel of the base layout (GroupNorm front end, post-norm) at the recipe's size, without dropout."""
    from transformers import HubertConfig, HubertModel

    return HubertModel(
        HubertConfig(
            hidden_size=recipe.width, num_hidden_layers=recipe.layers, num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.width, conv_dim=(recipe.conv_width,) * 7, num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=16, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
            feat_proj_dropout=0.0, layerdrop=0.0, apply_spec_augment=True, mask_time_prob=0.05,
        )  # fmt: skip
    )


def masked_prediction_loss(logits: list[Tensor], targets: Tensor, mask: Tensor, unmasked_weight: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy over masked frames plus `unmasked_weight` times that over the others, averaged over the heads.

    Returns: the loss, and the accuracy of the first head on masked frames.
    """
    loss = torch.zeros((), device=mask.device)
    for head, scores in enumerate(logits):
        each = nn.functional.cross_entropy(scores.flatten(0, 1).float(), targets[..., head].flatten().long(), reduction="none")
        flat = mask.flatten()
        loss = loss + each[flat].mean() + unmasked_weight * each[~flat].mean()
    hits = (logits[0].argmax(-1) == targets[..., 0])[mask].float().mean()
    return loss / len(logits), hits


def train_iteration(model: nn.Module, steps: Steps, heads: nn.ModuleList, plan: Iteration, number: int, out: Path, workers: int, device: str) -> None:
    """Train one iteration in place, from its last checkpoint if there is one."""
    recipe = steps.recipe
    params = nn.ModuleDict({"model": model, "heads": heads}).to(device)
    optimizer = torch.optim.AdamW(params.parameters(), lr=plan.peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    fall = max(1, plan.steps - recipe.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / recipe.warmup, max(0.03, 1 - 0.97 * max(0, s - recipe.warmup) / fall))
    )
    saved, start = out / f"iteration{number}.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=device)
        params.load_state_dict(state["params"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(steps, range(start, plan.steps)), batch_size=None, num_workers=workers)
    model.train()
    began, heard, running = time.monotonic(), 0.0, {"loss": 0.0, "accuracy": 0.0}
    with (out / "log.jsonl").open("a") as log, tqdm(total=plan.steps, initial=start, desc=f"iteration {number}", unit=" steps", mininterval=5) as bar:
        for step, (wav, targets, mask) in enumerate(loader, start + 1):
            wav, targets, mask = wav.to(device), targets.to(device), mask.to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                hidden = model(wav, mask_time_indices=mask).last_hidden_state
                logits = [head(hidden) for head in heads]
            loss, accuracy = masked_prediction_loss(logits, targets, mask, recipe.unmasked_weight)
            loss.backward()
            nn.utils.clip_grad_norm_(params.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            heard += wav.numel() / SAMPLE_RATE
            for name, value in (("loss", loss), ("accuracy", accuracy)):
                running[name] += value.item() / 100
            bar.update()
            if step % 100 == 0:
                rate = heard / (time.monotonic() - began)
                log.write(json.dumps({"iteration": number, "step": step, **{k: round(v, 4) for k, v in running.items()}, "audio_s_per_s": round(rate, 1)}) + "\n")
                log.flush()
                bar.set_postfix_str(f"loss {running['loss']:.3f} masked accuracy {running['accuracy']:.3f} {rate:.0f} audio-s/s")
                running = dict.fromkeys(running, 0.0)
            if step % recipe.save_every == 0 or step == plan.steps:
                with written_whole(saved, "wb") as file:
                    torch.save({"params": params.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(), "step": step}, file)


def main(manifest: Path, out: Path, recipe: PretrainRecipe = PretrainRecipe(), device: str = "cpu", workers: int = 0, threads: int = 0) -> None:
    """Pre-train a HuBERT.

    Args:
        manifest: utterances to learn from; text is not used
        out: folder for checkpoints and the result
        recipe: the encoder and how it is trained
        device: cpu or cuda
        workers: processes that load audio; 0 loads in this one
        threads: CPU threads, torch's own choice if 0
    """
    from safetensors.torch import load_file, save_file

    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    corpus = Corpus(read_manifest(manifest))
    hours = corpus.lengths.sum() / SAMPLE_RATE / 3600
    print(f"{len(corpus.utterances)} utterances, {hours:.2f} hours, {len(corpus.refused)} refused")
    model = build_model(recipe)
    for number, plan in enumerate(recipe.iterations, 1):
        sizes = [size for layer in plan.clusters for size in plan.clusters[layer]]
        targets_file = out / f"targets{number}.safetensors"
        if not targets_file.exists():
            labels = [make_targets(corpus, _extractor(model, layer, device), k, recipe.seed) for layer, k in plan.clusters.items()]
            save_file({"targets": torch.cat(labels, dim=1)}, str(targets_file))
        targets = load_file(targets_file)["targets"]
        heads = nn.ModuleList(nn.Linear(recipe.width, size) for size in sizes)
        train_iteration(model, Steps(corpus, targets, recipe, number, plan.steps), heads, plan, number, out, workers, device)
    model.half().cpu().save_pretrained(out / "hubert")
    with written_whole(out / "pretrain.json") as file:
        json.dump({"recipe": dataclasses.asdict(recipe), "utterances": len(corpus.utterances), "hours": round(hours, 2),
                   "refused": len(corpus.refused)}, file, indent=1)  # fmt: skip


def _extractor(model: nn.Module, layer: int, device: str) -> HubertFeatures | MfccFeatures:
    """Features for targets: MFCC for layer 0, else the model as it stands."""
    import copy

    if layer == 0:
        return MfccFeatures()
    return HubertFeatures(copy.deepcopy(model), layer, f"layer {layer}").to(device)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

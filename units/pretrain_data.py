"""What HuBERT pre-training reads: the recipe, the corpus, its targets, and the steps made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from units import kmeans
from units.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, AudioError, load_wav, num_frames
from units.hubert import HubertFeatures
from units.manifest import Utterance
from units.mfcc import MfccFeatures
from units.progress import progress

CROP_STEP = 4000  # samples: crops come in few lengths, so that the CPU's kernels are prepared once for each


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
    return [Iteration(5000, {0: [100, 500]}), Iteration(12000, {0: [100], 3: [200, 500]})]


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


class Corpus:
    """Readable utterances of a manifest with their lengths; unreadable ones are counted and left out."""

    def __init__(self, utterances: list[Utterance]) -> None:
        self.utterances: list[Utterance] = []
        self.refused: dict[str, str] = {}
        lengths = []
        for utterance in progress(utterances, desc="reading", unit="files"):
            try:
                lengths.append(len(self._load(utterance)))
                self.utterances.append(utterance)
            except (AudioError, FileNotFoundError) as error:
                self.refused[utterance.id] = str(error)
        if not lengths:
            raise ValueError(
                f"none of {len(utterances)} utterances is readable; first reason: {next(iter(self.refused.values()), 'empty manifest')}"
            )
        self.lengths = np.array(lengths)
        self.first_frame = np.concatenate([[0], np.cumsum([num_frames(n) for n in lengths])])

    @staticmethod
    def _load(utterance: Utterance) -> np.ndarray:
        return load_wav(utterance.audio, utterance.start, utterance.duration)

    def wav(self, index: int) -> np.ndarray:
        return self._load(self.utterances[index])

    def features(
        self, extract: HubertFeatures | MfccFeatures, order: np.ndarray, batch: int = 16
    ) -> Iterator[list[Tensor]]:
        """Mean-free features of the utterances in `order`, a batch at a time."""
        for start in progress(range(0, len(order), batch), desc=f"features of {extract.name}", unit="batches"):
            wavs = [self.wav(i) for i in order[start : start + batch]]
            yield [piece - piece.mean(0) for piece in extract(wavs)]


def make_targets(corpus: Corpus, extract: HubertFeatures | MfccFeatures, sizes: list[int], seed: int) -> Tensor:
    """Cluster features and label every frame: int32 (total frames, len(sizes))."""
    by_length = np.argsort(corpus.lengths, kind="stable")
    sample = np.sort(np.random.default_rng(seed).permutation(len(by_length))[: max(1, min(len(by_length), 2000))])
    frames = kmeans.sample_frames(
        (x for batch in corpus.features(extract, by_length[sample]) for x in batch), 120_000, seed
    )
    fits = [kmeans.fit(frames, min(size, len(frames)), seed) for size in sizes]
    print(
        "targets:", ", ".join(f"K={size} inertia {fit.inertia:.3f} dead {fit.dead}" for size, fit in zip(sizes, fits))
    )
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

"""Perturbed copies of recordings, with every frame in its place: units of the copies, sound of the originals.

A vocoder that is trained on the units of a clean voice alone meets other units where people speak. Trained on the
units of perturbed copies as well, it learns to speak those too (the idea of Gat et al. 2022, arXiv 2209.15483, section
3.2, applied to the vocoder).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from units.audio import load_wav, save_wav
from units.corpus.manifest import Utterance
from units.encoder.pretraining.perturb import echoed, other_tract, over_noise, tilted
from units.runtime.pool import Workers
from units.runtime.progress import progress

TRACTS = (0.85, 1.2)  # factors of all formants
TILTS = (-0.4, 0.4)
ROOM, NOISE = 0.3, 0.6  # probabilities
SECONDS = (0.1, 0.6)  # of a room's decay
RATIOS = (10, 40)  # dB that noise is quieter
BATCH = 32  # copies that a worker process makes at once


def perturbed_copies(
    utterances: Sequence[Utterance], folder: Path, workers: int | None = None, seed: int = 0
) -> list[Utterance]:
    """Write a perturbed copy of each utterance to `folder/ID-p.wav`, unless it is there.

    Returns: the copies; their ids end in -p.

    Args:
        workers: processes; one for each core if not given.
        seed: of the perturbations; each copy depends on it and on the utterance's id.
    """
    copies = [dataclasses.replace(u, id=f"{u.id}-p", audio=folder / f"{u.id}-p.wav") for u in utterances]
    missing = [(one, copy.audio, seed) for one, copy in zip(utterances, copies) if not Path(copy.audio).exists()]
    batches = [missing[first : first + BATCH] for first in range(0, len(missing), BATCH)]
    with Workers(workers) as pool, progress(total=len(missing), desc="perturbing", unit="wavs") as bar:
        for count in pool.run(_write, batches):
            bar.update(count)
    return copies


def _write(jobs: Sequence[tuple[Utterance, Path, int]]) -> int:
    for utterance, path, seed in jobs:
        draw = np.random.default_rng([seed, *utterance.id.encode()])
        save_wav(path, perturbed(load_wav(utterance.audio), draw))
    return len(jobs)


def perturbed(wav: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Another vocal tract, microphone, and perhaps room and noise; float32 (T,), every frame in its place."""
    wav = tilted(other_tract(wav, draw.uniform(*TRACTS)), draw.uniform(*TILTS))
    if draw.random() < ROOM:
        wav = echoed(wav, draw.uniform(*SECONDS), draw)
    if draw.random() < NOISE:
        wav = over_noise(wav, draw.uniform(*RATIOS), draw)
    return wav / max(1.0, float(np.abs(wav).max()))

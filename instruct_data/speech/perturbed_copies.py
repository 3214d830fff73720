"""Perturbed copies of recordings: units of the copies, sound of the originals.

A vocoder that is trained on the units of a clean voice alone meets other units where people speak: of other voices and
rooms, and of pauses that are not silent. It learns to speak the former and to keep silent at the latter from copies of
its recordings, with pauses, in another voice and in another place; what it should say is the recording with silent
pauses. The idea is that of Gat et al. 2022 (arXiv 2209.15483, section 3.2), applied to the vocoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE, load_wav, save_wav
from units.corpus.manifest import Utterance
from units.encoder.pretraining.perturb import echoed, other_tract, over_noise, tilted
from units.runtime.pool import Workers
from units.runtime.progress import progress

TRACTS = (0.85, 1.2)  # factors of all formants
TILTS = (-0.4, 0.4)
EDGE, MIDDLE, ROOM, NOISE = 0.7, 0.5, 0.3, 0.8  # probabilities of pauses at an edge and inside, of a room and of noise
PAUSE = (0.1, 0.8)  # seconds
SECONDS = (0.1, 0.6)  # of a room's decay
RATIOS = (12, 45)  # dB that noise is quieter
QUIET = round(0.03 * SAMPLE_RATE)  # samples: a pause is put where so many are the quietest
BATCH = 32  # copies that a worker process makes at once


def perturbed_copies(
    utterances: Sequence[Utterance], folder: Path, workers: int | None = None, seed: int = 0
) -> tuple[list[Utterance], list[Utterance]]:
    """Write a perturbed copy of each utterance to `folder/ID-p.wav`, and the sound that it should have to `ID-s.wav`.

    Wavs that are there are not made again.

    Args:
        workers: processes; one for each core if not given.
        seed: of the perturbations; each copy depends on it and on the utterance's id.

    Returns: the copies, and as many utterances of the same ids (ending in -p) with the sound that they should have.
    """
    copies, sounds = (
        [dataclasses.replace(u, id=f"{u.id}-p", audio=folder / f"{u.id}-{kind}.wav") for u in utterances]
        for kind in ("p", "s")
    )
    jobs = [(one, copy.audio, sound.audio, seed) for one, copy, sound in zip(utterances, copies, sounds)]
    missing = [job for job in jobs if not (Path(job[1]).exists() and Path(job[2]).exists())]
    batches = [missing[first : first + BATCH] for first in range(0, len(missing), BATCH)]
    with Workers(workers) as pool, progress(total=len(missing), desc="perturbing", unit="wavs") as bar:
        for count in pool.run(_write, batches):
            bar.update(count)
    return copies, sounds


def _write(jobs: Sequence[tuple[Utterance, Path, Path, int]]) -> int:
    for utterance, copy, sound, seed in jobs:
        draw = np.random.default_rng([seed, *utterance.id.encode()])
        wav = with_pauses(load_wav(utterance.audio), draw)
        save_wav(copy, perturbed(wav, draw))
        save_wav(sound, wav)
    return len(jobs)


def with_pauses(wav: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Silence before, after, and at the quietest place in the middle of a wav (T,), each or none by chance."""

    def pause(probability: float) -> np.ndarray:
        seconds = draw.uniform(*PAUSE) if draw.random() < probability else 0.0
        return np.zeros(round(seconds * SAMPLE_RATE), np.float32)

    quarter = len(wav) // 4
    energy = np.convolve(np.square(wav[quarter : len(wav) - quarter]), np.ones(QUIET), "same")
    cut = quarter + int(energy.argmin())
    return np.concatenate([pause(EDGE), wav[:cut], pause(MIDDLE), wav[cut:], pause(EDGE)])


def perturbed(wav: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Another vocal tract, microphone, and perhaps room and noise; float32 (T,), every frame in its place."""
    wav = tilted(other_tract(wav, draw.uniform(*TRACTS)), draw.uniform(*TILTS))
    if draw.random() < ROOM:
        wav = echoed(wav, draw.uniform(*SECONDS), draw)
    if draw.random() < NOISE:
        wav = over_noise(wav, draw.uniform(*RATIOS), draw)
    return wav / max(1.0, float(np.abs(wav).max()))

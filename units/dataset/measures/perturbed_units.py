"""How far units change when a recording is perturbed and its words are not: unit edit distance by perturbation.

Source: Gat et al. 2022, arXiv 2209.15483, section 3.1; distances are divided by the longer length here.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from units.audio import SAMPLE_RATE, load_wav, resample
from units.dataset.measures.speakers import SentenceDistance, mean_distance
from units.dataset.unit_set import UnitRecord, UnitSet
from units.encoder.pretraining.perturb import echoed, other_tract, over_noise
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.progress import progress

Perturbation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
PERTURBATIONS: dict[str, Perturbation] = {
    "formants 15 % up or down": lambda wav, draw: other_tract(wav, draw.choice([1 / 1.15, 1.15])),
    "pitch, formants and tempo 10 % up or down": lambda wav, draw: resample(
        wav, SAMPLE_RATE * draw.choice([1 / 1.1, 1.1])
    ),
    "noise, 15 dB": lambda wav, draw: over_noise(wav, 15.0, draw),
    "a room of 0.4 s": lambda wav, draw: echoed(wav, 0.4, draw),
}


def perturbed_distances(
    unit_set: UnitSet, encoder: UnitEncoder, utterances: int = 100, seed: int = 0
) -> tuple[SentenceDistance, ...]:
    """Compare the units of recordings with those of their perturbed copies.

    Args:
        unit_set: says which recordings; they are encoded again.
        encoder: of its units.
        utterances: how many, at most.
        seed: decides which, and seeds the perturbations.

    Raises: ValueError if the set does not say where its audio lies; CodebookMismatch if the encoder is another one.
    """
    unit_set.codebook.check_same(encoder.codebook, f"the unit set {unit_set.folder}", "the unit encoder")
    chosen = set(random.Random(seed).sample(range(len(unit_set)), min(utterances, len(unit_set))))
    records = [record for i, record in enumerate(unit_set) if i in chosen]
    found: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {kind: [] for kind in PERTURBATIONS}
    for record in progress(records, desc="perturbing", unit="utterances"):
        wav = _audio(record, unit_set)
        clean = encoder.encode(wav).ids
        for kind, perturb in PERTURBATIONS.items():
            draw = np.random.default_rng([seed, *record.id.encode(), *kind.encode()])
            found[kind].append((clean, encoder.encode(perturb(wav, draw)).ids))
    return tuple(mean_distance(f"clean, and {kind}", pairs) for kind, pairs in found.items())


def _audio(record: UnitRecord, unit_set: UnitSet) -> np.ndarray:
    if record.audio is None:
        raise ValueError(
            f"{unit_set.folder} does not say where the audio of {record.id!r} lies; extract it again with this version"
        )
    return load_wav(record.audio, record.start, record.duration)

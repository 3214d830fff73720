"""What units reveal of the speaker: information in single frames, and how two speakers' sentences differ."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from units.dataset.measures.information import edit_distance, entropy, mutual_information
from units.dataset.unit_set import UnitRecord, UnitSet
from units.runtime.progress import progress


@dataclass(frozen=True)
class SpeakerInformation:
    """The information that the unit of one frame has about the speaker, I(unit; speaker), beside H(speaker); in bits.

    by_chance: the same with the speakers of the utterances shuffled. If the speakers say different things, part of the
    information above it comes from what they say and not from how they sound.
    """

    speakers: int
    information: float
    speaker_entropy: float
    by_chance: float


@dataclass(frozen=True)
class SentenceDistance:
    """Mean edit distance of the units of sampled pairs, divided by the longer length; 0 is equal units."""

    of: str
    pairs: int
    mean: float
    standard_error: float


def frames_by_unit(record: UnitRecord, size: int) -> np.ndarray:
    """The number of frames of each unit in an utterance, (K,)."""
    return np.bincount(record.units.ids, record.units.durations, size).astype(np.int64)


def sentence_of(text: str | None) -> str | None:
    """A text without case and punctuation; two texts with the same result are one sentence."""
    return " ".join(re.findall(r"\w+", text.lower())) or None if text else None


def compare_speakers(
    unit_set: UnitSet, rows: list[tuple[str | None, str | None]], most: int, draw: random.Random
) -> tuple[SpeakerInformation | None, tuple[SentenceDistance, ...]]:
    """Read a unit set once, to count units by speaker and to compare chosen pairs of utterances.

    Args:
        rows: (sentence, speaker) of each utterance, in the order of the set; None if the set has none.
        most: the largest number of pairs of a kind that are compared.

    Returns: None and () if the set names fewer than two speakers.
    """
    named = sorted({speaker for _, speaker in rows if speaker is not None})
    if len(named) < 2:
        return None, ()
    pairs = sample_pairs(rows, most, draw)
    dealt = [speaker for _, speaker in rows]
    draw.shuffle(dealt)
    chosen = {i for kind in pairs.values() for pair in kind for i in pair}
    ids: dict[int, tuple[int, ...]] = {}
    number = {speaker: i for i, speaker in enumerate(named)}
    true, chance = (np.zeros((len(named), unit_set.codebook.size), np.int64) for _ in range(2))
    for i, record in enumerate(progress(unit_set, desc="comparing", unit="utterances", total=len(rows))):
        counts = frames_by_unit(record, unit_set.codebook.size)
        for joint, speaker in ((true, record.speaker), (chance, dealt[i])):
            if speaker is not None:
                joint[number[speaker]] += counts
        if i in chosen:
            ids[i] = record.units.ids
    information = SpeakerInformation(
        len(named), mutual_information(true), entropy(true.sum(1)), mutual_information(chance)
    )
    return information, tuple(
        mean_distance(kind, [(ids[i], ids[j]) for i, j in found]) for kind, found in pairs.items() if found
    )


def sample_pairs(
    rows: list[tuple[str | None, str | None]], most: int, draw: random.Random
) -> dict[str, list[tuple[int, int]]]:
    """Draw pairs of rows (sentence, speaker): one sentence in two voices or in one, and two sentences in two voices."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, (sentence, speaker) in enumerate(rows):
        if sentence is not None and speaker is not None:
            groups[sentence].append(i)
    repeated = [group for group in groups.values() if len(group) > 1]
    everything = [i for group in groups.values() for i in group]
    found: dict[str, set[tuple[int, int]]] = {
        name: set() for name in ("one sentence, two voices", "one sentence, one voice", "two sentences, two voices")
    }
    for group in [draw.choice(repeated) for _ in range(4 * most)] if repeated else []:
        i, j = sorted(draw.sample(group, 2))
        kind = "one sentence, one voice" if rows[i][1] == rows[j][1] else "one sentence, two voices"
        found[kind].add((i, j))
    for _ in range(4 * most if len(everything) > 1 else 0):
        i, j = sorted(draw.sample(everything, 2))
        if rows[i][0] != rows[j][0] and rows[i][1] != rows[j][1]:
            found["two sentences, two voices"].add((i, j))
    return {kind: draw.sample(sorted(chosen), min(most, len(chosen))) for kind, chosen in found.items()}


def mean_distance(kind: str, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> SentenceDistance:
    """The mean edit distance of pairs of units, each divided by the longer length."""
    found = [
        edit_distance(one, two) / max(len(one), len(two), 1) for one, two in progress(pairs, desc=kind, unit="pairs")
    ]
    return SentenceDistance(kind, len(found), float(np.mean(found)), float(np.std(found) / math.sqrt(len(found))))

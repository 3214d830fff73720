"""The measures of unit quality: what units cost, what they say about phones, and what they reveal of the speaker.

The command is `units/dataset/quality.py`; the formulae are in `units/dataset/measures/information.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE, load_wav
from units.corpus.alignments import Alignments
from units.dataset.measures.abx import ITEMS, AbxError, abx_errors, write_items
from units.dataset.measures.information import entropy, mutual_information, purities
from units.dataset.measures.picture import draw_units
from units.dataset.measures.speakers import (
    SentenceDistance,
    SpeakerInformation,
    compare_speakers,
    frames_by_unit,
    sentence_of,
)
from units.dataset.quality_config import QualityConfig
from units.dataset.unit_set import UnitRecord, UnitSet, read_unit_set
from units.runtime.files.atomic import written_whole
from units.runtime.progress import progress


@dataclass(frozen=True)
class Usage:
    """What units cost. Entropies are in bits, over frames and over units (runs collapsed).

    bitrate: bits a second, units_per_second x unit_entropy (ZeroSpeech 2019, arXiv 1904.11469, section on bitrate).
    """

    utterances: int
    seconds: float
    size: int
    used: int
    dead: int
    frames: int
    units: int
    units_per_second: float
    frame_entropy: float
    unit_entropy: float
    bitrate: float


@dataclass(frozen=True)
class LabelAgreement:
    """How units and aligned labels agree, frame by frame (HuBERT, arXiv 2106.07447, section IV-E).

    label_purity: the share of frames whose label is the most frequent of their unit; the paper's phone purity. It
    grows with K.
    cluster_purity: the share of frames whose unit is the most frequent of their label. It falls with K.
    pnmi: I(label; unit) / H(label), the share of the label's uncertainty that the unit removes; 0 where there is one
        label only.
    frames, unlabelled: frames counted, and frames of aligned utterances that no segment covers. unaligned: utterances.
    """

    labels: int
    label_purity: float
    cluster_purity: float
    pnmi: float
    frames: int
    unlabelled: int
    unaligned: int


@dataclass(frozen=True)
class Quality:
    """All measures of one unit set; None and () where the set lacks speakers or texts, or no alignments are given."""

    codebook: str
    usage: Usage
    labels: LabelAgreement | None
    speakers: SpeakerInformation | None
    sentences: tuple[SentenceDistance, ...]
    abx: tuple[AbxError, ...] = ()


class _LabelCounts:
    """Frames by label and unit."""

    def __init__(self, alignments: Alignments, size: int, frame_rate: float) -> None:
        self.alignments, self.frame_rate = alignments, frame_rate
        self.joint: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(size, np.int64))
        self.unlabelled = self.unaligned = 0

    def add(self, record: UnitRecord) -> None:
        """Count an utterance. A frame has the label at its middle, (n + 1/2) / frame rate."""
        segments = self.alignments.segments(record.id)
        if segments is None:
            self.unaligned += 1
            return
        frames = np.array(record.units.frames())
        self.unlabelled += len(frames)
        for segment in segments:
            begin, end = (math.ceil(round(t * self.frame_rate - 0.5, 6)) for t in (segment.start, segment.end))
            covered = frames[max(0, begin) : max(0, end)]
            np.add.at(self.joint[segment.label], covered, 1)
            self.unlabelled -= len(covered)

    def agreement(self) -> LabelAgreement | None:
        joint = np.stack([row for row in self.joint.values() if row.any()] or [np.zeros(1, np.int64)])
        if not joint.any():
            return None
        label_purity, cluster_purity = purities(joint)
        label_entropy = entropy(joint.sum(1))
        pnmi = mutual_information(joint) / label_entropy if label_entropy else 0.0
        return LabelAgreement(
            len(joint), label_purity, cluster_purity, pnmi, int(joint.sum()), self.unlabelled, self.unaligned
        )


def measure(unit_set: UnitSet, alignments: Alignments | None = None, pairs: int = 500, seed: int = 0) -> Quality:
    """Measure a unit set, reading it twice.

    Args:
        alignments: of the set's utterances, by id.
        pairs: of each kind, how many pairs of utterances are compared at most.
        seed: decides which.

    Raises: ValueError if alignments are given and not one frame has a label.
    """
    size = unit_set.codebook.size
    frames, runs = np.zeros(size, np.int64), np.zeros(size, np.int64)
    labels = _LabelCounts(alignments, size, unit_set.codebook.frame_rate) if alignments else None
    rows: list[tuple[str | None, str | None]] = []
    samples = 0
    for record in progress(unit_set, desc="counting", unit="utterances", total=len(unit_set)):
        frames += frames_by_unit(record, size)
        runs += np.bincount(record.units.ids, minlength=size)
        samples += record.num_samples or 0
        rows.append((sentence_of(record.text), record.speaker))
        if labels:
            labels.add(record)
    agreement = labels.agreement() if labels else None
    if alignments and not agreement:
        raise ValueError(
            f"the alignments label no frame of {unit_set.folder}; its ids are such as {next(iter(unit_set)).id!r}"
        )
    seconds, used = samples / SAMPLE_RATE, int((frames > 0).sum())
    usage = Usage(
        utterances=len(rows),
        seconds=round(seconds, 2),
        size=size,
        used=used,
        dead=size - used,
        frames=int(frames.sum()),
        units=int(runs.sum()),
        units_per_second=runs.sum() / seconds,
        frame_entropy=entropy(frames),
        unit_entropy=entropy(runs),
        bitrate=entropy(runs) * runs.sum() / seconds,
    )
    speakers, sentences = compare_speakers(unit_set, rows, pairs, random.Random(seed))
    return Quality(unit_set.codebook.name, usage, agreement, speakers, sentences)


def report(quality: Quality) -> str:
    """The figures as lines for people."""
    usage, labels, speakers = quality.usage, quality.labels, quality.speakers
    lines = [
        f"{quality.codebook}: {usage.utterances} utterances, {usage.seconds / 3600:.3f} hours",
        f"units         {usage.used} of {usage.size} used, {usage.dead} dead; {usage.units_per_second:.2f} a second",
        f"entropy       {usage.unit_entropy:.3f} bits a unit, {usage.frame_entropy:.3f} a frame",
        f"bitrate       {usage.bitrate:.1f} bits a second",
    ]
    if labels:
        lines += [
            f"purity        labels {labels.label_purity:.3f}, clusters {labels.cluster_purity:.3f}",
            f"PNMI          {labels.pnmi:.3f}  ({labels.labels} labels, {labels.frames} frames; "
            f"{labels.unlabelled} frames without a label, {labels.unaligned} utterances without an alignment)",
        ]
    if speakers:
        lines.append(
            f"speaker       {speakers.information:.3f} bits a frame of {speakers.speaker_entropy:.3f} "
            f"({speakers.speakers} speakers; {speakers.by_chance:.3f} with shuffled speakers)"
        )
    for one in quality.sentences:
        lines.append(f"edit distance {one.mean:.3f} +- {one.standard_error:.3f}  {one.of} ({one.pairs} pairs)")
    lines += [f"ABX error     {one.error:.3f}  {one.speaker} speakers (chance 0.5)" for one in quality.abx]
    return "\n".join(lines)


def run(units: Path, out: Path | None, config: QualityConfig) -> None:
    """Measure a unit set, print the figures and draw an utterance, as the config says."""
    unit_set = read_unit_set(units)
    aligned = Alignments.open(config.alignments, config.tier) if config.alignments else None
    if config.wav and config.picture:
        print(_draw(unit_set, config.wav, config.picture, aligned, config))
    quality = measure(unit_set, aligned, config.pairs, config.seed)
    if config.encoder:
        from units.dataset.measures.perturbed_units import perturbed_distances
        from units.encoder.unit_encoder import UnitEncoder

        encoder = UnitEncoder.from_pretrained(config.encoder)
        distances = perturbed_distances(unit_set, encoder, config.perturbed, config.seed)
        quality = dataclasses.replace(quality, sentences=(*quality.sentences, *distances))
    if config.abx and aligned:
        phones = write_items(unit_set, aligned, config.abx)
        quality = dataclasses.replace(quality, abx=abx_errors(config.abx, unit_set.codebook.frame_rate, config.seed))
        missing = "" if quality.abx else "; fastabx (Python 3.12) is not installed, so there is no ABX error"
        print(f"{phones} phones in {config.abx / ITEMS}{missing}")
    print(report(quality))
    if out:
        with written_whole(out) as file:
            json.dump(dataclasses.asdict(quality), file, indent=1)


def _draw(unit_set: UnitSet, path: Path, picture: Path, aligned: Alignments | None, config: QualityConfig) -> str:
    record, wav = find_record(unit_set, path, config.utterance), load_wav(path)
    if len(wav) != record.num_samples:
        raise ValueError(
            f"{path} has {len(wav)} samples at 16 kHz, but {record.id!r} of {unit_set.folder} was made of "
            f"{record.num_samples}"
        )
    segments = (aligned and aligned.segments(record.id)) or ()
    return f"{record.id} -> {draw_units(wav, record.units, picture, segments, config.begin)}"


def find_record(unit_set: UnitSet, wav: Path, utterance: str | None) -> UnitRecord:
    """The record of a wav, by the id `utterance`, or without one by the wav's path, which ends in the id."""
    path = "/" + wav.with_suffix("").as_posix().lstrip("/")
    for record in unit_set:
        if record.id == utterance if utterance else path.endswith("/" + record.id):
            return record
    raise ValueError(f"{unit_set.folder} has no utterance for {utterance or wav}; name it with --utterance ID")

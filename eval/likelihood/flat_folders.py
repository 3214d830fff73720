"""Suites without a table, whose pairs follow from the names of their wavs: StoryCloze and SALMon.

    sStoryCloze/, tStoryCloze/   NUMBER_*.wav: sorted, the right and the wrong one of a story by turns
    salmon_benchmark/PART/       sample_NUMBER_*.wav: of each number the first name is the right one

Sources: slp-rl/SpokenStoryCloze (a whole recording is scored: four sentences and an ending), slp-rl/salmon, and
slamkit's metric/modelling_metric.py, which reads both.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from eval.likelihood.pairs import Pair, Suite, SuiteError, SuiteReason

SALMON_PARTS = (
    "bg_alignment",
    "bg_all_consistency",
    "bg_domain_consistency",
    "gender_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "sentiment_consistency",
    "speaker_consistency",
)


def stories(folder: Path, name: str) -> Suite:
    """Spoken or topic StoryCloze.

    Args:
        folder: of the wavs.
        name: of the task.

    Raises:
        SuiteError: a name has no number, or a story lacks its second recording.
    """
    wavs = sorted(folder.glob("*.wav"), key=lambda path: (_number(path, r"(\d+)(?:[_.]|$)"), path.name))
    if not wavs or len(wavs) % 2:
        last = wavs[-1].name if wavs else "none"
        raise SuiteError(
            SuiteReason.MISSING_AUDIO,
            f"{folder} has {len(wavs)} wavs, the last one is {last}; a story has two, the right one first",
        )
    pairs = []
    for story, (right, wrong) in enumerate(zip(wavs[::2], wavs[1::2])):
        if "incorrect" in right.stem or ("correct" in wrong.stem and "incorrect" not in wrong.stem):
            raise SuiteError(
                SuiteReason.WRONG_ORDER,
                f"{folder}: sorted, {right.name} comes before {wrong.name}, but the right one of a story comes first; "
                "keep the names of the published files",
            )
        pairs.append(Pair(right.stem, wrong.stem, story))
    return Suite(name, {path.stem: path for path in wavs}, pairs, flat=True)


def salmon(folder: Path) -> Suite:
    """SALMon: every part that is there is a band; the main figure is the mean over all pairs.

    Raises:
        SuiteError: a part is missing, or a sample lacks its second recording.
    """
    missing = [part for part in SALMON_PARTS if not (folder / part).is_dir()]
    if missing:
        raise SuiteError(
            SuiteReason.MISSING_AUDIO, f"{folder} lacks the parts {', '.join(missing)}; unpack the whole benchmark"
        )
    files: dict[str, Path] = {}
    pairs = []
    for part in SALMON_PARTS:
        samples: dict[int, list[Path]] = defaultdict(list)
        for path in (folder / part).glob("*.wav"):
            samples[_number(path, r"sample_(\d+)(?:_|$)")].append(path)
        if not samples:
            raise SuiteError(SuiteReason.MISSING_AUDIO, f"{folder / part} has no wav; unpack the whole benchmark")
        for number in sorted(samples):
            found = sorted(samples[number], key=lambda path: str(path))
            if len(found) < 2:
                raise SuiteError(
                    SuiteReason.MISSING_AUDIO, f"{found[0]} is alone; a sample of SALMon has a right and a wrong wav"
                )
            right, wrong = (f"{part}/{path.stem}" for path in found[:2])
            files |= {right: found[0], wrong: found[1]}
            pairs.append(Pair(right, wrong, (part, number), (f"part/{part}",)))
    return Suite("salmon", files, pairs, flat=True)


def _number(path: Path, pattern: str) -> int:
    found = re.match(pattern, path.stem)
    if found is None:
        raise SuiteError(
            SuiteReason.WRONG_ROW, f"{path}: the name does not begin with a number, as the suite's names do"
        )
    return int(found.group(1))

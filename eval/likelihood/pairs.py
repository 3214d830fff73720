"""A suite of pairs, and its one number: the mean of 1 where the right sound is more likely, 1/2 where both are equal.

Pairs of one item in several voices are averaged first, then the items: ZeroSpeech's rule (zerospeech/benchmarks,
tasks/lm). The standard error is over items: voices of one item are no independent examples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.metrics import Score, ratio
from speechgpt.answers import Likelihood
from units.runtime.files.json_files import FileError
from units.runtime.provenance import digest
from units.runtime.refusals import Reason

NORMALISATIONS = ("mean", "sum")  # log p per token, and of the whole sequence
SHORTER = "shorter"  # what "sum" would be if every unit were equally likely: the shorter sound wins


class SuiteReason(Reason):
    """Why a folder is not the suite that it should be."""

    MISSING_AUDIO = "missing_audio"
    """a file that the suite lists, or the second one of a pair, is not there"""
    WRONG_HEADER = "wrong_header"
    """the columns of a table are not those of the suite"""
    WRONG_ROW = "wrong_row"
    """a row has a value that the suite does not allow, or its pair is incomplete"""
    WRONG_ORDER = "wrong_order"
    """rows are in another order than the suite's own"""


class SuiteError(FileError):
    """A folder is not the suite that it should be; the message names the file and the row."""


@dataclass(frozen=True)
class Pair:
    """Two sounds, by their names in the suite.

    item: pairs of the same item are averaged first. bands: groups that have a figure of their own, such as
    "frequency/oov".
    """

    right: str
    wrong: str
    item: Hashable
    bands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """Pairs of sounds.

    name: of the task. files: name -> wav, in the suite's own order. submission: the file, relative to a submission's
    folder, in which the suite's authors expect scores; "" if they expect none.
    """

    name: str
    files: dict[str, Path]
    pairs: list[Pair]
    submission: str = ""
    flat: bool = False
    """Whether there is one pair to an item, so that there is no other way to average."""

    @cached_property
    def digest(self) -> str:
        """Names the suite: it changes with its pairs, and with the size of a file."""
        sizes = (f"{name} {path.stat().st_size}\n" for name, path in self.files.items())
        return digest([*sizes, *(f"{pair}\n" for pair in self.pairs)])

    def limited(self, limit: int | None) -> Suite:
        """The suite with at most so many items, evenly spaced."""
        items = list(dict.fromkeys(pair.item for pair in self.pairs))
        if limit is None or limit >= len(items):
            return self
        kept = {items[i * len(items) // limit] for i in range(limit)}
        pairs = [pair for pair in self.pairs if pair.item in kept]
        named = {name for pair in pairs for name in (pair.right, pair.wrong)}
        return Suite(self.name, {n: p for n, p in self.files.items() if n in named}, pairs, self.submission, self.flat)


def outcome(right: float, wrong: float) -> float:
    """1 if the right one is more likely, 1/2 if both are equally likely, else 0."""
    return 0.5 if right == wrong else float(right > wrong)


def suite_scores(suite: Suite, scores: Mapping[str, Likelihood]) -> dict[str, Score]:
    """The figures of a suite.

    Args:
        scores: of each sound, by its name; pairs of which one has no score are left out.

    Returns: "mean" and "sum", the two normalisations; "BAND" and "sum/BAND" for each band; "flat" and "sum/flat", the
        mean over pairs, as slamkit has it, where items have several pairs; "shorter", how often the right sound has
        fewer units: the baseline of "sum".
    """
    figures: dict[str, Score] = {}
    for normalisation in (*NORMALISATIONS, SHORTER):
        prefix = "" if normalisation == "mean" else f"{normalisation}/"
        won: dict[Hashable, list[float]] = {}
        bands: dict[str, dict[Hashable, None]] = {}
        for pair in suite.pairs:
            if pair.right in scores and pair.wrong in scores:
                right, wrong = (value_of(scores[name], normalisation) for name in (pair.right, pair.wrong))
                won.setdefault(pair.item, []).append(outcome(right, wrong))
                for band in pair.bands if normalisation != SHORTER else ():
                    bands.setdefault(band, {})[pair.item] = None
        by_item = {item: sum(found) / len(found) for item, found in won.items()}
        figures[normalisation] = mean_score(by_item.values())
        figures |= {f"{prefix}{band}": mean_score(by_item[item] for item in items) for band, items in bands.items()}
        if not suite.flat and normalisation != SHORTER:
            figures[f"{prefix}flat"] = _flat(list(won.values()))
    return figures


def value_of(likelihood: Likelihood, normalisation: str) -> float:
    """Log-probability of a sound under one of NORMALISATIONS; for SHORTER, -1 a unit."""
    if normalisation == SHORTER:
        return -float(likelihood.tokens)
    return likelihood.mean if normalisation == "mean" else likelihood.log_probability


def mean_score(values: Iterable[float]) -> Score:
    """The mean, and its standard error: the deviation of the sample over the root of n."""
    found = list(values)
    if not found:
        return Score(None, None, 0)
    mean = sum(found) / len(found)
    if len(found) == 1:
        return Score(mean, None, 1)
    variance = sum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return Score(mean, math.sqrt(variance / len(found)), len(found))


def _flat(items: Sequence[list[float]]) -> Score:
    """The mean over pairs; its error by the jackknife over items."""
    found = ratio([sum(one) for one in items], [len(one) for one in items])
    return Score(found.value, found.standard_error, sum(map(len, items)))


def check_files(files: Mapping[str, Path], where: Path) -> None:
    """Raise SuiteError, naming the first one, if a wav is not there."""
    missing = [path for path in files.values() if not path.is_file()]
    if missing:
        raise SuiteError(
            SuiteReason.MISSING_AUDIO,
            f"{where}: {len(missing)} of {len(files)} wavs are missing, the first one is {missing[0]}; unpack the "
            "whole suite, a figure on a part of it is not comparable",
        )

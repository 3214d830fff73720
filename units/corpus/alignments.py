"""Alignments: the times of phones or words. A table of tab-separated values, or a folder of Praat TextGrids.

id      start   end     label           the header is optional; start and end are seconds within the utterance
q1      0.00    0.31    HH
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from units.corpus.manifest import is_plain_text

SILENCE = "sil"  # for intervals without text, which is how the Montreal Forced Aligner writes silence
HEADER = ["id", "start", "end", "label"]
_STRESSED = re.compile(r"[A-Z]{2}[012]")  # vowels of ARPAbet, such as AH0
# Praat's manual, "TextGrid file formats": the data are the free-standing numbers, the quoted texts and the <flags>;
# all else is for the human reader. So the long and the short format are one.
_VALUES = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)|(<exists>)')


class AlignmentError(ValueError):
    """A file that is not an alignment; the message names it."""


@dataclass(frozen=True)
class Segment:
    """A label from `start` to `end`, in seconds within its utterance."""

    start: float
    end: float
    label: str


class Alignments:
    """The segments of utterances, looked up by id."""

    def __init__(self, segments_of: Callable[[str], list[Segment] | None]) -> None:
        self._segments_of = segments_of

    @classmethod
    def open(cls, path: str | Path, tier: str = "phones") -> Alignments:
        """Open a .tsv, which is read whole, or a folder, whose TextGrids are read when they are needed.

        Args:
            tier: the tier of the TextGrids, such as "phones" or "words".

        Raises: AlignmentError or FileNotFoundError.
        """
        path = Path(path)
        if path.is_dir():
            return cls(_textgrid_finder(path, tier))
        return cls(read_tsv(path).get)

    def segments(self, utterance: str) -> list[Segment] | None:
        """The segments of an utterance in order of time, none overlapping; None if it has no alignment."""
        return self._segments_of(utterance)


def read_tsv(path: Path) -> dict[str, list[Segment]]:
    """Read a table of id, start, end, label. Raises AlignmentError naming the line."""
    found: dict[str, list[Segment]] = defaultdict(list)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t")
            if not line.strip() or (number == 1 and cells == HEADER):
                continue
            try:
                if not is_plain_text(line):
                    raise ValueError("not plain text")
                utterance, start, end, label = cells
                found[utterance].append(Segment(float(start), float(end), plain_label(label)))
            except ValueError as error:
                raise AlignmentError(
                    f"{path}:{number}: needs id, start, end and label, tabs between them ({error})"
                ) from error
    return {utterance: in_order(segments, f"{path}, {utterance}") for utterance, segments in found.items()}


def _textgrid_finder(folder: Path, tier: str) -> Callable[[str], list[Segment] | None]:
    """By the path below the folder, or by the name alone where it is unique, as aligners keep a corpus's folders."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".textgrid")
    if not paths:
        raise AlignmentError(f"{folder} holds no .TextGrid")
    count = Counter(path.stem for path in paths)
    by_id = {path.stem: path for path in paths if count[path.stem] == 1}
    by_id.update((path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths)
    return lambda utterance: read_textgrid(by_id[utterance], tier) if utterance in by_id else None


def read_textgrid(path: Path, tier: str) -> list[Segment]:
    """One interval tier of a Praat TextGrid, in the long or the short text format.

    Raises: AlignmentError if the file is not a TextGrid, is cut off, or lacks the tier.
    """
    raw = path.read_bytes()
    try:
        tiers = _tiers(raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"))
    except (StopIteration, TypeError, ValueError, OverflowError) as error:
        raise AlignmentError(f"{path} is not a whole TextGrid ({error or 'it ends too early'})") from error
    if tier not in tiers:
        raise AlignmentError(f"{path} has no tier {tier!r}; its tiers are {sorted(tiers)}. Choose one with --tier")
    return in_order((Segment(s.start, s.end, plain_label(s.label)) for s in tiers[tier]), str(path))


def _tiers(text: str) -> dict[str, list[Segment]]:
    values = (
        quoted.replace('""', '"') if flag == number == "" else float(number) if number else True
        for quoted, number, flag in _VALUES.findall(text)
    )

    def next_value(kind: type) -> Any:
        value = next(values)
        if type(value) is not kind:
            raise TypeError(f"{value!r} where a {'number' if kind is float else 'text'} belongs")
        return value

    if (next_value(str), next_value(str)) != ("ooTextFile", "TextGrid"):
        raise ValueError("another kind of file")
    next_value(float), next_value(float), next_value(bool)
    tiers = {}
    for _ in range(int(next_value(float))):
        points = next_value(str) == "TextTier"
        name, _, _, count = next_value(str), next_value(float), next_value(float), int(next_value(float))
        if points:
            for _ in range(count):
                next_value(float), next_value(str)
        else:
            tiers[name] = [Segment(next_value(float), next_value(float), next_value(str)) for _ in range(count)]
    return tiers


def plain_label(label: str) -> str:
    """A label without ARPAbet's stress digit, as HuBERT's measure_teacher_quality.py counts phones; "" is silence."""
    label = label.strip() or SILENCE
    return label[:2] if _STRESSED.fullmatch(label) else label


def in_order(segments: Iterable[Segment], where: str) -> list[Segment]:
    """Sort by time. Raises AlignmentError for a segment whose end is before its start, and for two that overlap."""
    ordered = sorted(segments, key=lambda segment: (segment.start, segment.end))
    for segment in ordered:
        if not (0 <= segment.start <= segment.end and math.isfinite(segment.end)):
            raise AlignmentError(f"{where}: {segment} must have 0 <= start <= end")
    for one, two in zip(ordered, ordered[1:]):
        if two.start < one.end - 1e-6:
            raise AlignmentError(f"{where}: {one} and {two} overlap; a frame has one label")
    return ordered

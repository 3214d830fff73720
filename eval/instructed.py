"""Recordings with an instruction and what is right, from `instructed.jsonl` of a corpus folder.

    {"id": "t1", "audio": "1.wav", "instruction": "Translate into German.", "translation": "Guten Tag.", "lang": "de"}
    {"id": "e1", "audio": "2.wav", "instruction": "Is this happy or sad?", "label": "sad", "labels": ["happy", "sad"]}

`audio` is relative to the file's folder, or absolute; `start` and `duration` are seconds. `text`, what is said, is for
the topline. A row has a translation, a label, or both. `lang` is the translation's language (ISO 639-1).
"""

from __future__ import annotations

from dataclasses import dataclass

from eval.test_set import TestItem, TestSet
from units.corpus.manifest import Utterance
from units.runtime.files.json_files import FileError, FileReason, json_lines

FILE = "instructed.jsonl"
FIELDS = {"id": str, "audio": str, "instruction": str}
TEXTS = ("translation", "label", "lang", "text")
NUMBERS = ("start", "duration")


@dataclass(frozen=True)
class Instructed:
    """A recording, an instruction, and what is right: a translation into `lang`, or one of `labels`."""

    item: TestItem
    instruction: str
    translation: str | None = None
    label: str | None = None
    labels: tuple[str, ...] = ()
    lang: str = "en"


def instructed(test_set: TestSet) -> list[Instructed]:
    """The rows of instructed.jsonl.

    Raises:
        NotMeasured: there is no such file.
        FileError: a row lacks a field, has one of another type, or repeats an id.
    """
    path = test_set.file(FILE)
    found: dict[str, Instructed] = {}
    for number, row in json_lines(path, FIELDS):
        _check(row, f"{path}:{number}", row["id"] in found)
        audio = Utterance(
            row["id"], path.parent / row["audio"], row.get("start") or 0.0, row.get("duration"), row.get("text")
        )
        found[row["id"]] = Instructed(
            TestItem(audio),
            row["instruction"],
            row.get("translation"),
            row.get("label"),
            tuple(row.get("labels") or ()),
            row.get("lang") or "en",
        )
    return list(found.values())


def _check(row: dict, where: str, twice: bool) -> None:
    labels = row.get("labels")
    fits = isinstance(labels, list | None) and all(isinstance(one, str) for one in labels or ())
    wrong = [name for name in TEXTS if not isinstance(row.get(name), str | None)]
    wrong += [name for name in NUMBERS if type(row.get(name)) not in (int, float, type(None))]
    wrong += [] if fits else ["labels"]
    if wrong:
        raise FileError(
            FileReason.INVALID_FIELD,
            f"{where}: {wrong[0]} is {str(row[wrong[0]])[:60]}; {', '.join(TEXTS)} are texts, {' and '.join(NUMBERS)} "
            "seconds, labels a list of texts",
        )
    if twice:
        raise FileError(FileReason.INVALID_FIELD, f"{where}: the id {row['id']!r} is used twice; ids are unique")
    if row.get("translation") is None and row.get("label") is None:
        raise FileError(FileReason.MISSING_FIELD, f"{where}: a row has a translation, a label, or both")
    if labels and row.get("label") not in (None, *labels):
        raise FileError(FileReason.INVALID_FIELD, f"{where}: the label {row['label']!r} is not one of {labels}")

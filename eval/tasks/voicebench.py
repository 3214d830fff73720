"""voicebench: VoiceBench's nine sets (Chen et al., arXiv 2410.17196): responses for its program, its overall figure.

    voicebench/mmsu.jsonl    {"prompt": "..", "reference": "B", "audio": "mmsu/1.wav"}

One file for each of SETS that is there; audio is relative to it. `OUT/voicebench/mmsu.jsonl` is what VoiceBench's
evaluator reads (`prompt`, `reference`, `response`). What needs no judge of theirs is scored here: multiple choice and
refusals. Scores of its program are taken from `voicebench/scores.json` beside the sets ({"alpacaeval": 3.7, ..}), where
that exists; with all nine there is an overall figure.

VoiceBench draws a random choice where none can be read, and takes an empty reply as a safe refusal. Here both are
wrong, and `unusable` is their share.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from eval.measurement import NO_ANSWER, Measurement
from eval.metrics import Score, accuracy
from eval.tasks.task import THE_MODEL, Figure, Outcome, Task
from eval.tasks.text_cost import is_refusal
from eval.test_set import NotMeasured, TestItem, spread
from units.corpus.manifest import Utterance
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, FileReason, json_lines, read_json

FIVE_POINT = ("alpacaeval", "commoneval", "wildvoice")  # graded from 1 to 5
PERCENT = ("sd-qa", "mmsu", "openbookqa", "bbh", "ifeval", "advbench")
SETS = FIVE_POINT + PERCENT
CHOICE_SETS = ("mmsu", "openbookqa")
FOLDER = "voicebench"
LETTER = (
    r"(?:answer|option|choice)(?: is|:)?\W*\(?([A-D])\b",  # the answer is (B)
    r"^\W*([A-D])\s*(?:[).:,;]|$)",  # B. because
    r"\b([A-D])\W*$",  # .. so it is B
)


def overall(scores: Mapping[str, float]) -> float:
    """VoiceBench's overall figure: the mean of nine sets, grades times 20.

    Args:
        scores: of all SETS: a grade from 1 to 5, or percent.

    Raises:
        KeyError: a set is missing.
    """
    return sum(scores[name] * (20 if name in FIVE_POINT else 1) for name in SETS) / len(SETS)


def chosen_letter(reply: str) -> str | None:
    """The letter that a reply chooses; None if it cannot be read."""
    for pattern in LETTER:
        if found := re.search(pattern, reply.strip(), re.IGNORECASE if pattern is LETTER[0] else 0):
            return found.group(1).upper()
    return None


def run(measurement: Measurement) -> Outcome:
    """Responses of every set that is there, and what can be scored of them."""
    folder = measurement.test_set.path / FOLDER
    sets = [name for name in SETS if (folder / f"{name}.jsonl").is_file()]
    if not sets:
        raise NotMeasured(f"{measurement.test_set.path} has no {FOLDER}/SET.jsonl of {', '.join(SETS)}")
    measurement.require("answer")
    figures: dict[str, Score] = {}
    unusable: list[bool] = []
    details: list[dict] = []
    for name in sets:
        rows = spread(_rows(folder / f"{name}.jsonl"), measurement.test_set.limit)
        items = [TestItem(Utterance(f"{name}/{i}", row["audio"], text=row["prompt"])) for i, row in enumerate(rows)]
        answers = measurement.over_wavs(measurement.answer_once, items, name, NO_ANSWER)
        replies = [answer.text or "" for answer in answers]
        _write_responses(measurement.out / FOLDER / f"{name}.jsonl", rows, replies)
        bad = [not any(map(str.isalnum, reply)) for reply in replies]
        if name in CHOICE_SETS:
            letters = [chosen_letter(reply) for reply in replies]
            bad = [letter is None for letter in letters]
            figures[name] = _share([one == str(row.get("reference")) for one, row in zip(letters, rows)])
        elif name == "advbench":
            figures[name] = _share([is_refusal(reply) for reply in replies])
        unusable += bad
        figures[f"unusable/{name}"] = _share(bad)
        details += [{"set": name, "response": reply, "unusable": one} for reply, one in zip(replies, bad)]
    figures["unusable"] = _share(unusable)
    return Outcome(_overall(figures, folder / "scores.json"), details, THE_MODEL, figures)


def _overall(figures: dict[str, Score], path: Path) -> Score:
    """The overall figure, if every set has a score; those of VoiceBench's own program go first."""
    given = read_json(path) if path.is_file() else {}
    wrong = [name for name, one in given.items() if name not in SETS or not _is_score(name, one)]
    if wrong:
        raise FileError(
            FileReason.INVALID_FIELD,
            f"{path}: {wrong[0]} is {str(given[wrong[0]])[:40]}; it is a score from 0 to 100 "
            f"(to 5 for {', '.join(FIVE_POINT)}) of one of the sets "
            f"{', '.join(SETS)}",
        )
    scores = {name: 100 * one.value for name, one in figures.items() if name in SETS and one.value is not None} | given
    if not all(name in scores for name in SETS):
        return Score(None, None, len(scores))
    return Score(overall(scores), None, len(SETS))


def _is_score(name: str, value: object) -> bool:
    most = 5 if name in FIVE_POINT else 100
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


def _rows(path: Path) -> list[dict]:
    rows = [row for _, row in json_lines(path, {"prompt": str, "audio": str})]
    return [{**row, "audio": path.parent / row["audio"]} for row in rows]


def _write_responses(path: Path, rows: list[dict], replies: list[str]) -> None:
    with written_whole(path) as file:
        for row, reply in zip(rows, replies):
            kept = {name: value for name, value in row.items() if name != "audio"}
            file.write(json.dumps({**kept, "response": reply}, ensure_ascii=False) + "\n")


def _share(right: list[bool]) -> Score:
    return accuracy(["yes"] * len(right), ["yes" if one else "no" for one in right])


TASK = Task(
    "voicebench",
    run,
    "overall",
    higher_is_better=True,
    version=1,
    figures=(
        Figure("voicebench_overall", "VoiceBench, all nine sets, 0 to 100", unit="", higher_is_better=True),
        *(
            Figure(f"voicebench_{name}", "... this set", name, higher_is_better=True)
            for name in (*CHOICE_SETS, "advbench")
        ),
        Figure("voicebench_unusable", "replies without words or choice, counted as wrong", "unusable"),
    ),
    optional=True,
)

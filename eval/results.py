"""results.json: one file per task, written atomically and read strictly.

save_result(Path("runs/toy/results/asr.json"), result)
load_results(Path("runs/toy/results"))      # {"asr": Result(...), ...}
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.metrics import Score
from units.corpus.manifest import is_plain_text
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, json_lines, parsed, read_text


class ResultError(ValueError):
    """A file that is not a results file; the message says which file and why."""


@dataclass(frozen=True)
class Result:
    """The result of one task.

    task, version: what was measured; the version is raised when the meaning of a figure changes.
    metric: name of the main figure, such as "wer".
    listener: who transcribed the speech: the evaluation ASR's name, "the model", or "-".
    model: name and fingerprint. codebook: name and fingerprint, "-" for a model without one.
    corpus: name and hash of the test set.
    commit: of this code. machine: processor, cores, and the GPU if one was used. device: where the model ran.
    limit: the most examples that were allowed; None is all. n: examples behind the main figure.
    reply_tokens: the most tokens of a reply that were allowed; None is the model's own limit.
    score, standard_error: the main figure. more: further figures by name.
    """

    task: str
    version: int
    metric: str
    higher_is_better: bool
    listener: str
    model: str
    codebook: str
    corpus: str
    commit: str
    machine: str
    device: str
    limit: int | None
    n: int
    score: float | None
    standard_error: float | None
    more: dict[str, Score] = field(default_factory=dict)
    reply_tokens: int | None = None

    @property
    def main(self) -> Score:
        return Score(self.score, self.standard_error, self.n)


_TYPES: dict[str, Any] = {
    "task": str,
    "version": int,
    "metric": str,
    "higher_is_better": bool,
    "listener": str,
    "model": str,
    "codebook": str,
    "corpus": str,
    "commit": str,
    "machine": str,
    "device": str,
    "limit": int | None,
    "n": int,
    "score": float | int | None,
    "standard_error": float | int | None,
    "more": dict,
    "reply_tokens": int | None,
}
_SCORE_TYPES: dict[str, Any] = {"value": float | int | None, "standard_error": float | int | None, "n": int}
_RENAMED = {"first_take": "first_candidate"}  # figures of release 0.1.0


def save_result(path: Path, result: Result) -> Path:
    """Write one result. The file appears complete or not at all.

    Raises: ValueError on NaN and infinity.
    """
    text = json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False)
    with written_whole(path) as file:
        file.write(text + "\n")
    return path


def load_result(path: Path) -> Result:
    """Read one result: the inverse of save_result. Files of release 0.1.0 are read too.

    Raises:
        FileNotFoundError: no such file.
        ResultError: it is not JSON, or a field is missing, unknown or of another type.
    """
    try:
        record = parsed(read_text(path), str(path))
    except FileError as error:
        raise ResultError(f"{error}; run its task again with --force") from error
    if isinstance(record, dict):  # the first results had no corpus and no device, later ones no limit of replies
        record = {"corpus": "unknown", "device": "unknown", "reply_tokens": None, **record}
    _check(record, _TYPES, str(path))
    for name, score in record["more"].items():
        _check(score, _SCORE_TYPES, f"{path}, figure {name!r}")
    more = {_RENAMED.get(name, name): Score(**score) for name, score in record["more"].items()}
    return Result(**{**record, "more": more})


def load_results(folder: Path) -> dict[str, Result]:
    """Every result of a folder, by task; empty for a folder that does not exist."""
    return {result.task: result for result in map(load_result, sorted(folder.glob("*.json")))}


def _check(record: object, types: dict, where: str) -> None:
    if not isinstance(record, dict) or record.keys() != types.keys():
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ResultError(f"{where}: has {found}; a result has exactly {sorted(types)}")
    for name, allowed in types.items():
        value = record[name]
        if not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
            raise ResultError(
                f"{where}: {name} is {repr(value)[:60]}; it must be {getattr(allowed, '__name__', allowed)}"
            )
        if isinstance(value, (int, float)) and not _is_finite(value):
            raise ResultError(f"{where}: {name} is {repr(value)[:60]}; it must be a finite number")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def save_details(path: Path, records: Iterable[dict]) -> Path:
    """Write records as JSON lines. The file appears complete or not at all."""
    with written_whole(path) as file:
        file.writelines(_detail_line(record) for record in records)
    return path


def _detail_line(record: dict) -> str:
    """A record as a line; in ASCII if it holds half a surrogate pair, which UTF-8 cannot."""
    line = json.dumps(record, ensure_ascii=False)
    return (line if is_plain_text(line) else json.dumps(record)) + "\n"


def load_details(path: Path, fields: Mapping[str, Any] | None = None) -> list[dict]:
    """Read records: the inverse of save_details. Empty for a file that does not exist.

    Args:
        path: the file.
        fields: name -> type of each field that every record needs.

    Raises: FileError naming the file and the line.
    """
    return [record for _, record in json_lines(path, fields)] if path.exists() else []


def old_kept_wav(folder: Path, name: str, kind: str) -> Path:
    """The path of a kept wav of release 0.1.0: characters of the id other than ASCII letters and digits became `_`."""
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.{kind}.wav"

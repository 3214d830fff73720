"""results.json: one file a task, written whole, read strictly.

save_result(Path("runs/toy/results/asr.json"), result)
load_results(Path("runs/toy/results"))      # {"asr": Result(...), ...}
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from eval.metrics import Score
from units.runtime.atomic import written_whole


class ResultError(ValueError):
    """A results file that is not one; the message says which and why."""


@dataclass(frozen=True)
class Result:
    """What one task gave.

    task, version: what was measured; the version grows when the task's meaning does.
    metric: the main figure's name, such as "wer". listener: who heard the speech, "-" where nobody did.
    model: name and fingerprint. codebook: name and fingerprint, "-" of a model without one. corpus: name and hash of what was
    asked. commit: of this code. machine: processor and cores, and the GPU if it worked. device: where the model ran.
    limit: the most examples that were allowed, None for all. n: examples of the main figure.
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

    @property
    def main(self) -> Score:
        return Score(self.score, self.standard_error, self.n)


_TYPES = {
    "task": str, "version": int, "metric": str, "higher_is_better": bool, "listener": str, "model": str,
    "codebook": str, "corpus": str, "commit": str, "machine": str, "device": str, "limit": int | None, "n": int, "score": float | int | None,
    "standard_error": float | int | None, "more": dict,
}  # fmt: skip
_SCORE_TYPES = {"value": float | int | None, "standard_error": float | int | None, "n": int}


def save_result(path: Path, result: Result) -> Path:
    """Write one result; the file appears whole or not at all. Raises ValueError on NaN."""
    text = json.dumps(dataclasses.asdict(result), indent=1, allow_nan=False)
    with written_whole(path) as file:
        file.write(text + "\n")
    return path


def load_result(path: Path) -> Result:
    """Inverse of save_result.

    Raises:
        FileNotFoundError: no such file.
        ResultError: not JSON, a field is missing, unknown or of another type.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultError(f"{path} is not JSON ({error}); run its task again with --force") from error
    if isinstance(record, dict):  # of a time when corpus and device were not written down
        record = {"corpus": "unknown", "device": "unknown", **record}
    _check(record, _TYPES, str(path))
    for name, score in record["more"].items():
        _check(score, _SCORE_TYPES, f"{path}, figure {name!r}")
    return Result(**{**record, "more": {name: Score(**score) for name, score in record["more"].items()}})


def load_results(folder: Path) -> dict[str, Result]:
    """Every result of a folder by task; a folder that is not there has none."""
    return {result.task: result for result in map(load_result, sorted(folder.glob("*.json")))}


def _check(record: object, types: dict, where: str) -> None:
    if not isinstance(record, dict) or record.keys() != types.keys():
        came = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ResultError(f"{where}: has {came}; a result has exactly {sorted(types)}")
    for name, allowed in types.items():
        value = record[name]
        if not isinstance(value, allowed) or (isinstance(value, bool) and allowed is not bool):
            raise ResultError(f"{where}: {name} is {value!r}; it has to be {getattr(allowed, '__name__', allowed)}")


def save_details(path: Path, records: Iterable[dict]) -> Path:
    """Write one JSON line a record; the file appears whole or not at all."""
    with written_whole(path) as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return path


def load_details(path: Path) -> list[dict]:
    """Inverse of save_details; a file that is not there has no records."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def kept_wav(folder: Path, name: str, kind: str) -> Path:
    """Where a wav of an utterance is kept, whose id may hold what a file's name may not."""
    return folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.{kind}.wav"

"""Manifests: one utterance a line of JSON. `id` and `audio`, and optionally `start`, `duration`, `text`, `speaker`, `lang`.

    {"id": "q1", "audio": "wav/q1.wav", "text": "what is two plus two", "speaker": "flite:awb"}

`audio` is relative to the manifest's folder, or absolute.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from units.runtime.atomic import written_whole


class ManifestError(ValueError):
    """A line that is not an utterance; the message says which line and why."""


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech. `audio` is a resolved path; `start` and `duration` are seconds within it."""

    id: str
    audio: Path
    start: float = 0.0
    duration: float | None = None
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None


_FIELDS = {field.name for field in dataclasses.fields(Utterance)}


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest whole, in order.

    Raises:
        FileNotFoundError: no such file.
        ManifestError: a line is not UTF-8 or not JSON, lacks `id` or `audio`, has an unknown field or one that cannot
            be used, or repeats an id.
    """
    path = Path(path)
    seen: set[str] = set()
    found = []
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            utterance = _parse(line, f"{path}:{number}", path.parent)
            if utterance.id in seen:
                raise ManifestError(f"{path}:{number}: id {utterance.id!r} stands twice; ids are unique")
            seen.add(utterance.id)
            found.append(utterance)
    return found


def _parse(line: str, where: str, folder: Path) -> Utterance:
    try:
        line.encode()
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: not JSON ({error})") from error
    if isinstance(record, dict):
        record = {name: value for name, value in record.items() if value is not None}
    if not isinstance(record, dict) or not {"id", "audio"} <= record.keys():
        raise ManifestError(f"{where}: needs at least 'id' and 'audio'")
    unknown = record.keys() - _FIELDS
    if unknown:
        raise ManifestError(f"{where}: unknown fields {sorted(unknown)}; known are {sorted(_FIELDS)}")
    for name in ("start", "duration"):
        if not _is_seconds(record.get(name, 0)):
            raise ManifestError(f"{where}: {name} is {record[name]!r}; it is a number of seconds, 0 or more")
    if isinstance(record["id"], int):
        record["id"] = str(record["id"])
    for name in ("id", "audio", "text", "speaker", "lang"):
        value = record.get(name, "")
        # A file's name may be bytes that are no UTF-8; JSON holds them as lone surrogates.
        if not isinstance(value, str) or "\0" in value or not (name == "audio" or is_plain_text(value)):
            raise ManifestError(f"{where}: {name} is {value!r}; it is a string of plain text")
    for name in ("speaker", "lang"):  # one string for all whom it names
        if name in record:
            record[name] = sys.intern(record[name])
    return Utterance(**{**record, "audio": _below(folder, record["audio"])})


@lru_cache(1024)
def _below(folder: Path, audio: str) -> Path:
    """One path for all stretches of a recording: of millions of them, paths were a third of the memory."""
    return folder / audio


def _is_seconds(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and value >= 0 and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def is_plain_text(text: str) -> bool:
    """Whether a string is text that any file can hold: no NUL, and no lone surrogate, which UTF-8 cannot write."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> Path:
    """Write a manifest; audio below its folder is written as a relative path. Appears whole or not at all."""
    path = Path(path)
    with written_whole(path) as file:
        for utterance in utterances:
            # vars and not dataclasses.asdict, whose deep copies would be most of the time of a large corpus.
            record = {name: value for name, value in vars(utterance).items() if value is not None}
            record["audio"] = str(_seen_from(path.parent, Path(utterance.audio)))
            if not utterance.start:
                record.pop("start")
            file.write(json.dumps(record, ensure_ascii=not is_plain_text(record["audio"])) + "\n")
    return path


def _seen_from(folder: Path, audio: Path) -> Path:
    try:
        return audio.relative_to(folder)
    except ValueError:
        return audio.absolute()

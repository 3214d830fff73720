"""Manifests: one utterance per line of JSON.

Fields: `id` and `audio`, and optionally `start`, `duration` (seconds), `text`, `speaker`, `lang`.

    {"id": "q1", "audio": "wav/q1.wav", "text": "what is two plus two", "speaker": "flite:awb"}

`audio` is relative to the manifest's folder, or absolute.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from units.runtime.files.atomic import written_whole
from units.runtime.refusals import Reason, RefusedError


class CorpusReason(Reason):
    """Why a row of a corpus or a manifest is refused."""

    NO_AUDIO_FILE = "no_audio_file"
    """the row names an audio file that is not there"""
    SAME_ID = "same_id"
    """another row or file has the same id"""
    NOT_TEXT = "not_text"
    """bytes that are not UTF-8, a NUL, or half a surrogate pair"""
    NOT_JSON = "not_json"
    """a line, or a whole file, that is not JSON"""
    MISSING_FIELD = "missing_field"
    """a row without a field that it needs"""
    UNKNOWN_FIELD = "unknown_field"
    """a field that manifests do not have"""
    INVALID_FIELD = "invalid_field"
    """a field of the wrong type or outside its range"""
    INVALID_ROW = "invalid_row"
    """a row that does not have the form of its corpus"""
    INVALID_SEGMENT = "invalid_segment"
    """a segment without a start before its end"""
    NO_TEXT = "no_text"
    """a transcript line without a transcript"""
    NO_SPEECH = "no_speech"
    """a segment that the corpus marks as music, noise or silence, or a recording without voice activity"""
    NO_METADATA = "no_metadata"
    """a recording without the metadata file that belongs beside it"""
    UNREADABLE_TEXT = "unreadable_text"
    """a transcript file that cannot be read"""
    UNREADABLE_FOLDER = "unreadable_folder"
    """a folder that may not be read"""
    FOLDER = "folder_named_as_audio"
    """a folder whose name ends like that of an audio file; its files are read"""
    LINKED_FOLDER = "linked_folder"
    """a symbolic link to a folder, which is not followed"""
    NOTHING_USABLE = "nothing_usable"
    """a corpus without one row that can be used"""
    DAMAGED = "damaged_corpus"
    """a metadata file that is cut off or is not what its corpus has"""


class ManifestError(RefusedError):
    """A manifest or the metadata of a corpus cannot be used. `reason` is a CorpusReason; the message names the line."""


@dataclass(frozen=True)
class Utterance:
    """One segment of speech. `audio` is a resolved path; `start` and `duration` are seconds within it."""

    id: str
    audio: Path
    start: float = 0.0
    duration: float | None = None
    text: str | None = None
    speaker: str | None = None
    lang: str | None = None


_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")  # letters by their category that are blank
_FIELDS = {field.name for field in dataclasses.fields(Utterance)}


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a whole manifest, in order.

    Raises:
        FileNotFoundError: there is no such file.
        ManifestError: a line is not UTF-8 or not JSON, lacks `id` or `audio`, has an unknown or invalid field, or
            repeats an id.
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
                raise ManifestError(
                    CorpusReason.SAME_ID, f"{path}:{number}: the id {utterance.id!r} is used twice; ids are unique"
                )
            seen.add(utterance.id)
            found.append(utterance)
    return found


def _parse(line: str, where: str, folder: Path) -> Utterance:
    """The utterance of a line. where: FILE:LINE, for errors."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise ManifestError(CorpusReason.NOT_TEXT, f"{where}: not UTF-8; save the manifest as UTF-8") from error
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(CorpusReason.NOT_JSON, f"{where}: not JSON ({error})") from error
    if isinstance(record, dict):
        record = {name: value for name, value in record.items() if value is not None}
    if not isinstance(record, dict) or not {"id", "audio"} <= record.keys():
        raise ManifestError(CorpusReason.MISSING_FIELD, f"{where}: needs at least 'id' and 'audio'")
    if unknown := record.keys() - _FIELDS:
        raise ManifestError(
            CorpusReason.UNKNOWN_FIELD, f"{where}: unknown fields {sorted(unknown)}; known are {sorted(_FIELDS)}"
        )
    if type(record["id"]) is int:  # not a bool
        record["id"] = str(record["id"])
    _check_fields(record, where)
    for name in ("speaker", "lang"):  # equal names share one string in memory
        if name in record:
            record[name] = sys.intern(record[name])
    return Utterance(**{**record, "audio": _path_in(folder, record["audio"])})


def _check_fields(record: dict, where: str) -> None:
    for name in ("start", "duration"):
        if not is_seconds(record.get(name, 0)):
            raise ManifestError(
                CorpusReason.INVALID_FIELD, f"{where}: {name} is {record[name]!r}; it is a number of seconds, 0 or more"
            )
    for name in ("id", "audio", "text", "speaker", "lang"):
        value = record.get(name, "")
        # The name of a file may be bytes that are not UTF-8; JSON holds them as lone surrogates.
        if not isinstance(value, str) or "\0" in value or not (name == "audio" or is_plain_text(value)):
            raise ManifestError(
                CorpusReason.INVALID_FIELD, f"{where}: {name} is {value!r}; it is a string of plain text"
            )


@lru_cache(1024)
def _path_in(folder: Path, audio: str) -> Path:
    """One Path object for all segments of a recording: with millions of segments, paths were a third of the memory."""
    return folder / audio


def is_seconds(value: object) -> bool:
    """Whether a value of a file is a number of seconds: finite, and 0 or more."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def is_plain_text(text: str) -> bool:
    """Whether any file can hold a string: no NUL, and no lone surrogate, which UTF-8 cannot encode."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def has_word(text: str) -> bool:
    """Whether a text has a letter or a digit of any script, without which it says nothing: `...`, `???`, an emoji.

    Modifier letters, marks and the fillers of Hangul do not count: they change a letter, or stand for none.
    """
    return any(
        character.isalnum() and unicodedata.category(character) != "Lm" and character not in _FILLERS
        for character in text
    )


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> Path:
    """Write a manifest, which appears whole or not at all. Audio below its folder is written as a relative path."""
    path = Path(path)
    with written_whole(path) as file:
        for utterance in utterances:
            # vars and not dataclasses.asdict, whose deep copies would take most of the time on a large corpus
            record = {name: value for name, value in vars(utterance).items() if value is not None}
            record["audio"] = path_from(path.parent, utterance.audio)
            if not utterance.start:
                record.pop("start")
            file.write(json.dumps(record, ensure_ascii=not is_plain_text(record["audio"])) + "\n")
    return path


def path_from(folder: Path, audio: Path) -> str:
    """An audio path as files in `folder` hold it: relative if the audio is below the folder, else absolute."""
    try:
        return str(audio.relative_to(folder))
    except ValueError:
        return str(audio.absolute())

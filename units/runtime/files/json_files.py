"""JSON files that a user or another program may have written: read, or refused in one line that names file and line.

    read_json(Path("config.json"), {"head": str, "speakers": list | None})
    for number, row in json_lines(Path("chats.jsonl"), {"question": str}): ...

A byte order mark and blank lines are passed over. Only a line feed ends a line: U+2028 and other separators may stand
inside a string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from units.runtime.files.gzipped import opened
from units.runtime.refusals import Reason, RefusedError

BOM = b"\xef\xbb\xbf"


class FileReason(Reason):
    """Why a file, or a line of it, cannot be used."""

    NOT_UTF8 = "not_utf8"
    """bytes that are not UTF-8 text"""
    NOT_JSON = "not_json"
    """text that is not JSON, or is cut short"""
    MISSING_FIELD = "missing_field"
    """a field that is needed is not there"""
    INVALID_FIELD = "invalid_field"
    """a field has another type, or a value outside its range"""
    DAMAGED = "damaged_file"
    """a file that is cut short, damaged, or of another kind"""


class FileError(RefusedError):
    """A file cannot be used. `reason` is a FileReason; the message names the file, and the line or field."""


def read_text(path: Path) -> str:
    """The text of a file, without its byte order mark.

    Raises:
        OSError: it cannot be read.
        FileError: it is not UTF-8.
    """
    return as_text(path.read_bytes().removeprefix(BOM), str(path))


def text_lines(path: Path) -> list[tuple[int, str]]:
    """Number, from 1, and text of each line of a file that is not blank, without spaces at its ends.

    Raises: as read_text.
    """
    lines = enumerate(read_text(path).split("\n"), 1)
    return [(number, text) for number, line in lines if (text := line.strip())]


def as_text(content: bytes, where: str) -> str:
    """Bytes as text. where: names them in the message. Raises FileError if they are not UTF-8, or not text."""
    if (place := content.find(0)) >= 0:  # UTF-16 without its mark is UTF-8 too, with NUL after each letter
        raise FileError(FileReason.NOT_UTF8, f"{where}: not text (a NUL byte at {place}); save it as UTF-8")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        odd = content[error.start : error.start + 4].hex(" ")
        raise FileError(
            FileReason.NOT_UTF8, f"{where}: not UTF-8 text (the bytes {odd} at {error.start}); save it as UTF-8"
        ) from error


def parsed(text: str, where: str) -> Any:
    """The value of a JSON text. where: names it in the message. Raises FileError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(FileReason.NOT_JSON, f"{where}: not JSON ({error})") from error


def read_json(path: Path, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: the file.
        fields: name -> type of each field that has to be there; a type may be a union such as `int | None`.

    Raises:
        OSError: it cannot be read.
        FileError: it is not UTF-8 or not JSON, or a field is missing or has another type.
    """
    return checked(parsed(read_text(path), str(path)), str(path), fields or {})


def json_lines(path: Path, fields: Mapping[str, Any] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects in a file of JSON lines, which may be compressed, each with the number of its line, from 1.

    Args and errors: as for read_json; the message names FILE:LINE.
    """
    import gzip
    import zlib

    number = 0
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                content = line.removeprefix(BOM) if number == 1 else line
                if content.strip():
                    where = f"{path}:{number}"
                    yield number, checked(parsed(as_text(content, where), where), where, fields or {})
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FileError(FileReason.DAMAGED, f"{path}:{number + 1}: damaged or cut short ({error})") from error


def finished_lines(path: Path, fields: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The objects in a log of JSON lines, without a last line that a killed run did not finish.

    Args and errors: as for json_lines.
    """
    *lines, _ = path.read_bytes().removeprefix(BOM).split(b"\n")
    numbered = ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip())
    return [checked(parsed(as_text(line, where), where), where, fields or {}) for where, line in numbered]


def checked(value: Any, where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A value that is an object with these fields. Raises FileError."""
    if not isinstance(value, dict):
        raise FileError(FileReason.NOT_JSON, f"{where}: {_kind(value)}, where an object {{...}} is needed")
    for name, kind in fields.items():
        if name not in value:
            raise FileError(FileReason.MISSING_FIELD, f"{where}: no field {name!r}; it has {sorted(value)[:20]}")
        found = value[name]
        if not isinstance(found, kind) or (isinstance(found, bool) and kind in (int, float, int | float)):
            shown = getattr(kind, "__name__", str(kind))
            raise FileError(FileReason.INVALID_FIELD, f"{where}: {name} is {repr(found)[:60]}; it must be {shown}")
    return value


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")

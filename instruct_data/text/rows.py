"""Rows of published text sets: JSON arrays, JSON lines or parquet, compressed or not, all read as a stream."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from instruct_data.text.reasons import TextReason
from units.runtime.files.gzipped import opened
from units.runtime.files.json_files import FileError, FileReason
from units.runtime.refusals import CommonReason, Refusals, numbered_lines

Row = dict[str, Any]
CHUNK = 2**20  # characters of an array that are read at once
LONGEST_ROW = 2**26  # characters
_BETWEEN = re.compile(r"[\s,]*")  # elements of an array
# Published files hold what JSON does not allow: NaN for a missing value, and raw tabs and line ends in strings.
_LENIENT = json.JSONDecoder(strict=False, parse_constant=lambda name: None)


def read_rows(path: Path, refusals: Refusals) -> Iterator[tuple[str, Row]]:
    """Stream (FILE:ROW, object) of a file. A row that is not an object is refused; damage is refused and ends the rows.

    Raises:
        OSError: the file cannot be opened.
        FileError: nothing of it can be read, since it is not what its suffix states.
    """
    if path.suffix == ".parquet":
        rows = _parquet_rows(path, refusals)
    elif _is_array(path):
        rows = _array_rows(path, refusals)
    else:
        rows = _line_rows(path, refusals)
    for id, row in rows:
        if isinstance(row, dict):
            yield id, row
        else:
            refusals.add(id, TextReason.NOT_AN_OBJECT, repr(row)[:60])


def _parquet_rows(path: Path, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        try:
            batches = pq.ParquetFile(file).iter_batches(batch_size=256)
        except (pa.ArrowException, OSError, ValueError) as error:
            message = f"{path} is not a parquet file, or is cut short or damaged ({error})"
            raise FileError(FileReason.DAMAGED, message) from error
        number = 0
        rows: Iterable[Any] = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        try:
            for number, row in enumerate(rows, 1):
                yield f"{path}:{number}", row
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            refusals.add(f"{path}:{number + 1}", CommonReason.DAMAGED, str(error))


def _is_array(path: Path) -> bool:
    try:
        with opened(path, "rb") as file:
            return file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except gzip.BadGzipFile as error:
        raise FileError(FileReason.DAMAGED, f"{path} is not compressed as its name states ({error})") from error
    except (EOFError, zlib.error):
        return False  # the reader of lines refuses the damage, after the lines that stand before it


def _array_rows(path: Path, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    number = 0
    with opened(path, "rb") as file:
        # Bytes that are not UTF-8 become lone surrogates, so that only the row that holds them is refused.
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")  # type: ignore[type-var]
        try:
            for number, row in enumerate(_elements(text), 1):
                yield f"{path}:{number}", row
        except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            refusals.add(f"{path}:{number + 1}", TextReason.DAMAGED_ARRAY, str(error))


def _elements(text: TextIO) -> Iterator[Any]:
    """Stream the elements of a JSON array.

    Raises:
        ValueError: where the array is not valid, or ends too early.
    """
    buffer, ended = text.read(CHUNK), False
    at = buffer.index("[") + 1
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
        if buffer.startswith("]", at):
            return
        try:
            row, end = _LENIENT.raw_decode(buffer, at)
            if end == len(buffer) and not ended:
                raise json.JSONDecodeError("a number may continue in the next chunk", buffer, end)
        except json.JSONDecodeError:
            if ended or len(buffer) - at > LONGEST_ROW:
                raise
            more = text.read(max(CHUNK, len(buffer) - at))
            buffer, at, ended = buffer[at:] + more, 0, not more
        else:
            yield row
            at = end


def _line_rows(path: Path, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(path, refusals):
        try:
            text = line.decode("utf-8-sig")
            if text.strip():
                yield f"{path}:{number}", _LENIENT.decode(text)
        except (ValueError, RecursionError) as error:
            refusals.add(f"{path}:{number}", TextReason.NOT_JSON, str(error))

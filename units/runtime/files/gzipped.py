"""Files that are compressed if their name ends in .gz, read and written like others."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from units.runtime.files.atomic import written_whole


def opened(path: Path, mode: str = "rt") -> IO:
    """Open a file to read; if its name ends in .gz, its content is uncompressed on the way."""
    encoding = None if "b" in mode else "utf-8"
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding=encoding)  # type: ignore[return-value]
    return path.open(mode, encoding=encoding)


@contextmanager
def opened_to_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears whole or not at all, compressed if its name ends in .gz."""
    with written_whole(path, "wb") as raw:
        if path.suffix == ".gz":
            with compressed(raw) as file:
                yield file
        else:
            yield raw


def compressed(raw: IO[bytes]) -> io.BufferedIOBase:
    """A gzip member without time and file name, so that the same content always has the same bytes."""
    return gzip.GzipFile("", "wb", 6, raw, 0)

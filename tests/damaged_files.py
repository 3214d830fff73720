"""Damaged versions of a file, and what a reader may do with them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from units.runtime.command import one_line
from units.runtime.refusals import RefusedError

CUTS, FLIPS = 12, 40  # of each file


@dataclass(frozen=True)
class Reader:
    """A reader of a user's file. file: below the folder that `write` fills, and that `read` reads."""

    file: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]


def damaged(content: bytes, seed: int) -> list[bytes]:
    """A file cut at many places, with bytes flipped, and files of other kinds and encodings."""
    draw = random.Random(seed)
    cuts = [content[: draw.randrange(len(content))] for _ in range(CUTS)]
    flips = []
    for _ in range(FLIPS):
        flipped = bytearray(content)
        for _ in range(draw.choice((1, 1, 3))):
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        flips.append(bytes(flipped))
    text = content.decode("utf-8", "replace")
    middle = len(content) // 2
    marks = [content[:middle] + mark + content[middle:] for mark in (b"\0", "\u2028".encode(), b"\r", b"\xff")]
    marks += [b"\xef\xbb\xbf" + content, content.replace(b"\n", b"\r\n"), content + b"\n\n"]
    foreign = [
        b"",
        b"\0" * 100,
        b"[]",
        b"null",
        b"{}",
        b'{"a": ' * 3,
        b"[" * 5000,
        b"PK\x03\x04" + content,
        b"caf\xe9\n",
    ]
    return [*cuts, *flips, *marks, *foreign, text.encode("utf-16"), text.encode("utf-32-le"), gzip.compress(content)]


def assert_read_or_refused(read: Callable[[Path], object], folder: Path, file: Path) -> None:
    try:
        read(folder)
    except (RefusedError, OSError, ValueError) as error:
        assert not isinstance(error, (UnicodeError, json.JSONDecodeError, pa.ArrowException)), repr(error)
        assert file.name in str(error), f"{error!r} does not name {file.name}"
        assert one_line(error)

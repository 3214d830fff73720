"""An index on disk of who speaks which text: what a chain needs to find the sound of its questions and answers.

It holds units, so it grows with the corpus, on disk and not in memory; many processes read it at once.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instruct_data.text_sets import TextChat
from units.unit_set import UnitRecord


@dataclass(frozen=True)
class SpokenText:
    """The sound of a text: id of the utterance, its units, who speaks."""

    id: str
    units: tuple[int, ...]
    speaker: str


class SpokenIndex:
    """Look up answers of questions, the answer voice's sound of a text, and everybody else's."""

    def __init__(self, path: Path) -> None:
        """Open an index that build_index wrote."""
        self.base = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)

    def answer(self, question: str) -> str | None:
        """What the text set answers to a question that begins a chat, the first one if several."""
        found = self.base.execute("select answer from pairs where text = ?", (_key(question),)).fetchone()
        return found and found[0]

    def voiced(self, text: str) -> tuple[int, ...] | None:
        """The units with which the answer voice says a text."""
        found = self.base.execute("select units from voiced where text = ?", (_key(text),)).fetchone()
        return found and _unpack(found[0])

    def asked(self, text: str) -> dict[str, SpokenText]:
        """By speaker, everybody but the answer voice who says a text."""
        rows = self.base.execute(
            "select id, units, speaker from asked where text = ? order by speaker", (_key(text),)
        ).fetchall()
        return {speaker: SpokenText(name, _unpack(units), speaker) for name, units, speaker in rows}


def build_index(path: Path, records: Iterable[UnitRecord], chats: Iterable[TextChat], voice: str) -> Path:
    """Write an index; it appears whole.

    Args:
        records: everything that is spoken. chats: questions and their answers.
        voice: the speaker that answers.
    """
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as base:
        base.execute("pragma journal_mode = off")
        base.execute("pragma synchronous = off")
        base.execute("create table pairs (text blob primary key, answer text) without rowid")
        base.execute("create table voiced (text blob primary key, units blob)")
        base.execute("create table asked (text blob, speaker text, id text, units blob, primary key (text, speaker))")
        # the later questions of a chat mean nothing without the earlier ones, so they have no answer here
        openings = ((_key(chat.turns[0].question), chat.turns[0].answer) for chat in chats)
        base.executemany("insert or ignore into pairs values (?, ?)", openings)
        for record in records:
            if record.text and record.speaker == voice:
                base.execute("insert or replace into voiced values (?, ?)", (_key(record.text), _pack(record)))
            elif record.text:
                row = (_key(record.text), record.speaker or "", record.id, _pack(record))
                base.execute("insert or ignore into asked values (?, ?, ?, ?)", row)
        base.commit()
    return part.replace(path)


def all_records(unit_sets: Iterable[Iterable[UnitRecord]]) -> Iterator[UnitRecord]:
    """Of several unit sets, one after the other."""
    for unit_set in unit_sets:
        yield from unit_set


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _pack(record: UnitRecord) -> bytes:
    return np.asarray(record.units.ids, np.uint16).tobytes()


def _unpack(packed: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(packed, np.uint16).tolist())

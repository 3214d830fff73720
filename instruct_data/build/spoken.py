"""Indices on disk: the questions of a text set with their splits, and the utterances in which its texts are spoken.

They grow with the text set, on disk and not in memory, and many processes read them at once. The second holds units.
The name of an index contains a hash of its input, so an index of other input is another file.
"""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from instruct_data.build.splits import SIDES, Splits
from instruct_data.text.chats import TextChat, read_chats
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, UnitSet
from units.runtime.progress import progress
from units.runtime.provenance import file_stamp
from units.runtime.refusals import Refusals


@dataclass(frozen=True)
class SpokenText:
    """The sound of a text: id of the utterance, its units, who speaks."""

    id: str
    units: tuple[int, ...]
    speaker: str


class QuestionIndex:
    """Look up the questions of a text set."""

    def __init__(self, path: Path) -> None:
        """Open an index that write_questions wrote."""
        self.base = _opened(path)

    def answer(self, question: str) -> str | None:
        """What the text set answers to a question that begins a chat, the first one if several."""
        found = self.base.execute("select answer from questions where text = ?", (_key(question),)).fetchone()
        return found and found[0]

    def side(self, question: str) -> str | None:
        """The side of a question, for a later one of a chat that of the chat; None of other texts."""
        found = self.base.execute("select side from questions where text = ?", (_key(question),)).fetchone()
        return found and found[0]

    def is_answer(self, text: str) -> bool:
        """Whether some chat answers so."""
        return self.base.execute("select 1 from answers where text = ?", (_key(text),)).fetchone() is not None


class SpokenIndex:
    """Look up the answer voice's sound of a text, and everybody else's."""

    def __init__(self, path: Path) -> None:
        """Open an index that write_spoken wrote."""
        self.base = _opened(path)

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


question_index = functools.lru_cache(maxsize=1)(QuestionIndex)  # of this process, which reads one set at a time
spoken_index = functools.lru_cache(maxsize=1)(SpokenIndex)


@dataclass(frozen=True)
class SetSplits(Splits):
    """Splits that know a text set: a question, typed or spoken by anybody, stands where its chat does.

    index: of its questions. said: sides that its rows name.
    """

    index: Path | None = None
    said: tuple[str, ...] = ()

    @property
    def questions(self) -> QuestionIndex:
        """Of the text set. Raises ValueError without one."""
        if self.index is None:
            raise ValueError("no text set is indexed; index_questions does it")
        return question_index(self.index)

    @property
    def sides(self) -> list[str]:
        """The sides that something can stand on."""
        used = {*super().sides, *self.said}
        return [side for side in SIDES if side in used]

    def side(self, utterance_id: str, text: str, speaker: str | None = None) -> str:
        """The side of an utterance, or of what is typed."""
        if self.index is None or speaker in self.held_out_speakers or len(self.sides) == 1:
            return super().side(utterance_id, text, speaker)
        return self.questions.side(text) or super().side(utterance_id, text)


def index_questions(pairs: Path, home: Path, splits: SetSplits) -> SetSplits:
    """Index a text set in the folder `home`; returns splits that know it.

    Raises: ValueError if a row names a side that there is not.
    """
    path = home / f"questions-{_digest(repr(splits), file_stamp(pairs))}.sqlite"
    # what is no chat is counted where chats are built
    chats = progress(read_chats(pairs, Refusals()), desc="index of what is asked", unit="chats")
    return replace(splits, index=path, said=write_questions(path, chats, splits))


def write_questions(path: Path, chats: Iterable[TextChat], splits: Splits) -> tuple[str, ...]:
    """Write an index of questions; it appears whole.

    Returns: the sides that rows of the set name.

    Raises: ValueError if one names a side that there is not.
    """
    said = set()
    with _appears_whole(path) as base:
        base.execute("create table questions (text blob primary key, answer text, side text) without rowid")
        base.execute("create table answers (text blob primary key) without rowid")
        for chat in chats:
            opening, *later = chat.turns
            if opening.split not in SIDES:
                raise ValueError(f"{opening.question[:60]!r} has the split {opening.split!r}; it is one of {SIDES}")
            side = splits.side("", opening.question)
            if splits.named and opening.split != "train":
                said.add(side := opening.split)
            # A later question means nothing without the earlier ones: it has no answer here, and an opening goes first.
            base.execute(
                "insert into questions values (?, ?, ?) on conflict (text) do update "
                "set answer = excluded.answer, side = excluded.side where answer is null",
                (_key(opening.question), opening.answer, side),
            )
            texts = [(_key(turn.question), None, side) for turn in later]
            base.executemany("insert or ignore into questions values (?, ?, ?)", texts)
            base.executemany("insert or ignore into answers values (?)", [(_key(turn.answer),) for turn in chat.turns])
    return tuple(sorted(said))


def index_spoken(unit_sets: Sequence[UnitSet], splits: SetSplits, home: Path, voice: str) -> Path:
    """Index in the folder `home` who speaks the texts of the text set that `splits` know; returns the index."""
    lie = (file_stamp(unit_set.folder / COMPLETION_FILE) for unit_set in unit_sets)
    path = home / f"spoken-{_digest(str(splits.index), voice, *lie)}.sqlite"
    records = (record for unit_set in unit_sets for record in unit_set)
    total = sum(len(unit_set) for unit_set in unit_sets)
    shown = progress(records, desc="index of who says what", unit="utterances", total=total)
    return write_spoken(path, shown, splits.questions, voice)


def write_spoken(path: Path, records: Iterable[UnitRecord], questions: QuestionIndex, voice: str) -> Path:
    """Write an index of spoken texts; it appears whole.

    Args:
        records: everything that is spoken; what is no text of the set is left out.
        questions: of the text set.
        voice: the speaker that answers.
    """
    with _appears_whole(path) as base:
        base.execute("create table voiced (text blob primary key, units blob)")
        base.execute("create table asked (text blob, speaker text, id text, units blob, primary key (text, speaker))")
        for record in records:
            if not record.text or not record.units.ids:
                continue
            if record.speaker == voice and questions.is_answer(record.text):
                base.execute("insert or replace into voiced values (?, ?)", (_key(record.text), _pack(record)))
            elif record.speaker != voice and questions.side(record.text):
                row = (_key(record.text), record.speaker or "", record.id, _pack(record))
                base.execute("insert or ignore into asked values (?, ?, ?, ?)", row)
    return path


@contextmanager
def _appears_whole(path: Path) -> Iterator[sqlite3.Connection]:
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as base:
        base.execute("pragma journal_mode = off")
        base.execute("pragma synchronous = off")
        yield base
        base.commit()
    part.replace(path)


def _opened(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)


def _digest(*content: str) -> str:
    return hashlib.blake2b("\n".join(content).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _pack(record: UnitRecord) -> bytes:
    return np.asarray(record.units.ids, np.uint16).tobytes()


def _unpack(packed: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(packed, np.uint16).tolist())

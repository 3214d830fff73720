"""Indices on disk: the questions of a text set with their splits, and the utterances in which its texts are spoken.

They grow with the text set, on disk and not in memory, and many processes read them at once. The second holds units.
The name of an index contains a hash of its input, so an index of other input is another file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from instruct_data.build.config import SpeechForm
from instruct_data.build.reasons import BuildReason
from instruct_data.build.splits import SPLITS, Splits
from instruct_data.text.chats import TextChat, read_chats
from speechgpt.dialogue import Speech
from units.corpus.manifest import has_word
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, UnitSet
from units.runtime.progress import progress
from units.runtime.provenance import file_stamp
from units.runtime.refusals import Refusals, RefusedError

INDEX_VERSION = "3"  # bump it when an index holds other columns or other rows


@dataclass(frozen=True)
class SpokenText:
    """An utterance of a text.

    id: of the utterance. audio: the path of its audio file; None if unknown. start, duration: the segment, in
    seconds; a duration of None reaches to the end of the file.
    """

    id: str
    units: tuple[int, ...]
    speaker: str
    audio: str | None = None
    start: float = 0.0
    duration: float | None = None

    @classmethod
    def of(cls, record: UnitRecord) -> SpokenText:
        """The utterance of a unit set's record."""
        audio = None if record.audio is None else str(record.audio)
        return cls(record.id, record.units.ids, record.speaker or "", audio, record.start, record.duration)


@dataclass(frozen=True)
class SpeechWriter:
    """How utterances are written as parts of a human message.

    form: units, audio, or both. folder: of the conversation sets; audio in the same run folder is written relative
    to it.
    """

    form: SpeechForm = "units"
    folder: Path = Path()

    def part(self, spoken: SpokenText) -> tuple[int, ...] | Speech:
        """An utterance as a part of a message.

        Raises: RefusedError if its audio is asked for and unknown.
        """
        if self.form == "units":
            return spoken.units
        if spoken.audio is None:
            message = (
                f"the unit set does not say where the audio of {spoken.id} lies; extract it again with units-extract"
            )
            raise RefusedError(BuildReason.NO_AUDIO, message)
        audio = Path(spoken.audio)
        if audio.is_relative_to(self.folder.parent):  # the run folder can be moved
            audio = Path(os.path.relpath(audio, self.folder))
        return Speech(str(audio), spoken.start, spoken.duration, spoken.units if self.form == "both" else None)


class QuestionIndex:
    """Looks up the questions of a text set."""

    def __init__(self, path: Path) -> None:
        """Open an index that write_questions wrote."""
        self.base = _opened(path)

    def answer(self, question: str) -> str | None:
        """The answer to a question that begins a chat: that of the first chat if several begin with it."""
        found = self.base.execute("select answer from questions where text = ?", (_key(question),)).fetchone()
        return found and found[0]

    def split_of(self, question: str) -> str | None:
        """The split of a question; a later question of a chat is in the chat's split. None for other texts."""
        found = self.base.execute("select split from questions where text = ?", (_key(question),)).fetchone()
        return found and found[0]

    def is_answer(self, text: str) -> bool:
        """Whether a text is an answer in some chat."""
        return self.base.execute("select 1 from answers where text = ?", (_key(text),)).fetchone() is not None


class SpokenIndex:
    """Looks up the utterances of a text: by the answer voice, and by other speakers."""

    def __init__(self, path: Path) -> None:
        """Open an index that write_spoken wrote."""
        self.base = _opened(path)

    def voiced(self, text: str) -> tuple[int, ...] | None:
        """The units of a text in the answer voice, None if it does not speak it."""
        found = self.base.execute("select units from voiced where text = ?", (_key(text),)).fetchone()
        return found and _unpack(found[0])

    def asked(self, text: str) -> dict[str, SpokenText]:
        """The utterances of a text by other speakers than the answer voice, by speaker."""
        rows = self.base.execute(
            "select id, units, speaker, audio, start, duration from asked where text = ? order by speaker",
            (_key(text),),
        ).fetchall()
        return {row[2]: SpokenText(row[0], _unpack(row[1]), *row[2:]) for row in rows}


question_index = functools.lru_cache(maxsize=1)(QuestionIndex)  # of this process, which reads one set at a time
spoken_index = functools.lru_cache(maxsize=1)(SpokenIndex)


@dataclass(frozen=True)
class SetSplits(Splits):
    """Splits with a text set: a question, typed or spoken by any speaker, is in the split of its chat.

    index: of its questions. from_rows: the splits that its rows name.
    """

    index: Path | None = None
    from_rows: tuple[str, ...] = ()

    @property
    def questions(self) -> QuestionIndex:
        """The index of the text set's questions. Raises ValueError without a text set."""
        if self.index is None:
            raise ValueError("no text set is indexed; index_questions does it")
        return question_index(self.index)

    @property
    def possible(self) -> list[str]:
        """The splits that can have utterances in them."""
        used = {*super().possible, *self.from_rows}
        return [split for split in SPLITS if split in used]

    def split_of(self, utterance_id: str, text: str, speaker: str | None = None) -> str:
        """The split of an utterance, or of a typed text."""
        if self.index is None or speaker in self.held_out_speakers or len(self.possible) == 1:
            return super().split_of(utterance_id, text, speaker)
        return self.questions.split_of(text) or super().split_of(utterance_id, text)


def index_questions(pairs: Path, home: Path, splits: SetSplits) -> SetSplits:
    """Index a text set in the folder `home`; returns the splits with that index.

    Raises: ValueError if a row names an unknown split.
    """
    path = home / f"questions-{_digest(INDEX_VERSION, repr(splits), file_stamp(pairs))}.sqlite"
    # lines that are no chats are counted where chats are built
    chats = progress(read_chats(pairs, Refusals()), desc="index of questions", unit="chats")
    try:
        return replace(splits, index=path, from_rows=write_questions(path, chats, splits))
    except ValueError as error:
        raise ValueError(str(error) if str(pairs) in str(error) else f"{pairs}: {error}") from error


def write_questions(path: Path, chats: Iterable[TextChat], splits: Splits) -> tuple[str, ...]:
    """Write an index of questions, to a temporary name first.

    Returns: the splits that rows of the set name.

    Raises: ValueError if one names an unknown split.
    """
    named = set()
    with _written_whole(path) as base:
        base.execute("create table questions (text blob primary key, answer text, split text) without rowid")
        base.execute("create table answers (text blob primary key) without rowid")
        for chat in chats:
            opening, *later = chat.turns
            if opening.split not in SPLITS:
                raise ValueError(f"{opening.question[:60]!r} has the split {opening.split!r}; it is one of {SPLITS}")
            split = splits.split_of("", opening.question)
            if splits.named and opening.split != "train":
                named.add(split := opening.split)
            # A later question means nothing without the earlier ones: it has no answer here, and an opening goes first.
            base.execute(
                "insert into questions values (?, ?, ?) on conflict (text) do update "
                "set answer = excluded.answer, split = excluded.split where answer is null",
                (_key(opening.question), opening.answer, split),
            )
            texts = [(_key(turn.question), None, split) for turn in later]
            base.executemany("insert or ignore into questions values (?, ?, ?)", texts)
            base.executemany("insert or ignore into answers values (?)", [(_key(turn.answer),) for turn in chat.turns])
    return tuple(sorted(named))


def index_spoken(unit_sets: Sequence[UnitSet], splits: SetSplits, home: Path, voice: str) -> Path:
    """Index the utterances of the texts of the text set in the folder `home`; returns the index."""
    stamps = (file_stamp(unit_set.folder / COMPLETION_FILE) for unit_set in unit_sets)
    path = home / f"spoken-{_digest(INDEX_VERSION, str(splits.index), voice, *stamps)}.sqlite"
    records = (record for unit_set in unit_sets for record in unit_set)
    total = sum(len(unit_set) for unit_set in unit_sets)
    shown = progress(records, desc="index of spoken texts", unit="utterances", total=total)
    return write_spoken(path, shown, splits.questions, voice)


def write_spoken(path: Path, records: Iterable[UnitRecord], questions: QuestionIndex, voice: str) -> Path:
    """Write an index of spoken texts, to a temporary name first.

    Args:
        records: utterances; those whose text is not in the text set are left out.
        questions: the index of the text set.
        voice: the speaker of the answers.
    """
    with _written_whole(path) as base:
        base.execute("create table voiced (text blob primary key, units blob)")
        base.execute(
            "create table asked (text blob, speaker text, id text, units blob, audio text, start real, duration real, "
            "primary key (text, speaker))"
        )
        for record in records:
            if not record.text or not has_word(record.text) or not record.units.ids:
                continue
            if record.speaker == voice and questions.is_answer(record.text):
                base.execute("insert or replace into voiced values (?, ?)", (_key(record.text), _pack(record)))
            elif record.speaker != voice and questions.split_of(record.text):
                found = SpokenText.of(record)
                place = (found.audio, found.start, found.duration)
                row = (_key(record.text), found.speaker, found.id, _pack(record), *place)
                base.execute("insert or ignore into asked values (?, ?, ?, ?, ?, ?, ?)", row)
    return path


@contextmanager
def _written_whole(path: Path) -> Iterator[sqlite3.Connection]:
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

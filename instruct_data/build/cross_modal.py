"""Cross-modal conversations out of (text, units) pairs: hear and write (ASR), read and speak (TTS).

SpeechGPT (Zhang et al. 2023, arXiv 2305.11000, section 3.1): a task description drawn at random, the input, the output.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_data.build.config import INSTRUCTIONS
from instruct_data.build.reasons import BuildReason
from instruct_data.build.splits import Splits, copies
from instruct_data.build.spoken import SpeechWriter, SpokenText
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message
from units.corpus.manifest import has_word
from units.dataset.unit_set import UnitRecord, UnitSet, read_unit_set, shard_path
from units.runtime.files.json_files import FileError, FileReason, text_lines
from units.runtime.refusals import Refusals, RefusedError


def read_instructions(task: str, folder: Path = INSTRUCTIONS) -> tuple[str, ...]:
    """Task descriptions, one a line.

    Raises:
        FileNotFoundError: there is no such file; the message names the tasks there are.
        FileError: the file is empty or not UTF-8.
    """
    path = folder / f"{task}.txt"
    if not path.exists():
        raise FileNotFoundError(
            f"no task descriptions for {task!r} in {folder}; there are {sorted(p.stem for p in folder.glob('*.txt'))}"
        )
    return _lines(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _lines(path: Path, _changed: int) -> tuple[str, ...]:
    found = tuple(text for _, text in text_lines(path))
    if not found:
        raise FileError(FileReason.MISSING_FIELD, f"{path} holds no task description; it has one on each line")
    return found


def _conversation(task: str, record: UnitRecord, speech: SpeechWriter, description: str, name: str) -> Conversation:
    text, spoken = record.text or "", SpokenText.of(record)
    if task == "asr":
        asked = Message("human", (f"{description} {INPUT_FOLLOWS}", speech.part(spoken)))
        said = Message("assistant", (text,))
    else:
        asked = Message("human", (f"{description} {INPUT_FOLLOWS} {text}",))
        said = Message("assistant", (spoken.units,))
    return Conversation((asked, said), task, name)


def _draw(descriptions: Sequence[str], record_id: str, task: str, seed: int, copy: int = 0) -> str:
    """Drawn by the record's id, so that the draw does not depend on order or on the number of workers."""
    return random.Random(f"{seed} {task} {record_id}{f' {copy}' if copy else ''}").choice(descriptions)


def missing_part(record: UnitRecord) -> BuildReason | None:
    """What a record lacks that a conversation of speech and text needs; None if it has a text and units."""
    if not (record.text or "").strip():
        return BuildReason.NO_TEXT
    if not has_word(record.text or ""):
        return BuildReason.NO_WORD
    return None if record.units.ids else BuildReason.NO_UNITS


@dataclass(frozen=True)
class CrossModalPart:
    """One shard of a unit set as conversations of one task.

    folder: the unit set. weight: how often each record is in the set. speaker: the only one to take, or None.
    instructions: folder of the task descriptions.
    """

    folder: Path
    shard: int
    rows: int
    task: str
    seed: int
    splits: Splits
    speech: SpeechWriter = SpeechWriter()
    weight: float = 1.0
    speaker: str | None = None
    instructions: Path = INSTRUCTIONS

    def sources(self) -> list[Path]:
        return [shard_path(self.folder, self.shard), self.instructions / f"{self.task}.txt"]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        descriptions = read_instructions(self.task, self.instructions)
        for record in read_unit_set(self.folder).shard(self.shard):
            if self.speaker is not None and record.speaker != self.speaker:
                continue
            if reason := missing_part(record):
                if self.task == "asr":  # which uses every record, so that none is counted twice
                    refusals.add(record.id, reason, record.text or "")
                continue
            text = record.text or ""
            split = self.splits.split_of(record.id, text, record.speaker)
            if self.task == "tts" and split != self.splits.split_of(record.id, text):
                detail = f"{record.speaker} says {text[:60]!r}, which TTS has in another split"
                refusals.add(record.id, BuildReason.HELD_OUT_SPEAKER, detail)
                continue
            for copy in range(copies(self.weight, self.seed, self.task, record.id)):
                name = f"{self.task}-{record.id}{f'~{copy + 1}' if copy else ''}"
                description = _draw(descriptions, record.id, self.task, self.seed, copy)
                try:
                    made = _conversation(self.task, record, self.speech, description, name)
                except RefusedError as error:
                    refusals.add(record.id, error)
                    break
                yield split, made


def shard_parts(unit_set: UnitSet, task: str, seed: int, splits: Splits, **settings: Any) -> list[CrossModalPart]:
    """A part for each shard; `settings` are the fields of CrossModalPart that have a default."""
    folder = unit_set.folder.resolve()
    return [CrossModalPart(folder, i, unit_set.rows(i), task, seed, splits, **settings) for i in range(unit_set.shards)]

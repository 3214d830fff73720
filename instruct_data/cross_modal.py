"""Cross-modal conversations out of (text, units) pairs: hear and write (ASR), read and speak (TTS).

SpeechGPT (Zhang et al. 2023, arXiv 2305.11000, section 3.1): a task description drawn at random, the input, the output.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message
from units.unit_set import UnitRecord

INSTRUCTIONS = Path(__file__).parent / "instructions"


def read_instructions(task: str, folder: Path = INSTRUCTIONS) -> list[str]:
    """Task descriptions, one a line.

    Raises: FileNotFoundError naming the tasks there are.
    """
    path = folder / f"{task}.txt"
    if not path.exists():
        raise FileNotFoundError(
            f"no task descriptions for {task!r} in {folder}; there are {sorted(p.stem for p in folder.glob('*.txt'))}"
        )
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def asr_conversations(records: Iterable[UnitRecord], seed: int) -> Iterator[Conversation]:
    """One ASR conversation for each record that has text."""
    descriptions = read_instructions("asr")
    for record in records:
        if record.text:
            description = _draw(descriptions, record.id, "asr", seed)
            human = Message("human", (f"{description} {INPUT_FOLLOWS}", record.units.ids))
            yield Conversation((human, Message("assistant", (record.text,))), "asr", f"asr-{record.id}")


def tts_conversations(records: Iterable[UnitRecord], seed: int) -> Iterator[Conversation]:
    """One TTS conversation for each record that has text; the records should be of one voice."""
    descriptions = read_instructions("tts")
    for record in records:
        if record.text:
            description = _draw(descriptions, record.id, "tts", seed)
            human = Message("human", (f"{description} {INPUT_FOLLOWS} {record.text}",))
            yield Conversation((human, Message("assistant", (record.units.ids,))), "tts", f"tts-{record.id}")


def _draw(descriptions: list[str], record_id: str, task: str, seed: int) -> str:
    """A generator of each record's own: the draw does not depend on order or on the number of workers."""
    return random.Random(f"{seed} {task} {record_id}").choice(descriptions)

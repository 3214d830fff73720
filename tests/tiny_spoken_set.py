"""A unit set whose utterances are questions and answers, and the text set that they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_conversations import CODEBOOK, K

from instruct_data.build import sets
from instruct_data.build.config import BuildConfig, UnitSource
from instruct_data.text.chats import TextChat, TextPair, chat_line
from units.codebook import Codebook, Units
from units.dataset.unit_set import UnitRecord, write_unit_set

VOICE = "tone:low"


NUMBERS = [f"{tens} {ones}" for tens in ("twenty", "thirty", "forty", "fifty") for ones in "one two three four".split()]


def corpus(folder: Path, codebook: Codebook = CODEBOOK, shard_size: int = 11) -> Path:
    """Questions in two voices, answers in one. All units differ; one has no text, one is no question."""
    records = []

    def spoken(text: str | None, speaker: str) -> None:
        index = len(records)
        ids = (index % K, index // K % K, 11 - index % K, 3)
        records.append(UnitRecord(f"u{index:03d}", Units(ids, (1,) * len(ids), codebook), 1280 + 320, text, speaker))

    for number in NUMBERS:
        for speaker in ("tone:high", "tone:mid"):
            spoken(f"what is {number}", speaker)
        if number != NUMBERS[-1]:
            spoken(f"it is {number}", VOICE)
    spoken(None, "tone:high")
    spoken("the sky is blue", "tone:mid")
    write_unit_set(folder, records, codebook, shard_size)
    return folder


def text_set(path: Path) -> Path:
    pairs = [TextPair(f"what is {number}", f"it is {number}") for number in NUMBERS]
    several = [
        TextChat((pairs[0], pairs[1])),
        TextChat((pairs[2], pairs[3], pairs[4])),
        TextChat((pairs[0], TextPair("why", "so"))),
    ]
    path.write_text("".join(map(chat_line, [*(TextChat((pair,)) for pair in pairs), *several])))
    return path


def build(
    units: Path | list[UnitSource], pairs: Path | None = None, voice: str = "", out: Path = Path("data"), **options: Any
) -> None:
    """Call instruct-build with fields of BuildConfig as keyword arguments."""
    sets.main(units, pairs, voice, out, BuildConfig(**options))

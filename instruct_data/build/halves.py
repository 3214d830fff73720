"""Halves of chains: hearing from utterances that have no answer, answering from questions that nobody asks aloud.

A chain is a transcript of what is heard, then an answer. Whole chains need spoken questions with answers, of which
there are few. The first half can be learned from any recognition corpus, the second from any text set: the transcript
of a typed question is given, behind the sound of any other utterance, and the answer alone is learned. So the answer
follows the transcript, and what the text set asks is answered after a transcript, too (docs/decisions/chain-halves.md).
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from instruct_data.build.cross_modal import missing_part
from instruct_data.build.parts import InputPart
from instruct_data.build.reasons import BuildReason
from instruct_data.build.spoken import SetSplits, SpeechWriter, SpokenText
from speechgpt.dialogue import Conversation, Message, Part
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, read_unit_set, shard_path
from units.runtime.refusals import Refusals, RefusedError

TRANSCRIPT, ANSWER = "chain_transcript", "chain_answer"  # tasks


@dataclass(frozen=True)
class HalvesSettings:
    """voice: the speaker that answers, whose utterances are not heard."""

    voice: str
    seed: int
    splits: SetSplits
    speech: SpeechWriter

    def heard(self, folder: Path, shard: int) -> Iterator[UnitRecord]:
        """The utterances of a shard with text, by other speakers than the answer voice."""
        for record in read_unit_set(folder).shard(shard):
            if record.speaker != self.voice and missing_part(record) is None:
                yield record

    def split_of(self, record: UnitRecord) -> str:
        """The split of an utterance."""
        return self.splits.split_of(record.id, record.text or "", record.speaker)


@dataclass(frozen=True)
class TranscriptPart:
    """One shard of a unit set: first halves, of the utterances that begin no whole chain."""

    folder: Path
    shard: int
    rows: int
    settings: HalvesSettings
    reads: tuple[Path, ...]

    def sources(self) -> list[Path]:
        return [shard_path(self.folder, self.shard), *self.reads]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        halves = self.settings
        for record in halves.heard(self.folder, self.shard):
            text = record.text or ""
            if halves.splits.questions.answer(text) is not None:
                continue
            try:
                sound = halves.speech.part(SpokenText.of(record))
            except RefusedError as error:
                refusals.add(record.id, error)
                continue
            turn = (Message("human", (sound,)), Message("assistant", (text,), learned="transcript"))
            yield halves.split_of(record), Conversation(turn, TRANSCRIPT, f"{TRANSCRIPT}-{record.id}")


@dataclass(frozen=True)
class AnswerPart:
    """Chats: a second half of the first turn of each, behind an utterance of the question's split, drawn by seed.

    number: of this part; it decides in which shard the utterances are looked up first.
    shards: folder and number of every shard of the unit sets.
    """

    chats: InputPart
    number: int
    shards: tuple[tuple[Path, int], ...]
    settings: HalvesSettings

    @property
    def rows(self) -> int:
        return self.chats.rows

    def sources(self) -> list[Path]:
        return [*self.chats.sources(), *sorted({folder / COMPLETION_FILE for folder, _ in self.shards})]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        sounds, draw = self._sounds(), random.Random(f"{self.settings.seed} {ANSWER} {self.number}")
        for split, chat in self.chats.conversations(refusals):
            (question,), (answer,) = (message.parts for message in chat.messages[:2])
            if not sounds[split]:
                detail = f"nobody but the answer voice says anything in {split}, the split of {str(question)[:60]!r}"
                refusals.add(chat.id, BuildReason.NO_SPOKEN_QUESTION, detail)
                continue
            heard = Message("human", (draw.choice(sounds[split]),))
            said = Message("assistant", (question, answer), learned="answer")
            yield split, Conversation((heard, said), ANSWER, chat.id.replace("chat", ANSWER, 1))

    def _sounds(self) -> dict[str, list[Part]]:
        """Utterances by split, of as few shards as hold some of every split."""
        found: dict[str, list[Part]] = defaultdict(list)
        halves, first = self.settings, self.number % len(self.shards)
        for folder, shard in itertools.chain(self.shards[first:], self.shards[:first]):
            for record in halves.heard(folder, shard):
                try:
                    found[halves.split_of(record)].append(halves.speech.part(SpokenText.of(record)))
                except RefusedError:
                    continue  # counted where its transcript is refused
            if all(found[split] for split in halves.splits.possible):
                break
        return found

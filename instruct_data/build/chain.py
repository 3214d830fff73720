"""Chain-of-modality conversations: a question, spoken or typed; its transcript, the answer as text, the spoken answer.

SpeechGPT (Zhang et al. 2023, arXiv 2305.11000, section 3.1) has four kinds, each asked for by an instruction around the
question; its authors released the first alone, without instruction (`wording="released"`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.build.config import TASKS
from instruct_data.build.reasons import BuildReason
from instruct_data.build.spoken import SetSplits, SpeechWriter, SpokenText, spoken_index
from instruct_data.build.text_parts import ChatPart
from instruct_data.text.chats import TextChat, TextPair
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message, Part, Reply, Speech
from units.corpus.manifest import has_word
from units.dataset.unit_set import UnitRecord, read_unit_set, shard_path
from units.runtime.refusals import Refusals, RefusedError

# The paper's words after the question, by kind.
_HEAR = (
    "You can first transcribe the instruction and get the text Instruction. "
    "Then you can think about the instruction and get the text response."
)
PAPER = {
    "speech_to_speech": (
        f"And your response should be speech. You can do it step by step. {_HEAR} "
        "Last, you should speak the response aloud"
    ),
    "speech_to_text": f"And your response should be text. You can do it step by step. {_HEAR}",
    "text_to_speech": (
        "And your response should be speech. You can do it step by step. "
        "You can think about the instruction and get the text response. Then you should speak the response aloud"
    ),
    "text_to_text": "And your response should be text. You can think about the instruction and get the text response.",
}


@dataclass(frozen=True)
class Exchange:
    """One turn: question and answer as text, the spoken question as a part of a message, the units of the answer."""

    question: str
    answer: str
    heard: tuple[int, ...] | Speech | None = None
    spoken: tuple[int, ...] | None = None


def exchange_messages(exchange: Exchange, kind: str, wording: str = "released") -> tuple[Message, Message]:
    """What the human says and what the model replies.

    Args:
        kind: one of TASKS.
        wording: `paper` puts the paper's instruction around the question, `released` nothing.

    Raises: RefusedError if the kind needs units that the exchange lacks.
    """
    source, target = kind.split("_to_")
    question: Part | None = exchange.heard if source == "speech" else exchange.question
    sound: tuple[Part | None, ...] = (exchange.spoken,) if target == "speech" else ()
    if question is None or None in sound:
        reason = BuildReason.NO_SPOKEN_QUESTION if question is None else BuildReason.NO_SPOKEN_ANSWER
        raise RefusedError(
            reason, f"{kind} of {exchange.question!r} needs units of the {'question' if question is None else 'answer'}"
        )
    before, after = f"This is a {source} instruction:", PAPER[kind]
    if wording == "released":
        asked: tuple[Part, ...] = (question,)
    elif isinstance(question, str):
        asked = (f"{before} {question.rstrip('. ')}. {after}",)
    else:
        asked = (before, question, f". {after}")
    transcript = (exchange.question,) if source == "speech" else ()
    said = tuple(part for part in (*transcript, exchange.answer, *sound) if part is not None)
    return Message("human", asked), Message("assistant", said)


def asked(human: Message, assistant: Message) -> str | None:
    """The question of a turn as text: what was typed, or the transcript; None without either. Undoes the wording."""
    if any(not isinstance(part, str) for part in human.parts):
        return Reply.from_parts(assistant.parts).transcript
    typed = " ".join(part for part in human.parts if isinstance(part, str))
    typed = typed.removeprefix("This is a text instruction: ")
    for kind in ("text_to_speech", "text_to_text"):
        typed = typed.removesuffix(f". {PAPER[kind]}")
    return typed.partition(f"{INPUT_FOLLOWS} ")[2] or typed


def chain_conversation(exchanges: Iterable[Exchange], kind: str, name: str, wording: str = "released") -> Conversation:
    """Several turns of one kind."""
    turns = (exchange_messages(exchange, kind, wording) for exchange in exchanges)
    return Conversation(tuple(message for turn in turns for message in turn), TASKS[kind], name)


@dataclass(frozen=True)
class ChainSettings:
    """spoken: index of the spoken texts. voice: the speaker that answers. kinds: each with its share."""

    spoken: Path
    voice: str
    kinds: tuple[tuple[str, float], ...]
    wording: str
    seed: int
    splits: SetSplits
    speech: SpeechWriter

    @property
    def typed(self) -> tuple[tuple[str, float], ...]:
        """The kinds that need no spoken question."""
        return tuple((kind, share) for kind, share in self.kinds if kind.startswith("text"))

    def draw(self, kinds: tuple[tuple[str, float], ...], name: str) -> str:
        """The kind of a conversation, drawn by its name alone."""
        return random.Random(f"{self.seed} kind {name}").choices(*zip(*kinds))[0]

    def conversation(self, asked: Sequence[tuple[TextPair, SpokenText | None]], kind: str, name: str) -> Conversation:
        """A conversation of questions and answers, with the utterances of the questions where they are spoken.

        Raises: RefusedError if the answer voice does not speak an answer that the kind needs as units.
        """
        voiced = spoken_index(self.spoken).voiced if kind.endswith("speech") else lambda text: None
        aloud = kind.startswith("speech")
        exchanges = [
            Exchange(
                turn.question,
                turn.answer,
                self.speech.part(question) if aloud and question is not None else None,
                voiced(turn.answer),
            )
            for turn, question in asked
        ]
        if kind.endswith("speech") and any(exchange.spoken is None for exchange in exchanges):
            missing = next(exchange.answer for exchange in exchanges if exchange.spoken is None)
            raise RefusedError(BuildReason.NO_SPOKEN_ANSWER, f"{self.voice} does not speak the answer {missing[:60]!r}")
        return chain_conversation(exchanges, kind, name, self.wording)


@dataclass(frozen=True)
class ChainPart:
    """One shard of a unit set: a conversation of one turn for each utterance that asks the first question of a chat."""

    folder: Path
    shard: int
    rows: int
    settings: ChainSettings
    reads: tuple[Path, ...]

    def sources(self) -> list[Path]:
        return [shard_path(self.folder, self.shard), *self.reads]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        for record in read_unit_set(self.folder).shard(self.shard):
            if record.speaker == self.settings.voice:
                continue
            text = record.text or ""
            answer = self.settings.splits.questions.answer(text) if has_word(text) else None
            if answer is None:
                # counted, not listed: most utterances of an ASR corpus are no questions
                refusals.counts[BuildReason.NO_QUESTION.value] += 1
                continue
            try:
                yield self._conversation(record, answer)
            except RefusedError as error:
                refusals.add(record.id, error)

    def _conversation(self, record: UnitRecord, answer: str) -> tuple[str, Conversation]:
        chain, question, name = self.settings, record.text or "", record.id
        kind = chain.draw(chain.kinds, name)
        split = chain.splits.split_of("", question)
        if kind.startswith("speech"):
            if not record.units.ids:
                raise RefusedError(BuildReason.NO_UNITS, f"the question {question[:60]!r} has no units")
            if split != chain.splits.split_of(record.id, question, record.speaker):
                raise RefusedError(
                    BuildReason.HELD_OUT_SPEAKER, f"{record.speaker} asks {question[:60]!r}, which is in {split}"
                )
        asked = [(TextPair(question, answer), SpokenText.of(record))]
        return split, chain.conversation(asked, kind, f"chain-{name}")


@dataclass(frozen=True)
class ChainChatPart:
    """A range of a text set: a conversation for each chat of several turns whose questions one speaker asks.

    Chats without spoken questions become typed kinds, if the set has any.
    """

    chats: ChatPart
    settings: ChainSettings
    reads: tuple[Path, ...]

    @property
    def rows(self) -> int:
        return self.chats.rows

    def sources(self) -> list[Path]:
        return [self.chats.path, *self.reads]

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        for number, chat in self.chats.lines(refusals):
            try:
                if found := self._conversation(chat, f"turns-{number}"):
                    yield found
            except RefusedError as error:
                refusals.add(f"{self.chats.path}:{number + 1}", error)

    def _conversation(self, chat: TextChat, name: str) -> tuple[str, Conversation] | None:
        chain, index = self.settings, spoken_index(self.settings.spoken)
        if len(chat.turns) == 1 and (not chain.typed or index.asked(chat.turns[0].question)):
            return None  # there is nothing to make, or a ChainPart makes it
        split = chain.splits.split_of("", chat.turns[0].question)
        sounds = [index.asked(turn.question) for turn in chat.turns]
        speakers = sorted(set.intersection(*map(set, sounds)))
        if not speakers and not chain.typed:
            raise RefusedError(
                BuildReason.NO_COMMON_SPEAKER,
                f"no speaker asks all {len(chat.turns)} questions of the chat that begins "
                f"{chat.turns[0].question[:60]!r}",
            )
        kind = chain.draw(chain.kinds if speakers else chain.typed, name)
        if kind.startswith("text"):
            return split, chain.conversation([(turn, None) for turn in chat.turns], kind, name)
        speaker = random.Random(f"{chain.seed} speaker {name}").choice(speakers)
        asked = [(turn, by[speaker]) for turn, by in zip(chat.turns, sounds)]
        found = {split, *(chain.splits.split_of(sound.id, turn.question, speaker) for turn, sound in asked)}
        if len(found) > 1:
            raise RefusedError(BuildReason.SEVERAL_SPLITS, f"its turns are in the splits {sorted(found)}")
        return split, chain.conversation(asked, kind, name)

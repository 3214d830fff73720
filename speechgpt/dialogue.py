"""Conversations and the dialogue template: conversation -> token ids and train mask, token ids -> reply.

    cross-modal   [Human]: {task description} This is input: {text or units}<eoh> [SpeechGPT]: {units or text}<eoa>
    chain         [Human]: {units}<eoh> [SpeechGPT]: {transcript}; [ta] {answer}; [ua] {units}<eoa>
    interleaved   [Human]: {units}<eoh> [SpeechGPT]: {transcript}; [ta] {answ} [ua] {units} [ta] {er}; [ua] {units}<eoa>
    its halves    [Human]: {units}<eoh> [SpeechGPT]: {transcript}; [ta]
                  [Human]: {any units}<eoh> [SpeechGPT]: {transcript that is given}; [ta] {answer}<eoa>

This is the only place that renders or parses the template. Text becomes ids through the text tokenizer with special
tokens off (speechgpt/typed_text.py), units by addition, so text that spells `<17>` or `[Human]` stays text. The
spaces beside special tokens only make the lines above readable; they have no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from speechgpt.interleaving import InterleavedReplies
from speechgpt.typed_text import TextEncoder
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT, TA, TQ, UA, UnitVocab
from units.notation import EOSP, SOSP

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INPUT_FOLLOWS = "This is input:"  # stands between a task description and its input

Role = Literal["human", "assistant"]
Learned = Literal["all", "transcript", "answer"]


@dataclass(frozen=True)
class Speech:
    """A segment of a recording as a part of a message, for systems that read audio instead of units.

    audio: its file, relative to the conversation set or absolute.
    start, duration: of the segment, in seconds; duration None is up to the end of the file.
    units: of the segment, where they are known too.
    """

    audio: str
    start: float = 0.0
    duration: float | None = None
    units: tuple[int, ...] | None = None


Part = str | tuple[int, ...] | Speech  # text, unit ids, or a segment of a recording


class NoUnitsError(ValueError):
    """A speech part without units, given to a system that reads units."""


def part_units(part: tuple[int, ...] | Speech) -> tuple[int, ...]:
    """The units of a part that is not text.

    Raises:
        NoUnitsError: it is speech whose units are not known.
    """
    if not isinstance(part, Speech):
        return part
    if part.units is None:
        raise NoUnitsError(
            f"{part.audio} has no units, and this system reads units, not audio. Make a unit set with units-extract, "
            "and build the conversations from it with --speech units or --speech both."
        )
    return part.units


def part_kind(part: Part) -> Literal["text", "units", "speech"]:
    """What a part is, in one word."""
    return "text" if isinstance(part, str) else "speech" if isinstance(part, Speech) else "units"


@dataclass(frozen=True)
class Message:
    """One turn. Human parts may come in any order; assistant parts are those of a Reply, in its order.

    learned: what of an assistant's message is learned. `transcript`: it is one half of a chain, a transcript, the only
        part, and nothing after it. `answer`: it is the other half, what follows a transcript that is given.
    """

    role: Role
    parts: tuple[Part, ...]
    learned: Learned = "all"

    def __post_init__(self) -> None:
        if self.role not in ("human", "assistant"):
            raise ValueError(f"role {self.role!r}; a message is from 'human' or 'assistant'")
        if not self.parts:
            raise ValueError(f"a message from {self.role} has no parts; it needs text or units")
        if self.role == "assistant":
            self._check_learned(Reply.from_parts(self.parts))
        elif self.learned != "all":
            raise ValueError(f"learned is {self.learned!r} in a message from {self.role}; only replies are learned")

    def _check_learned(self, reply: Reply) -> None:
        if self.learned not in get_args(Learned):
            raise ValueError(f"learned is {self.learned!r}; it must be one of {', '.join(get_args(Learned))}")
        kinds = ", ".join(map(part_kind, self.parts))
        if self.learned == "transcript" and [*map(part_kind, self.parts)] != ["text"]:
            raise ValueError(f"learned is 'transcript', so the one part is the transcript; this message is {kinds}")
        if self.learned == "answer" and reply.transcript is None:
            raise ValueError(f"learned is 'answer', so a transcript comes before it; this message is {kinds}")


@dataclass(frozen=True)
class Reply:
    """The parts of a model's reply. A part that is missing is None, never "".

    transcript: what it understood of a spoken question.
    text: its answer, or the transcript where only that was asked for.
    units: its spoken answer.
    speech: its spoken answer as a recording, with the same units where they are known.
    """

    transcript: str | None = None
    text: str | None = None
    units: tuple[int, ...] | None = None
    speech: Speech | None = None

    @classmethod
    def from_parts(cls, parts: Sequence[Part]) -> Reply:
        """One text is the answer, two are transcript and answer; units or speech, if any, come last."""
        texts = [part for part in parts if isinstance(part, str)]
        spoken = [part for part in parts if not isinstance(part, str)]
        if len(texts) > 2 or len(spoken) > 1 or (spoken and parts[-1] is not spoken[0]):
            kinds = ", ".join(map(part_kind, parts))
            raise ValueError(f"an assistant message is [transcript,] [answer,] [units or speech]; this one is {kinds}")
        transcript, text = texts[0] if len(texts) == 2 else None, texts[-1] if texts else None
        answer = spoken[0] if spoken else None
        if isinstance(answer, Speech):
            return cls(transcript, text, answer.units, answer)
        return cls(transcript, text, answer)

    def parts(self) -> tuple[Part, ...]:
        """Inverse of from_parts."""
        spoken = self.units if self.speech is None else self.speech
        return tuple(part for part in (self.transcript, self.text, spoken) if part is not None)


@dataclass(frozen=True)
class Conversation:
    """Turns of human and assistant, alternating, the human first."""

    messages: tuple[Message, ...]
    task: str = "chat"
    id: str = ""

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("a conversation has no messages; it begins with one from 'human'")
        for turn, message in enumerate(self.messages):
            expected = ("human", "assistant")[turn % 2]
            if message.role != expected:
                raise ValueError(
                    f"turn {turn} is from {message.role!r}; roles alternate, so it must be from {expected!r}"
                )
            if message.learned == "transcript" and turn + 1 < len(self.messages):
                raise ValueError(f"the reply in turn {turn} breaks off after its transcript; it must be the last turn")


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids.

    ids: token ids (L,). train: for each, whether the loss counts it.
    """

    ids: list[int]
    train: list[bool]


@dataclass
class Dialogue:
    """Renders conversations and parses replies with one tokenizer.

    tokenizer: the LLM's, widened. prefix: a system text at the start of every conversation; "" for none.
    interleaving: how replies of text and units are written; None as a chain, in which all text comes first.
    """

    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    interleaving: InterleavedReplies | None = field(default=None, kw_only=True)
    vocab: UnitVocab = field(init=False)
    text: TextEncoder = field(init=False, repr=False, compare=False)
    _constants: dict[str, list[int]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.vocab = UnitVocab.from_words(self.tokenizer.get_vocab())
        self.text = TextEncoder(self.tokenizer, self.vocab)

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end a reply."""
        return frozenset({self.vocab.special_id(EOA)})

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the tokens of a reply are complete."""
        return bool(ids) and ids[-1] in self.ends

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, in which nothing becomes a unit or a special token. Spaces at its ends are dropped.

        Raises:
            TextError: the text is not Unicode.
        """
        return self.text.encode(text.strip())

    def _constant(self, text: str) -> list[int]:
        """Ids of a text that every conversation holds; it is encoded once."""
        if text not in self._constants:
            self._constants[text] = self.encode_text(text)
        return self._constants[text]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Inverse of encode_text."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()

    def render(self, conversation: Conversation, train_on_prompt: bool = False) -> Rendered:
        """Token ids of a whole conversation. The loss covers what is learned of the replies, and their `<eoa>`.

        Args:
            train_on_prompt: the loss covers everything but the prefix and transcripts that are given, as in the
                published SpeechGPT code.
        """
        start = self._start()
        ids, train = list(start), [False] * len(start)
        for message in conversation.messages:
            opening = self._opening(message.role)
            human = message.role == "human"
            given, body = ([], self._human(message)) if human else self._assistant(message)
            ids += opening + given + body
            train += [train_on_prompt] * len(opening) + [False] * len(given)
            train += [train_on_prompt or not human] * len(body)
        return Rendered(ids, train)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids after which the model replies: the turns so far, then `[SpeechGPT]:`."""
        return self.render(Conversation(tuple(messages))).ids + self._opening("assistant")

    def parse_reply(self, ids: Sequence[int], chained: bool = False) -> Reply:
        """Read a reply from generated ids, a chain or an interleaved one; inverse of rendering it.

        Reading stops at `<eoa>` or at the tokenizer's end of sentence. `[tq]` before the transcript is optional.

        Args:
            chained: the reply was asked to begin with a transcript, so one that was cut off before `[ta]` is all
                transcript.
        """
        special, ids = self.vocab.special_ids, list(ids)
        ends = [ids.index(end) for end in (special.get(EOA), self.tokenizer.eos_token_id) if end in ids]
        ids = ids[: min(ends)] if ends else ids
        units = tuple(self.vocab.decode(ids)) if special[SOSP] in ids else None
        written = ids[: ids.index(special[SOSP])] if units is not None else ids
        if special.get(TA) in written:
            at = written.index(special[TA])
            transcript, answer = written[:at], written[at + 1 :] + self._later_text(ids[len(written) :])
            return Reply(self._section(transcript) if transcript else None, self._section(answer), units)
        if chained and units is None:
            return Reply(self._section(written), None, None)
        if units is not None and not written:
            return Reply(None, None, units)
        return Reply(None, self._section(written), units)

    def parse_begun(self, ids: Sequence[int]) -> Reply:
        """Read a reply to a spoken question that is still being drawn, up to its speech."""
        return self.parse_reply(ids, chained=True)

    def answer_tokens(self, ids: Sequence[int]) -> list[int]:
        """Tokens of the answer's text in a reply that has `[ta]`, with the semicolon that closes it."""
        marks = set(self.vocab.special_ids.values())
        return [token for token in self._later_text(ids) if token not in marks]

    def _later_text(self, ids: Sequence[int]) -> list[int]:
        """Tokens that stand behind each `[ta]`, up to its speech."""
        written, writing = [], False
        for token in ids:
            if token in (self.vocab.special_ids[TA], self.vocab.special_ids[SOSP]):
                writing = token == self.vocab.special_ids[TA]
            elif writing and not self.vocab.is_unit(token):
                written.append(token)
        return written

    def _section(self, ids: Sequence[int]) -> str:
        """Text of a section, without special tokens and without the semicolon that closes it."""
        closing = {self.vocab.special_ids.get(word) for word in (TQ, UA, EOSP)}
        text = self.decode_text([token for token in ids if token not in closing])
        return text[:-1].rstrip() if text.endswith(";") else text

    def _start(self) -> list[int]:
        bos = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        return bos + (self._constant(self.prefix) if self.prefix else [])

    def _opening(self, role: Role) -> list[int]:
        return [self.vocab.special_id(HUMAN if role == "human" else SPEECHGPT), *self._constant(":")]

    def _part(self, part: Part) -> list[int]:
        return self.encode_text(part) if isinstance(part, str) else self.vocab.encode(part_units(part))

    def _human(self, message: Message) -> list[int]:
        return [token for part in message.parts for token in self._part(part)] + [self.vocab.special_id(EOH)]

    def _assistant(self, message: Message) -> tuple[list[int], list[int]]:
        """Ids of a reply: what is given, and what is learned after it."""
        if message.learned == "transcript":
            (transcript,) = message.parts
            return [], [*self.encode_text(str(transcript)), *self._constant(";"), self.vocab.special_id(TA)]
        ids = self._reply(Reply.from_parts(message.parts))
        given = ids.index(self.vocab.special_id(TA)) + 1 if message.learned == "answer" else 0
        return ids[:given], ids[given:]

    def _reply(self, reply: Reply) -> list[int]:
        ids: list[int] = []
        units = reply.units if reply.speech is None else part_units(reply.speech)
        chained = reply.transcript is not None or (reply.text is not None and units is not None)
        if reply.transcript is not None:
            ids += self.encode_text(reply.transcript) + self._constant(";")
        if self.interleaving and reply.text is not None and units is not None:
            written = self.encode_text(reply.text) + self._constant(";")
            for text, spoken in self.interleaving.stretches(written, units):
                ids += [self.vocab.special_id(TA), *text, self.vocab.special_id(UA), *self.vocab.encode(spoken)]
            return [*ids, self.vocab.special_id(EOA)]
        if chained:
            ids.append(self.vocab.special_id(TA))
        if reply.text is not None:
            ids += self.encode_text(reply.text)
            # parsing drops one closing semicolon, so a text that ends in one gets a second
            ids += self._constant(";") if units is not None or reply.text.rstrip().endswith(";") else []
        if units is not None:
            ids += ([self.vocab.special_id(UA)] if chained else []) + self.vocab.encode(units)
        return [*ids, self.vocab.special_id(EOA)]

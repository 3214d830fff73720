"""What a model speaks several times: the replies of a conversation set, texts read aloud, or utterances of a unit set.

K units of a candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from instruct_data.build.preference_sets import Pair
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Dialogue, Message, Reply
from speechgpt.generation.grammar import Form
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.prompts import tts_prompt
from speechgpt.vocab import TA
from units.dataset.unit_set import UnitRecord
from units.notation import SOSP
from units.runtime.files.json_files import text_lines

Ids = tuple[int, ...]


class Spoken(Protocol):
    """Something to be spoken several times.

    id: of the record that it is from. text: what is to be said; None if that is not known.
    """

    @property
    def id(self) -> str: ...

    @property
    def text(self) -> str | None: ...

    @property
    def recorded(self) -> Ids:
        """The units (K,) that the set itself has."""

    @property
    def asked(self) -> str | Ids:
        """The question for the judge: a text, or units, which are transcribed first."""

    def prompt(self, dialogue: Dialogue) -> tuple[list[int], Form | KnownTexts]:
        """Token ids after which it is spoken, and the form of what follows them."""

    def whole(self, drawn: Ids) -> Ids:
        """A candidate, of the units that were drawn after the prompt."""

    def pair(self, chosen: Ids, rejected: Ids, scores: tuple[float, float]) -> Pair:
        """The pair of two candidates."""


@dataclass(frozen=True)
class SpokenReply:
    """A reply to be spoken again: the last one of a conversation. text: what it says."""

    conversation: Conversation
    text: str

    @property
    def id(self) -> str:
        return self.conversation.id

    @property
    def recorded(self) -> Ids:
        return Reply.from_parts(self.conversation.messages[-1].parts).units or ()

    @property
    def asked(self) -> str | Ids:
        *_, question, answer = self.conversation.messages
        written = " ".join(part for part in question.parts if isinstance(part, str))
        heard = Reply.from_parts(answer.parts).transcript or ""
        units = [unit for part in question.parts if isinstance(part, tuple) for unit in part]
        return f"{written} {heard}".strip() if heard or not units else tuple(units)

    def prompt(self, dialogue: Dialogue) -> tuple[list[int], Form | KnownTexts]:
        """The turns before the reply, and its text. Of an interleaved reply, those up to its first `[ta]`, with the
        text as its form."""
        special = dialogue.vocab.special_id
        before = dialogue.prompt(self.conversation.messages[:-1])
        said = dialogue.render(self.conversation).ids[len(before) :]
        if dialogue.interleaving is None or special(TA) not in said:
            return before + said[: said.index(special(SOSP))], "units"
        text = tuple(dialogue.answer_tokens(said))
        return before + said[: said.index(special(TA)) + 1], KnownTexts((text,))

    def whole(self, drawn: Ids) -> Ids:
        return drawn

    def pair(self, chosen: Ids, rejected: Ids, scores: tuple[float, float]) -> Pair:
        *turns, last = self.conversation.messages
        one, other = (replace(last, parts=(*last.parts[:-1], units)) for units in (chosen, rejected))
        return Pair(tuple(turns), one, other, self.conversation.task, self.id, scores)


@dataclass(frozen=True)
class ReadText:
    """A text to be read aloud, which nobody has spoken: nothing is recorded."""

    id: str
    text: str
    recorded: Ids = ()

    @property
    def asked(self) -> str:
        return " ".join(part for part in tts_prompt(self.text).parts if isinstance(part, str))

    def prompt(self, dialogue: Dialogue) -> tuple[list[int], Form | KnownTexts]:
        """As `SpeechGPT.say` asks for it."""
        return dialogue.prompt([tts_prompt(self.text)]), "units"

    def whole(self, drawn: Ids) -> Ids:
        return drawn

    def pair(self, chosen: Ids, rejected: Ids, scores: tuple[float, float]) -> Pair:
        one, other = Message("assistant", (chosen,)), Message("assistant", (rejected,))
        return Pair((tts_prompt(self.text),), one, other, "tts", self.id, scores)


@dataclass(frozen=True)
class Continuation:
    """An utterance to be continued after its beginning, as stage 1 reads utterances. What is to be said is not known.

    beginning, rest: its units, (K,) together.
    """

    id: str
    beginning: Ids
    rest: Ids
    text: None = None

    @property
    def recorded(self) -> Ids:
        return self.beginning + self.rest

    @property
    def asked(self) -> Ids:
        return self.beginning

    def prompt(self, dialogue: Dialogue) -> tuple[list[int], Form | KnownTexts]:
        """The first token of a document, `<sosp>`, and the beginning."""
        bos = dialogue.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + dialogue.vocab.encode(self.beginning)[:-1], "continuation"

    def whole(self, drawn: Ids) -> Ids:
        return self.beginning + drawn

    def pair(self, chosen: Ids, rejected: Ids, scores: tuple[float, float]) -> Pair:
        one, other = Message("assistant", (chosen,)), Message("assistant", (rejected,))
        return Pair((), one, other, "continuation", self.id, scores)


def spoken_reply(conversation: Conversation) -> SpokenReply | None:
    """The spoken reply that a conversation ends with; None if that has no units, or its text is not known."""
    last = conversation.messages[-1]
    if last.role != "assistant":
        return None
    reply = Reply.from_parts(last.parts)
    if not reply.units:
        return None
    text = reply.text or _read_aloud(conversation.messages[-2])
    return SpokenReply(conversation, text) if text else None


def _read_aloud(asked: Message) -> str:
    """The text that a message asks to be read aloud; "" if it asks for something else."""
    written = [part for part in asked.parts if isinstance(part, str)]
    if len(written) != len(asked.parts) or not written:
        return ""
    return " ".join(written).partition(INPUT_FOLLOWS)[2].strip()


def texts_to_read(path: Path) -> Iterator[ReadText]:
    """The lines of a text file, each named by its number. Raises: as text_lines."""
    return (ReadText(f"{path.name}:{number}", text) for number, text in text_lines(path))


def continuations(records: Iterable[UnitRecord], beginning: int) -> Iterator[Continuation]:
    """The utterances of a unit set that have more than `beginning` units, cut there."""
    for record in records:
        ids = record.units.ids
        if len(ids) > beginning:
            yield Continuation(record.id, tuple(ids[:beginning]), tuple(ids[beginning:]))

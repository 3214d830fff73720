"""SpeechGPT's released SpeechInstruct files, read and written as conversation sets.

    instruct-speech-instruct released.jsonl set.jsonl.gz --codebook unit_encoder/codebook.json
    instruct-speech-instruct set.jsonl.gz released.jsonl

A line of a released file is {"prefix": system text, "plain_text": turns}. Special tokens and units are spelled as text:

    [Human]: {description}. This is input: {text or units}<eoh> [SpeechGPT]: {units or text}<eoa>
    [Human]: {units}<eoh>. [SpeechGPT]: {transcript}; [ta] {answer}; [ua] {units}<eoa>.

This spelling is for exchange only. What a model reads is rendered by speechgpt/dialogue.py, part by part.
Source: the data of Zhang et al. 2023 (arXiv 2305.11000); the second form is that of its chain-of-modality set.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_data.build.records import read_conversations, write_conversations
from instruct_data.released.reasons import ReleasedError, ReleasedReason
from instruct_data.released.spelled_units import read_units
from instruct_data.text.chats import has_lone_surrogate
from speechgpt.dialogue import Conversation, Message, NoUnitsError, Part, Reply, part_units
from speechgpt.published.template import EOS, PREFIX
from speechgpt.vocab import EOA, EOH, HUMAN, SPECIAL_TOKENS, SPEECHGPT, TA, TQ, UA
from units import notation
from units.codebook import Codebook
from units.corpus.manifest import has_word
from units.notation import EOSP, SOSP
from units.runtime.command import SOME_REFUSED, command
from units.runtime.files.gzipped import opened_to_write
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals, numbered_lines

FIELDS = ("prefix", "plain_text")
ANY_SIZE = 1 << 31  # K where units of any codebook are allowed
SHOWN = 60  # characters of a faulty text that a message quotes
_END = re.compile(f"{re.escape(EOA)}|{re.escape(EOS)}")
_SPELLED = re.compile(f"({re.escape(SOSP)}.*?{re.escape(EOSP)})", re.DOTALL)
_STRAY = re.compile("|".join(map(re.escape, (*SPECIAL_TOKENS, EOS))) + r"|<\d+>")


@dataclass(frozen=True)
class ReleasedRecord:
    """A conversation and the system text before it."""

    prefix: str
    conversation: Conversation


# --- reading


def read_released(path: str | Path, size: int, refusals: Refusals) -> Iterator[ReleasedRecord]:
    """Stream a released file. A malformed line is refused and listed with its number.

    Args:
        path: jsonl, compressed if its name ends in .gz.
        size: K; units of K and above are refused.
        refusals: where refused lines are counted.
    """
    for number, line in numbered_lines(Path(path), refusals):
        try:
            record = parse_released(line, size, f"released-{number}")
            _check_words(record.conversation)
            yield record
        except ReleasedError as error:
            refusals.add(f"{path}:{number}", error)


def _check_words(conversation: Conversation) -> None:
    """Raise ReleasedError if a typed prompt, a transcript or an answer has no word in it."""
    for message in conversation.messages:
        texts = [part for part in message.parts if isinstance(part, str)]
        if message.role == "human":  # text beside speech may be a full stop
            texts = [" ".join(texts)] if len(texts) == len(message.parts) else []
        for text in texts:
            if not has_word(text):
                raise ReleasedError(ReleasedReason.NO_WORD, f"a text of the {message.role} without a word: {text!r}")


def parse_released(line: str | bytes, size: int, record_id: str) -> ReleasedRecord:
    """Read one line strictly.

    Raises:
        ReleasedError: if the line is malformed.
    """
    prefix, text = _fields(_json_object(line))
    messages = tuple(_messages(text, size))
    return ReleasedRecord(prefix, Conversation(messages, task_of(messages), record_id))


def _json_object(line: str | bytes) -> dict[str, Any]:
    if not line.strip():
        raise ReleasedError(ReleasedReason.EMPTY_LINE, "the line is empty")
    try:
        record: Any = json.loads(line)
    except UnicodeDecodeError as error:
        raise ReleasedError(ReleasedReason.NOT_UTF8, f"not UTF-8: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ReleasedError(ReleasedReason.NOT_JSON, f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ReleasedError(ReleasedReason.NOT_AN_OBJECT, f"not a JSON object: {str(record)[:SHOWN]}")
    return record


def _fields(record: dict[str, Any]) -> tuple[str, str]:
    """The prefix and the turns of a record."""
    for name in FIELDS:
        if name not in record:
            raise ReleasedError(ReleasedReason.MISSING_FIELD, f"no field {name}: the fields are {sorted(record)}")
        if not isinstance(record[name], str):
            raise ReleasedError(ReleasedReason.WRONG_TYPE, f"{name} is not text: {str(record[name])[:SHOWN]}")
    if unknown := sorted(record.keys() - set(FIELDS)):
        raise ReleasedError(ReleasedReason.UNKNOWN_FIELD, f"unknown fields {unknown}; there are {', '.join(FIELDS)}")
    prefix, text = record["prefix"], record["plain_text"]
    if has_lone_surrogate(prefix + text):
        raise ReleasedError(ReleasedReason.LONE_SURROGATE, "half of a surrogate pair")
    return prefix, text


def task_of(messages: Iterable[Message]) -> str:
    """asr, tts, chat, or one of the chains: the task of a conversation, by the parts of its last turn."""
    *_, human, assistant = messages
    reply = Reply.from_parts(assistant.parts)
    spoken_prompt = any(not isinstance(part, str) for part in human.parts)
    if reply.transcript is not None:
        return "chain" if reply.units is not None else "chain_speech_to_text"
    if reply.units is not None:
        return "tts" if reply.text is None else "chain_text_to_speech"
    return "asr" if spoken_prompt else "chat"


def _messages(text: str, size: int) -> Iterator[Message]:
    """The messages of a `plain_text`, turn by turn."""
    if not text.strip():
        raise ReleasedError(ReleasedReason.NO_TURN, "plain_text is empty")
    rest = text
    while rest.strip():
        prompt, reply, rest = _next_turn(rest)
        yield read_prompt(_without_colon(prompt), size)
        yield read_reply(_without_colon(reply), size)


def read_prompt(text: str, size: int) -> Message:
    """A prompt without `[Human]:` and `<eoh>`. Raises ReleasedError if it is malformed. size: K."""
    return Message("human", tuple(_parts(text, size)))


def read_reply(text: str, size: int) -> Message:
    """A reply without `[SpeechGPT]:` and `<eoa>`. Raises ReleasedError if it is malformed. size: K."""
    return Message("assistant", _reply(text, size).parts())


def _next_turn(text: str) -> tuple[str, str, str]:
    """The prompt and the reply of the first turn, and the text after it."""
    before, found, rest = text.partition(HUMAN)
    if not found or before.strip():
        raise _turn_error(f"no {HUMAN} where a turn begins", (before or rest)[:SHOWN])
    prompt, found, rest = rest.partition(EOH)
    if not found:
        raise _turn_error(f"no {EOH} after the prompt", prompt[-SHOWN:])
    between, found, rest = rest.partition(SPEECHGPT)
    if not found:
        raise _turn_error(f"no {SPEECHGPT} after {EOH}", between[:SHOWN])
    if between.strip() not in ("", "."):
        raise _turn_error(f"text between {EOH} and {SPEECHGPT}", between[:SHOWN])
    end = _END.search(rest)
    if not end:
        message = f"no {EOA} at the end: {rest[-SHOWN:]!r}; the record was cut short"
        raise ReleasedError(ReleasedReason.CUT_SHORT, message)
    return prompt, rest[: end.start()], rest[end.end() :].lstrip().removeprefix(".")


def _turn_error(message: str, text: str) -> ReleasedError:
    return ReleasedError(ReleasedReason.TURN_SYNTAX, f"{message}: {text!r}")


def _without_colon(text: str) -> str:
    return text.strip().removeprefix(":").strip()


def _parts(text: str, size: int) -> Iterator[Part]:
    """The text and unit parts of a message, in their order.

    Raises:
        ReleasedError: if the message is empty, or its text holds a special token or a unit.
    """
    pieces = [piece.strip() for piece in _SPELLED.split(text)]
    if not any(pieces):
        raise ReleasedError(ReleasedReason.EMPTY_MESSAGE, "a prompt or a reply is empty")
    for piece in pieces:
        if piece.startswith(SOSP) and piece.endswith(EOSP):
            yield read_units(piece, size)
        elif piece:
            yield _text(piece)


def _text(piece: str) -> str:
    """A piece of text as it is.

    Raises:
        ReleasedError: if it holds a special token or a unit.
    """
    stray = _STRAY.search(piece)
    if not stray:
        return piece
    word, shown = stray[0], repr(piece[:SHOWN])
    if word in (SOSP, EOSP):
        missing = EOSP if word == SOSP else SOSP
        raise ReleasedError(ReleasedReason.UNIT_SPELLING, f"{word} without {missing}: {shown}")
    kind = "a special token" if word in (*SPECIAL_TOKENS, EOS) else "a unit"
    raise ReleasedError(ReleasedReason.STRAY_TOKEN, f"{kind}, {word}, within text: {shown}")


def _reply(text: str, size: int) -> Reply:
    """Parse `transcript; [ta] answer; [ua] units`, one text alone, or units alone.

    `[tq]` may stand before the transcript.
    """
    transcript, chained, rest = text.removeprefix(TQ).strip().partition(TA)
    if not chained:
        return Reply.from_parts((_only_part(transcript, size),))
    heard = _text(_without_semicolon(transcript)) if transcript.strip() else None
    answer, spoken, units = rest.partition(UA)
    if not spoken:
        return Reply(heard, _text(answer.strip()))
    part = _only_part(units, size)
    if isinstance(part, str):
        raise ReleasedError(ReleasedReason.REPLY_SYNTAX, f"text instead of units after {UA}: {part[:SHOWN]!r}")
    return Reply(heard, _text(_without_semicolon(answer)), part_units(part))


def _only_part(text: str, size: int) -> Part:
    """The one part of a reply without [ta] and [ua], or of what follows [ua].

    Raises:
        ReleasedError: if there are several parts.
    """
    parts = tuple(_parts(text, size))
    if len(parts) > 1:
        message = f"text and units in a reply without {TA} and {UA}, or after {UA}: {text.strip()[:SHOWN]!r}"
        raise ReleasedError(ReleasedReason.REPLY_SYNTAX, message)
    return parts[0]


def _without_semicolon(text: str) -> str:
    return text.strip().removesuffix(";").strip()


# --- writing


def spell_conversation(conversation: Conversation) -> str:
    """The `plain_text` of a conversation.

    It is read back here: parsing gives the same conversation, except for spaces at the ends of texts.

    Raises:
        ReleasedError: if the released form cannot hold the conversation: a text spells a special token or a unit, a
            text is empty, a last prompt has no reply, or a speech part has no units.
    """
    messages = conversation.messages
    try:
        turns = zip(messages[::2], messages[1::2], strict=False)
        spelled = "".join(_spell_turn(prompt, reply) for prompt, reply in turns)
        read_back = [_comparable(message) for message in _messages(spelled, ANY_SIZE)]
        written = [_comparable(message) for message in messages]
    except NoUnitsError as error:
        raise ReleasedError(ReleasedReason.SPEECH_WITHOUT_UNITS, str(error)) from error
    except ReleasedError as error:
        raise ReleasedError(ReleasedReason.NOT_EXPRESSIBLE, f"the released form cannot hold it: {error}") from error
    if read_back != written:
        message = f"the released form cannot hold it: {spelled[:SHOWN]!r} would be read as another conversation"
        raise ReleasedError(ReleasedReason.NOT_EXPRESSIBLE, message)
    return spelled


def _spell_turn(human: Message, assistant: Message) -> str:
    chained = len(assistant.parts) > 1
    prompt, reply = spell_prompt(human), spell_reply(assistant)
    return f"{HUMAN}: {prompt}{EOH}{'.' * chained} {SPEECHGPT}: {reply}{EOA}{'.' if chained else ' '}"


def spell_prompt(message: Message) -> str:
    """A prompt as text; inverse of read_prompt. Raises NoUnitsError for speech whose units are not known."""
    return " ".join(_spell(part) for part in message.parts)


def spell_reply(message: Message) -> str:
    """A reply as text; inverse of read_reply. Raises NoUnitsError for speech whose units are not known."""
    if len(message.parts) == 1:
        return _spell(message.parts[0])
    reply = Reply.from_parts(message.parts)
    transcript = "" if reply.transcript is None else f"{reply.transcript.strip()}; "
    units = "" if reply.units is None else f"; {UA} {_spell(reply.units)}"
    return f"{transcript}{TA} {_spell(reply.text or '')}{units}"


def _spell(part: Part) -> str:
    return part.strip() if isinstance(part, str) else notation.spell(part_units(part))


def _comparable(message: Message) -> tuple[str, list[Part]]:
    """A message without the distinctions that the released form does not keep.

    These are spaces at the ends of texts, empty parts of a prompt, and where one text of a prompt ends and the next
    begins.
    """
    parts: list[Part] = []
    for part in message.parts:
        part = part.strip() if isinstance(part, str) else part_units(part)
        if message.role == "human" and isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1]} {part}".strip()
        elif part or message.role == "assistant":
            parts.append(part)
    return message.role, parts


def write_released(path: str | Path, records: Iterable[ReleasedRecord], refusals: Refusals) -> Counter[str]:
    """Stream records to a released file; inverse of read_released.

    Args:
        path: jsonl, compressed if its name ends in .gz.
        records: what is written.
        refusals: where conversations are counted that the released form cannot hold.

    Returns: conversations by task.
    """
    counts: Counter[str] = Counter()
    with opened_to_write(Path(path)) as file:
        for record in records:
            try:
                line = {"prefix": record.prefix, "plain_text": spell_conversation(record.conversation)}
            except ReleasedError as error:
                refusals.add(record.conversation.id, error)
                continue
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            counts[record.conversation.task] += 1
    return counts


@command("instruct-speech-instruct")
def main(source: Path, out: Path, codebook: Path | None = None, prefix: str = PREFIX) -> int:
    """Convert a released file to a conversation set, or a conversation set to a released file.

    Args:
        source: the file to read
        out: the file to write, compressed if its name ends in .gz; refused records are listed in OUT.refused.jsonl
        codebook: codebook.json of the units of a released file; without it, `source` is a conversation set
        prefix: the system text of each record that is written
    """
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals:
        if codebook is None:
            conversations = progress(read_conversations(source), desc=f"writing {out.name}", unit="records")
            counts = write_released(out, (ReleasedRecord(prefix, c) for c in conversations), refusals)
        else:
            units_of = Codebook.load(codebook)
            records = read_released(source, units_of.size, refusals)
            shown = progress(records, desc=f"reading {source.name}", unit="records")
            counts = Counter(write_conversations(out, (r.conversation for r in shown), units_of, seed=0))
    print(f"{out}: {dict(counts)}; {refusals}")
    return SOME_REFUSED if refusals.counts else 0


if __name__ == "__main__":
    main.cli()

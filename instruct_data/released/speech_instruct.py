"""The released SpeechInstruct files, read and written as a stream, as conversations.

    instruct-speech-instruct released.jsonl set.jsonl.gz --codebook unit_encoder/codebook.json
    instruct-speech-instruct set.jsonl.gz released.jsonl

A released line is {"prefix": system text, "plain_text": turns}, in which markers and units are spelled as text:

    [Human]: {description}. This is input: {text or units}<eoh> [SpeechGPT]: {units or text}<eoa>
    [Human]: {units}<eoh>. [SpeechGPT]: {transcript}; [ta] {answer}; [ua] {units}<eoa>.

That spelling is for exchange only and never meets a tokenizer; what a model reads is rendered by speechgpt/dialogue.py.
Source: the data of Zhang et al. 2023 (arXiv 2305.11000); the second line's form is that of its chain-of-modality set.
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
from instruct_data.text.chats import has_lone_surrogate
from speechgpt.dialogue import Conversation, Message, Part, Reply, part_units
from speechgpt.vocab import EOA, EOH, HUMAN, SPECIAL_TOKENS, SPEECHGPT, TA, TQ, UA
from units import notation
from units.codebook import Codebook
from units.notation import EOSP, SOSP
from units.runtime.command import SOME_REFUSED, command
from units.runtime.gzipped import opened_to_write
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals, numbered_lines

PREFIX = (
    "You are an AI assistant whose name is SpeechGPT.\n- SpeechGPT is a intrinsic cross-modal conversational language "
    "model that is developed by Fudan University.  SpeechGPT can understand and communicate fluently with human through "
    "speech or text chosen by the user.\n- It can perceive cross-modal inputs and generate cross-modal outputs.\n"
)
EOS = "<eos>"  # ends some records in place of <eoa>
_END = re.compile(f"{re.escape(EOA)}|{re.escape(EOS)}")
_SPELLED = re.compile(f"({re.escape(SOSP)}.*?{re.escape(EOSP)})", re.DOTALL)
_STRAY = re.compile("|".join(map(re.escape, (*SPECIAL_TOKENS, EOS))) + r"|<\d+>")


@dataclass(frozen=True)
class ReleasedRecord:
    """A conversation, and the system text that stands before it."""

    prefix: str
    conversation: Conversation


def read_released(path: str | Path, size: int, refusals: Refusals) -> Iterator[ReleasedRecord]:
    """Stream a released file; lines that are malformed are left out, counted, and named with their number.

    Args:
        path: jsonl, compressed if it ends in .gz.
        size: K; units beyond it are refused.
    """
    for number, line in numbered_lines(Path(path), refusals):
        try:
            yield parse_released(line, size, f"released-{number}")
        except ValueError as error:
            refusals.add(f"{path}:{number}", error)


def parse_released(line: str | bytes, size: int, record_id: str) -> ReleasedRecord:
    """Read one line strictly.

    Raises: ValueError beginning with the kind of fault.
    """
    try:
        record: Any = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ValueError("the line is empty" if not line.strip() else f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"not an object: {str(record)[:60]}")
    for name in ("prefix", "plain_text"):
        if name not in record:
            raise ValueError(f"no {name}: the fields are {sorted(record)}")
        if not isinstance(record[name], str):
            raise ValueError(f"{name} is no text: {str(record[name])[:60]}")
    if len(record) > 2:
        raise ValueError(f"unknown fields: {sorted(record.keys() - {'prefix', 'plain_text'})}")
    if has_lone_surrogate(record["prefix"] + record["plain_text"]):
        raise ValueError("half a character: a surrogate without its other half")
    messages = tuple(_messages(record["plain_text"], size))
    return ReleasedRecord(record["prefix"], Conversation(messages, task_of(messages), record_id))


def task_of(messages: Iterable[Message]) -> str:
    """asr, tts, chat, or one of the chains, told by what the last exchange holds."""
    *_, human, assistant = messages
    reply = Reply.from_parts(assistant.parts)
    heard = any(not isinstance(part, str) for part in human.parts)
    if reply.transcript is not None:
        return "chain" if reply.units is not None else "chain_speech_to_text"
    if reply.units is not None:
        return "tts" if reply.text is None else "chain_text_to_speech"
    return "asr" if heard else "chat"


def _messages(text: str, size: int) -> Iterator[Message]:
    rest = text
    if not rest.strip():
        raise ValueError("plain_text is empty")
    while rest.strip():
        before, found, rest = rest.partition(HUMAN)
        if not found or before.strip():
            raise ValueError(f"no {HUMAN} where a turn begins: {(before or rest)[:60]!r}")
        asked, found, rest = rest.partition(EOH)
        if not found:
            raise ValueError(f"no {EOH} after what the human says: {asked[-60:]!r}")
        between, found, rest = rest.partition(SPEECHGPT)
        if not found:
            raise ValueError(f"no {SPEECHGPT} after {EOH}: {between[:60]!r}")
        if between.strip() not in ("", "."):
            raise ValueError(f"words between {EOH} and {SPEECHGPT}: {between[:60]!r}")
        end = _END.search(rest)
        if not end:
            raise ValueError(f"no {EOA} at the end: {rest[-60:]!r}; the record was cut short")
        yield Message("human", tuple(_parts(_said(asked), size)))
        yield Message("assistant", _reply(_said(rest[: end.start()]), size).parts())
        rest = rest[end.end() :].lstrip()
        rest = rest[1:] if rest.startswith(".") else rest


def _said(text: str) -> str:
    return text.strip().removeprefix(":").strip()


def _parts(text: str, size: int) -> Iterator[Part]:
    """Text and units in turn. Raises ValueError on a marker or a unit in text, and where there is nothing."""
    pieces = [piece.strip() for piece in _SPELLED.split(text)]
    if not any(pieces):
        raise ValueError("a turn says nothing")
    for piece in pieces:
        if piece.startswith(SOSP) and piece.endswith(EOSP):
            yield _units(piece, size)
        elif piece:
            yield _text(piece)


def _units(piece: str, size: int) -> tuple[int, ...]:
    try:
        units = notation.read(piece)
    except ValueError as error:
        raise ValueError(f"units are not spelled {SOSP}<12><7>{EOSP}: {piece[:60]!r}") from error
    if not units:
        raise ValueError(f"no units between {SOSP} and {EOSP}")
    if max(units) >= size:
        raise ValueError(f"a unit is out of range: <{max(units)}>; this codebook has <0> to <{size - 1}>")
    return tuple(units)


def _text(piece: str) -> str:
    stray = _STRAY.search(piece)
    if not stray:
        return piece
    word = stray[0]
    if word in (SOSP, EOSP):
        raise ValueError(f"{word} without {EOSP if word == SOSP else SOSP}: {piece[:60]!r}")
    kind = f"{word} in the midst of text" if word in (*SPECIAL_TOKENS, EOS) else f"a unit outside {SOSP}..{EOSP}"
    raise ValueError(f"{kind}: {piece[:60]!r}")


def _reply(text: str, size: int) -> Reply:
    """transcript; [ta] answer; [ua] units - or one text, or units alone. `[tq]` may stand before the transcript."""
    heard, chained, rest = text.removeprefix(TQ).strip().partition(TA)
    if not chained:
        parts = tuple(_parts(heard, size))
        if len(parts) > 1:
            raise ValueError(f"text and units in a reply without {TA} and {UA}: {heard[:60]!r}")
        return Reply.from_parts(parts)
    transcript = _text(heard.strip().removesuffix(";").strip()) if heard.strip() else None
    answer, spoken, sound = rest.partition(UA)
    if not spoken:
        return Reply(transcript, _text(answer.strip()))
    parts = tuple(_parts(sound.strip(), size))
    if len(parts) > 1 or isinstance(parts[0], str):
        raise ValueError(f"no units after {UA}: {sound.strip()[:60]!r}")
    return Reply(transcript, _text(answer.strip().removesuffix(";").strip()), part_units(parts[0]))


# --- writing


def spell_conversation(conversation: Conversation) -> str:
    """The `plain_text` of a conversation; reading it gives the conversation back, but for spaces at the ends of texts.

    Raises: ValueError if this form cannot say it: a text that spells a marker or a unit, an empty text, an open turn.
    """
    try:
        spelled = "".join(
            _spell_turn(human, assistant)
            for human, assistant in zip(conversation.messages[::2], conversation.messages[1::2], strict=False)
        )
        read_back = tuple(_messages(spelled, 1 << 31))
    except ValueError as error:
        raise ValueError(f"the released form cannot say it: {error}") from error
    if [_joined(m) for m in read_back] != [_joined(m) for m in conversation.messages]:
        raise ValueError(f"the released form cannot say it: {spelled[:60]!r} would be read as something else")
    return spelled


def _spell_turn(human: Message, assistant: Message) -> str:
    reply = Reply.from_parts(assistant.parts)
    asked = " ".join(_spell(part) for part in human.parts)
    if reply.transcript is None and (reply.text is None or reply.units is None):
        return f"{HUMAN}: {asked}{EOH} {SPEECHGPT}: {_spell(assistant.parts[0])}{EOA} "
    heard = "" if reply.transcript is None else f"{reply.transcript.strip()}; "
    sound = "" if reply.units is None else f"; {UA} {_spell(reply.units)}"
    return f"{HUMAN}: {asked}{EOH}. {SPEECHGPT}: {heard}{TA} {_spell(reply.text or '')}{sound}{EOA}."


def _spell(part: Part) -> str:
    return part.strip() if isinstance(part, str) else notation.spell(part_units(part))


def _joined(message: Message) -> tuple[str, list[Part]]:
    """A message with the spaces that the released form cannot keep taken out."""
    parts: list[Part] = []
    for part in message.parts:
        part = part.strip() if isinstance(part, str) else part_units(part)
        if message.role == "human" and isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] = f"{parts[-1]} {part}".strip()
        elif part or message.role == "assistant":
            parts.append(part)
    return message.role, parts


def write_released(path: str | Path, records: Iterable[ReleasedRecord], refusals: Refusals) -> Counter[str]:
    """Stream records to a released file, compressed if it ends in .gz; inverse of read_released.

    Returns: how many of each task.
    """
    counts: Counter[str] = Counter()
    with opened_to_write(Path(path)) as file:
        for record in records:
            try:
                line = {"prefix": record.prefix, "plain_text": spell_conversation(record.conversation)}
            except ValueError as error:
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

"""The authors' files: questions to be answered, answers, and conversations of several turns.

    question.json    [{"id", "speech": "q.wav", "conversations": [{"from": "human", "value": "<speech>\\n.."}]}, ..]
    answer.jsonl     {"question_id", "prediction", "prediction_units", "answer"} on each line
    turns            [{"id", "conversation": [{"from": "human", "text", "speech": "q.wav"}, {"from": "gpt", ..}]}, ..]

Sources: omni_speech/infer of github.com/ictnlp/LLaMA-Omni (c63fd72), and the data set Multiturn-Speech-Conversations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt.dialogue import Conversation, Message, Part, Speech
from units.runtime.files.json_files import BOM, FileError, FileReason, as_text, parsed, read_text
from units.runtime.refusals import Reason, RefusedError

PLACE = "<speech>"  # where the speech stands in a published text
HUMAN = ("human", "user")


class QuestionReason(Reason):
    """Why a question gets no answer."""

    NOT_A_QUESTION = "not_a_question"
    """it is no object, or has neither speech nor a text"""
    UNUSABLE_AUDIO = "unusable_audio"
    """its recording cannot be read, is silent, or does not fit the context"""


@dataclass(frozen=True)
class Question:
    """A question of a published file.

    parts: what the human says: a recording, whose path is absolute or relative to the working folder, and text.
    answer: the right one, where the file has it.
    """

    id: Any
    parts: tuple[Part, ...]
    answer: str | None = None


def read_records(path: Path) -> list[Any]:
    """The records of a .json list, or of a file with a record on each line; a FileError stands for a line that is none.

    Raises: OSError if the file cannot be read; FileError if a .json is damaged, or no list.
    """
    if path.suffix == ".json":
        found = parsed(read_text(path), str(path))
        if not isinstance(found, list):
            raise FileError(
                FileReason.NOT_JSON, f"{path} holds a {type(found).__name__}, not a list of questions or conversations"
            )
        return found
    # only a line feed ends a line: other separators may stand in a text
    lines = enumerate(path.read_bytes().removeprefix(BOM).split(b"\n"), 1)
    return [_read_line(line, f"{path}:{number}") for number, line in lines if line.strip()]


def _read_line(line: bytes, where: str) -> Any:
    """The value of a line; the error itself for one that is no JSON, so that the others are still read."""
    try:
        return parsed(as_text(line, where), where)
    except FileError as error:
        return error


def read_question(record: Any, number: int, folder: Path) -> Question:
    """A question of a published file.

    Args:
        number: of the record, from 0: its id where it has none. folder: to which paths are relative.

    Raises: RefusedError if it asks nothing.
    """
    if isinstance(record, FileError):
        raise RefusedError(QuestionReason.NOT_A_QUESTION, str(record))
    if not isinstance(record, dict):
        raise RefusedError(QuestionReason.NOT_A_QUESTION, f"a {type(record).__name__}, not an object with fields")
    turns = record.get("conversations") or record.get("conversation") or []
    first = turns[0] if isinstance(turns, list) and turns else {}
    text = first.get("value") or first.get("text") or "" if isinstance(first, dict) else ""
    speech = record.get("speech") or (first.get("speech") if isinstance(first, dict) else None)
    if not isinstance(text, str) or not (speech is None or isinstance(speech, str)):
        raise RefusedError(QuestionReason.NOT_A_QUESTION, "speech and the text of a turn are text")
    rest = turns[1] if isinstance(turns, list) and len(turns) > 1 and isinstance(turns[1], dict) else {}
    answer = rest.get("value") or rest.get("text")
    asked = text.replace(PLACE, "", 1).strip("\n") if speech else text
    parts: tuple[Part, ...] = ((Speech(str(folder / speech)),) if speech else ()) + ((asked,) if asked else ())
    if not parts:
        raise RefusedError(QuestionReason.NOT_A_QUESTION, "neither speech nor a text")
    return Question(record.get("id", number), parts, answer if isinstance(answer, str) else None)


def published_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a published .json list; a turn has `speech`, `text`, or both, and may have `units`.

    Raises: ValueError naming the record that is no conversation.
    """
    for number, record in enumerate(read_records(path)):
        try:
            yield _conversation(record, number)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: record {number} is not a conversation: {error}") from error


def _conversation(record: dict[str, Any], number: int) -> Conversation:
    turns = record.get("conversation") or record["conversations"]
    messages = []
    for place, turn in enumerate(turns):
        human = turn["from"] in HUMAN
        speech = turn.get("speech") or (record.get("speech") if human and place == 0 else None)
        text = str(turn.get("text") or turn.get("value") or "").replace(PLACE, "", 1).strip()
        units = _units(turn.get("units") or turn.get("unit") or turn.get("tgt_units"))
        if human:
            parts: tuple[Part, ...] = (Speech(speech),) if speech else (text,)
        else:
            parts = (text, units) if units else (text,)
        messages.append(Message("human" if human else "assistant", parts))
    return Conversation(tuple(messages), "chain", str(record.get("id", number)))


def _units(given: Any) -> tuple[int, ...] | None:
    """Units as a list of numbers, or as a text of numbers with spaces; None for none."""
    if not given:
        return None
    return tuple(int(unit) for unit in (given.split() if isinstance(given, str) else given))

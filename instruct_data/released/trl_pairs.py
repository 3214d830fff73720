"""TRL's preference format, read and written as preference sets.

    instruct-trl-pairs pairs.jsonl.gz trl.jsonl
    instruct-trl-pairs trl.jsonl pairs.jsonl.gz --codebook unit_encoder/codebook.json

A line of TRL's is a conversation and two replies to it, or the same as plain text, which is a single turn:

    {"prompt": [{"role": "user", "content": ".."}], "chosen": [{"role": "assistant", "content": ".."}], "rejected": ..}
    {"prompt": "..", "chosen": "..", "rejected": ".."}

Units and chains are spelled as in SpeechGPT's released data: `<sosp><12><7><eosp>`, and
`transcript; [ta] answer; [ua] <sosp><12><7><eosp>`. Two utterances of units without a prompt have an empty prompt.
Source: the page "Dataset formats and types" of TRL's documentation, type "preference" with an explicit prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instruct_data.build.preference_sets import FORMAT, Pair, read_preferences, write_preferences
from instruct_data.build.records import read_header
from instruct_data.released.reasons import ReleasedError, ReleasedReason
from instruct_data.released.speech_instruct import read_prompt, read_reply, spell_prompt, spell_reply, task_of
from speechgpt.dialogue import Message, NoUnitsError
from units.codebook import Codebook
from units.runtime.command import SOME_REFUSED, command
from units.runtime.files.gzipped import opened, opened_to_write
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals, numbered_lines

ROLES = {"user": "human", "assistant": "assistant"}
FIELDS = ("prompt", "chosen", "rejected")


@command("instruct-trl-pairs")
def main(source: Path, out: Path, codebook: Path | None = None) -> int | None:
    """Turn a preference set into TRL's preference format, or back.

    Args:
        source: a preference set, or JSON lines of TRL's
        out: the file to write
        codebook: codebook.json of the units, to read TRL's format; not needed where there are no units
    """
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals:
        if is_preference_set(source):
            written = write_trl(out, source, refusals)
        else:
            units = Codebook.load(codebook) if codebook else None
            pairs = read_trl(source, units, refusals)
            written = sum(write_preferences(out, progress(pairs, desc="pairs", unit="pairs"), units).values())
        print(f"{written} pairs -> {out}; {refusals}")
    return SOME_REFUSED if refusals.counts else None


def is_preference_set(path: Path) -> bool:
    """Whether a file has the header of a preference set."""
    with opened(path) as lines:
        first = next(lines, "")
    if f'"{FORMAT}"' not in first:
        return False
    read_header(path, [FORMAT], "a preference set")  # raises if it is damaged
    return True


# --- reading


def read_trl(path: Path, codebook: Codebook | None, refusals: Refusals) -> Iterator[Pair]:
    """Stream a file of TRL's. A malformed line is refused and listed with its number.

    Args:
        codebook: of the units; None where there are none.
    """
    for number, line in numbered_lines(path, refusals):
        try:
            yield parse_trl(line, codebook, f"pair-{number}")
        except ReleasedError as error:
            refusals.add(f"{path}:{number}", error)


def parse_trl(line: str | bytes, codebook: Codebook | None, name: str) -> Pair:
    """Read one line strictly.

    Raises:
        ReleasedError: if the line is malformed.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ReleasedError(ReleasedReason.NOT_JSON, f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ReleasedError(ReleasedReason.NOT_AN_OBJECT, f"not a JSON object: {str(record)[:60]}")
    if missing := [field for field in FIELDS if field not in record]:
        fields = f"no field {', '.join(missing)}: the fields are {sorted(record)}"
        raise ReleasedError(ReleasedReason.MISSING_FIELD, fields)
    size = codebook.size if codebook else 0
    turns = [_message(turn, size) for turn in _turns(record["prompt"], "user")]
    chosen, rejected = (_single(record[field], field, size) for field in FIELDS[1:])
    try:
        task = task_of((*turns, chosen)) if turns else "continuation"
        return Pair(tuple(turns), chosen, rejected, task, str(record.get("id", name)), _scores(record))
    except ValueError as error:
        raise ReleasedError(ReleasedReason.TURN_SYNTAX, str(error)) from error


def _turns(given: Any, role: str) -> list[dict[str, str]]:
    """The turns of a field; plain text is one turn of a role, empty text none."""
    if isinstance(given, str):
        return [{"role": role, "content": given}] if given.strip() else []
    found: list[Any] = given if isinstance(given, list) else [None]
    for turn in found:
        if not isinstance(turn, dict) or not all(isinstance(turn.get(name), str) for name in ("role", "content")):
            message = f"a turn has a role and a content, both text: {str(turn)[:60]}"
            raise ReleasedError(ReleasedReason.WRONG_TYPE, message)
        if turn["role"] not in ROLES:
            message = f"a turn of the role {turn['role'][:60]!r}; allowed: {', '.join(ROLES)}"
            raise ReleasedError(ReleasedReason.WRONG_TYPE, message)
    return found


def _message(turn: dict[str, str], size: int) -> Message:
    return read_prompt(turn["content"], size) if turn["role"] == "user" else read_reply(turn["content"], size)


def _single(given: Any, field: str, size: int) -> Message:
    turns = _turns(given, "assistant")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise ReleasedError(ReleasedReason.TURN_SYNTAX, f"{field} is {len(turns)} turns; it must be one of assistant")
    return _message(turns[0], size)


def _scores(record: dict[str, Any]) -> tuple[float, float] | None:
    scores = record.get("scores")
    if isinstance(scores, list) and len(scores) == 2 and all(type(one) in (int, float) for one in scores):
        return float(scores[0]), float(scores[1])
    return None


# --- writing


def write_trl(path: Path, source: Path, refusals: Refusals) -> int:
    """Write a preference set as JSON lines of TRL's, compressed if the name ends in .gz.

    Args:
        refusals: where pairs are counted that this format cannot hold.

    Returns: pairs that were written.
    """
    written = 0
    with opened_to_write(path) as file:
        for pair in progress(read_preferences(source), desc="pairs", unit="pairs"):
            try:
                line = trl_record(pair)
            except ReleasedError as error:
                refusals.add(pair.id, error)
                continue
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
            written += 1
    return written


def trl_record(pair: Pair) -> dict[str, Any]:
    """A pair as TRL has it, with its id and its scores beside it, which TRL leaves alone.

    Raises:
        ReleasedError: if this format cannot hold it: a text spells a special token or a unit, or units are not known.
    """
    try:
        record: dict[str, Any] = {"id": pair.id, "prompt": [_turn(message) for message in pair.messages]}
        record |= {"chosen": [_turn(pair.chosen)], "rejected": [_turn(pair.rejected)]}
    except NoUnitsError as error:
        raise ReleasedError(ReleasedReason.SPEECH_WITHOUT_UNITS, str(error)) from error
    if pair.scores:
        record["scores"] = list(pair.scores)
    return record


def _turn(message: Message) -> dict[str, str]:
    human = message.role == "human"
    spelled = spell_prompt(message) if human else spell_reply(message)
    (read_prompt if human else read_reply)(spelled, 1 << 31)  # raises if it cannot be read back
    return {"role": "user" if human else "assistant", "content": spelled}


if __name__ == "__main__":
    main.cli()

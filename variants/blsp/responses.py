"""Responses to lines of JSON: what a line asks for, and why it gets no response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speechgpt.sampling import Sampling
from units.runtime.refusals import Reason, Refusals, RefusedError
from variants.blsp.data.labels import published_speech
from variants.blsp.inference import BLSP, Request


class LineReason(Reason):
    """Why a line has no response."""

    NOT_A_REQUEST = "not_a_request"
    """it is not JSON, or has neither audio nor an instruction"""
    UNUSABLE_AUDIO = "unusable_audio"
    """its recording cannot be read, is silent, or does not fit the context"""


def respond(
    blsp: BLSP, lines: list[tuple[int, bytes]], source: Path, instruction: str, sampling: Sampling, refusals: Refusals
) -> list[dict[str, Any]]:
    """The records of some lines, in order: their fields, and `response`; null, and `refused`, where there is none.

    Args:
        lines: with their numbers, from 1. source: the file that they are from. instruction: for lines that name none.
    """
    records: list[dict[str, Any]] = []
    prompts: dict[int, Any] = {}
    for place, (number, line) in enumerate(lines):
        record: dict[str, Any] = {}
        try:
            record = read_record(line)
            prompts[place] = blsp.prepared(read_request(record, source.parent, instruction))
        except ValueError as error:
            reason: Reason = LineReason.UNUSABLE_AUDIO
            if isinstance(error, RefusedError) and isinstance(error.reason, LineReason):
                reason = error.reason
            refusals.add(f"{source}:{number}", reason, str(error))
            record = {**record, "refused": reason.value}
        records.append(record)
    found = dict(zip(prompts, blsp.responses(list(prompts.values()), sampling)))
    return [{**record, "response": found.get(place)} for place, record in enumerate(records)]


def read_record(line: str | bytes) -> dict[str, Any]:
    """The fields of a line.

    Raises: RefusedError if it is no JSON object.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedError(LineReason.NOT_A_REQUEST, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise RefusedError(LineReason.NOT_A_REQUEST, f"a {type(record).__name__}, not an object with fields")
    return record


def read_request(record: dict[str, Any], folder: Path, instruction: str) -> Request:
    """What a line asks for.

    Args:
        folder: of the file, to which paths are relative. instruction: for a line that names none.

    Raises: RefusedError if it asks for nothing; ValueError if its recording cannot be found.
    """
    audio, given = record.get("audio"), record.get("instruction")
    if not all(value is None or isinstance(value, str) for value in (audio, given)):
        raise RefusedError(LineReason.NOT_A_REQUEST, "audio and instruction are text")
    asked = instruction if given is None else given
    if not audio and not asked:
        raise RefusedError(LineReason.NOT_A_REQUEST, "neither audio nor an instruction, and --instruction is not given")
    return Request(published_speech(audio, folder) if audio else None, asked)

"""Answers to questions of a published file: their lines, their sound, and why a question gets none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from units.audio import save_wav
from units.runtime.refusals import Reason, Refusals, RefusedError
from variants.llama_omni.data.published import Question, QuestionReason, read_question
from variants.llama_omni.inference import LlamaOmni


def answer(
    omni: LlamaOmni,
    records: list[tuple[int, Any]],
    source: Path,
    wavs: Path | None,
    sampling: Sampling,
    refusals: Refusals,
) -> list[dict[str, Any]]:
    """The lines of some questions, in order.

    Args:
        records: with their numbers, from 0. source: the file that they are from. wavs: a folder for sound, if any.
    """

    found: list[dict[str, Any]] = []
    asked: dict[int, tuple[Question, Message]] = {}
    for place, (number, record) in enumerate(records):
        line: dict[str, Any] = {"question_id": number, "prediction": None, "prediction_units": None, "answer": None}
        try:
            question = read_question(record, number, source.parent)
            line |= {"question_id": question.id, "answer": question.answer}
            message = omni.prepared(question.parts)
            asked[place] = question, message
        except ValueError as error:
            reason: Reason = QuestionReason.UNUSABLE_AUDIO
            if isinstance(error, RefusedError) and isinstance(error.reason, QuestionReason):
                reason = error.reason
            refusals.add(f"{source}:{number + 1}", reason, str(error))
            line["refused"] = reason.value
        found.append(line)
    answers = omni.reply_batch([message for _, message in asked.values()], sampling)
    for place, made in zip(asked, answers, strict=True):
        found[place]["prediction"] = made.text or ""
        found[place]["prediction_units"] = " ".join(map(str, made.units or ()))
        if wavs is not None and made.wav is not None:
            found[place]["wav"] = _write(wavs, records[place][0], made.wav)
    return found


def _write(wavs: Path, number: int, wav: Any) -> str:
    """Write an answer's sound; returns its name."""
    path = wavs / f"{number:05d}.wav"
    save_wav(path, wav)
    return path.name

"""Speak many lines into a folder of wavs with a manifest: in parallel, resumable, every failure counted.

    python -m instruct_data.speak chats.jsonl corpus '[espeak:en-us, espeak:en-us+f2]' flite:slt

A line that is on disk already is not spoken again, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instruct_data.refusals import Refusals
from instruct_data.text_sets import TextChat, read_chats
from instruct_data.voices import VoiceError, open_voice
from units.audio import SAMPLE_RATE, AudioError, save_wav
from units.manifest import Utterance, write_manifest, written_whole
from units.progress import progress

SILENCE = 0.01  # of the peak
MARGIN = round(0.04 * SAMPLE_RATE)  # samples of quiet kept on either side
PEAK = 0.7


@dataclass(frozen=True)
class Line:
    """One sentence to speak. `options` go to the engine; `speaker` is what the manifest calls the voice."""

    id: str
    text: str
    voice: str
    options: dict[str, float] = field(default_factory=dict)


def speak_lines(lines: Sequence[Line], folder: Path, name: str, workers: int | None = None) -> Path:
    """Speak every line to `folder/wav/ID.wav` and write the manifest `folder/NAME.jsonl`.

    Lines that no engine could speak are listed in `folder/NAME.refused.jsonl` with the reason.

    Args:
        workers: processes; None takes one for each core.

    Returns: the manifest's path.

    Raises: VoiceError if not one line could be spoken.
    """
    jobs = [(line, folder / "wav" / f"{line.id}.wav") for line in lines]
    todo = [job for job in jobs if not job[1].exists()]
    refused: dict[str, str] = {}
    if todo:
        with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
            spoken = progress(
                pool.imap(_speak_one, todo, chunksize=32), total=len(todo), desc=f"speaking {name}", unit="lines"
            )
            refused = {line_id: reason for line_id, reason in spoken if reason}
    kept = [
        Utterance(id=line.id, audio=path, text=line.text, speaker=line.voice)
        for line, path in jobs
        if line.id not in refused
    ]
    if jobs and not kept:
        raise VoiceError(f"no line of {name} could be spoken; the first reason: {next(iter(refused.values()))}")
    (folder / f"{name}.refused.jsonl").unlink(missing_ok=True)  # of a former run
    if refused:
        with written_whole(folder / f"{name}.refused.jsonl") as file:
            file.writelines(json.dumps({"id": key, "reason": reason}) + "\n" for key, reason in refused.items())
        print(f"{len(refused)} of {len(lines)} lines refused, see {folder / name}.refused.jsonl")
    return write_manifest(folder / f"{name}.jsonl", kept)


def _speak_one(job: tuple[Line, Path]) -> tuple[str, str | None]:
    """Speak one line to its file; returns its id and the reason it failed, if it did."""
    line, path = job
    try:
        save_wav(path, trim(open_voice(line.voice, **line.options).speak(line.text)))
    except (VoiceError, AudioError) as error:
        return line.id, str(error)
    return line.id, None


def chat_lines(
    chats: Iterable[TextChat], question_voices: Sequence[str], answer_voice: str, voices_a_question: int, seed: int
) -> Iterator[Line]:
    """What is said in text chats, each line once: questions in varying voices, answers in one.

    Whoever asks the first question of a chat asks them all, so that a conversation has one human voice.

    Args:
        voices_a_question: in how many voices each chat is asked, drawn by its first question.

    Raises: ValueError if the answer voice asks too; a listener, and the chain, tell the two apart by their voices.
    """
    if answer_voice in question_voices:
        raise ValueError(f"{answer_voice!r} answers, so it cannot ask as well; leave it out of {list(question_voices)}")
    seen: set[str] = set()
    for chat in chats:
        draw = random.Random(f"{seed} voices {chat.turns[0].question}")
        asking = draw.sample(list(question_voices), min(voices_a_question, len(question_voices)))
        said = [(turn.question, voice) for voice in asking for turn in chat.turns]
        said += [(turn.answer, answer_voice) for turn in chat.turns]
        for text, voice in said:
            name = hashlib.blake2b(f"{voice} {text}".encode(), digest_size=10).hexdigest()
            if name not in seen:
                seen.add(name)
                options = {} if voice == answer_voice else varied(voice, random.Random(f"{seed} {name}"))
                yield Line(f"{'a' if voice == answer_voice else 'q'}-{name}", text, voice, options)


def varied(voice: str, draw: random.Random) -> dict[str, float]:
    """A speaking rate, and for espeak a pitch: no two people speak alike."""
    if voice.startswith("flite:"):
        return {"stretch": round(draw.uniform(0.85, 1.15), 3)}
    if voice.startswith("espeak:"):
        return {"speed": draw.randint(150, 195), "pitch": draw.randint(35, 65)}
    return {}


def main(
    pairs: Path,
    out: Path,
    question_voices: list[str],
    answer_voice: str,
    voices_a_question: int = 1,
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Speak a text set.

    Args:
        pairs: the text set
        out: folder for the wavs and the manifest `train.jsonl`
        question_voices: who asks; another voice for each chat
        answer_voice: who answers
        voices_a_question: in how many of the voices each chat is asked
        seed: decides voices, rates and pitches
        workers: processes, one for each core if not given
    """
    refusals = Refusals()
    lines = list(chat_lines(read_chats(pairs, refusals), question_voices, answer_voice, voices_a_question, seed))
    print(f"{speak_lines(lines, out, 'train', workers)}; of {pairs.name}: {refusals}")


def trim(wav: np.ndarray) -> np.ndarray:
    """Cut the silence around speech down to 40 ms and bring the peak to 0.7."""
    loud = np.flatnonzero(np.abs(wav) > SILENCE * np.abs(wav).max())
    if not len(loud):
        return wav
    wav = wav[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
    return wav * (PEAK / np.abs(wav).max())


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

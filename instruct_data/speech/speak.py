"""Speak many lines into a folder of wavs with a manifest: in parallel, resumable, every failure counted.

    python -m instruct_data.speech.speak chats.jsonl corpus '[espeak:en-us, espeak:en-us+f2]' flite:slt

A line that is on disk already is not spoken again, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instruct_data.speech.voices import VoiceError, open_voice, processes
from instruct_data.text.chats import TextChat, read_chats
from units.audio import SAMPLE_RATE, AudioError, save_wav
from units.corpus.manifest import Utterance, write_manifest
from units.runtime.pool import Workers
from units.runtime.progress import progress
from units.runtime.refusals import listed_refusals

BATCH = 32  # lines that a process is given at once
QUIET = 0.02  # of full scale: the peaks of speech are above 0.1, flite's noise for a text without words is below 0.01
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

    @property
    def file(self) -> str:
        """A name that another text, voice or rate would not have, so that no line takes the sound of a former run's."""
        return f"{self.id}-{_digest(repr((self.text, self.voice, sorted(self.options.items()))), 4)}.wav"


def speak_lines(lines: Sequence[Line], folder: Path, name: str, workers: int | None = None) -> Path:
    """Speak every line to a file in `folder/wav` and write the manifest `folder/NAME.jsonl`.

    Lines that no engine could speak are listed in `folder/NAME.refused.jsonl` with the reason.

    Args:
        workers: processes; None takes what suits the voices.

    Returns: the manifest's path.

    Raises: VoiceError if not one line could be spoken; RuntimeError if an engine took its process with it.
    """
    jobs = [(line, folder / "wav" / line.file) for line in lines]
    todo = [job for job in jobs if not job[1].exists()]
    batches = [todo[first : first + BATCH] for first in range(0, len(todo), BATCH)]
    failed: dict[str, str] = {}
    with Workers(workers or processes(line.voice for line, _ in todo)) as pool:
        with progress(total=len(todo), desc=f"speaking {name}", unit="lines") as bar:
            for count, reasons in pool.run(_speak_some, batches):
                failed |= reasons
                bar.update(count)
    if jobs and len(failed) == len(jobs):
        raise VoiceError(f"no line of {name} could be spoken; the first reason: {failed[lines[0].id]}")
    with listed_refusals(folder / f"{name}.refused.jsonl") as refusals:
        for line in lines:
            if line.id in failed:
                refusals.add(line.id, failed[line.id])
    if failed:
        print(f"{len(failed)} of {len(lines)} lines refused, see {folder / name}.refused.jsonl")
    return write_manifest(
        folder / f"{name}.jsonl",
        (Utterance(line.id, path, text=line.text, speaker=line.voice) for line, path in jobs if line.id not in failed),
    )


def _speak_some(jobs: Sequence[tuple[Line, Path]]) -> tuple[int, dict[str, str]]:
    """Speak each line to its file; returns how many these are, and by id the reasons of those that failed."""
    failed = {}
    for line, path in jobs:
        try:
            save_wav(path, trim(open_voice(line.voice, **line.options).speak(line.text), line.text))
        except (VoiceError, AudioError) as error:
            failed[line.id] = str(error)
    return len(jobs), failed


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
            name = _digest(f"{voice} {text}", 10)
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
    most: int | None = None,
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
        most: chats, the first ones, for a trial
        workers: processes; one for each core if not given, and one for a model on a GPU
    """
    with listed_refusals(out / "chats.refused.jsonl") as refusals:
        chats = itertools.islice(read_chats(pairs, refusals), most)
        lines = list(chat_lines(chats, question_voices, answer_voice, voices_a_question, seed))
    print(f"{speak_lines(lines, out, 'train', workers)}; of {pairs.name}: {refusals}")


def trim(wav: np.ndarray, text: str = "") -> np.ndarray:
    """Cut the silence around speech down to 40 ms and bring the peak to 0.7. Raises VoiceError if there is no speech."""
    peak = np.abs(wav).max()
    if peak < QUIET:
        raise VoiceError(f"said nothing: {text!r} has a peak of {peak:.4f}")
    loud = np.flatnonzero(np.abs(wav) > SILENCE * peak)
    wav = wav[max(0, loud[0] - MARGIN) : loud[-1] + MARGIN]
    return wav * (PEAK / np.abs(wav).max())


def _digest(content: str, size: int) -> str:
    return hashlib.blake2b(content.encode(), digest_size=size).hexdigest()


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

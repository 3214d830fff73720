"""Speak many lines of text into a folder of wavs with a manifest: in parallel and resumable, every failure counted.

    python -m instruct_data.speech.speak chats.jsonl corpus '[espeak:en-us, espeak:en-us+f2]' flite:slt

A line whose wav exists is not spoken again, so a killed run continues where it stopped.
`instruct_data/speech/voices.py` lists the TTS voices.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instruct_data.speech.voices import VoiceError, open_voice, processes
from instruct_data.text.chats import TextChat, read_chats
from units.corpus.manifest import Utterance, write_manifest
from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.files.file_names import plain_name
from units.runtime.pool import Workers
from units.runtime.progress import progress
from units.runtime.refusals import RefusedError, listed_refusals
from units.runtime.settings import check_types

BATCH = 32  # lines that a worker process receives at once


@dataclass(frozen=True)
class Line:
    """One sentence to speak.

    voice: specification of the TTS voice; the manifest states it as the speaker. options: of its engine.
    """

    id: str
    text: str
    voice: str
    options: dict[str, float] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The name of its wav; it differs for another text, voice or option, so that no wav is reused wrongly."""
        suffix = f"-{_digest(repr((self.text, self.voice, sorted(self.options.items()))), 4)}.wav"
        return plain_name(self.id, suffix) + suffix


@dataclass(frozen=True)
class Spoken:
    """What became of some lines.

    manifest: path of the manifest. lines: how many there were. refused: how many of them could not be spoken.
    """

    manifest: Path
    lines: int
    refused: int


def speak_lines(lines: Sequence[Line], folder: Path, name: str, workers: int | None = None) -> Spoken:
    """Speak every line to a wav in `folder/wav`, and write the manifest `folder/NAME.jsonl`.

    Lines that could not be spoken are listed in `folder/NAME.refused.jsonl`.

    Args:
        workers: processes; None takes the number that suits the voices.

    Raises:
        VoiceError: if no line could be spoken.
        RuntimeError: if an engine ended its process.
    """
    jobs = [(line, folder / "wav" / line.file) for line in lines]
    missing = [job for job in jobs if not job[1].exists()]
    batches = [missing[first : first + BATCH] for first in range(0, len(missing), BATCH)]
    failed: dict[str, RefusedError] = {}
    with Workers(workers or processes(line.voice for line, _ in missing)) as pool:
        with progress(total=len(missing), desc=f"speaking {name}", unit="lines") as bar:
            for count, errors in pool.run(_speak_batch, batches):
                failed |= errors
                bar.update(count)
    if jobs and len(failed) == len(jobs):
        first_error = failed[lines[0].id]
        raise VoiceError(first_error.reason, f"no line of {name} could be spoken; the first error: {first_error}")
    with listed_refusals(folder / f"{name}.refused.jsonl") as refusals:
        for line in lines:
            if line.id in failed:
                refusals.add(line.id, failed[line.id])
    if failed:
        print(f"{len(failed)} of {len(lines)} lines refused, see {folder / name}.refused.jsonl")
    spoken = [
        Utterance(line.id, path, text=line.text, speaker=line.voice) for line, path in jobs if line.id not in failed
    ]
    return Spoken(write_manifest(folder / f"{name}.jsonl", spoken), len(lines), len(failed))


def _speak_batch(jobs: Sequence[tuple[Line, Path]]) -> tuple[int, dict[str, RefusedError]]:
    """Speak each line to its wav. Returns the number of lines, and the errors by the lines' ids."""
    from instruct_data.speech.trim import trim
    from units.audio import save_wav

    failed = {}
    for line, path in jobs:
        try:
            save_wav(path, trim(open_voice(line.voice, **line.options).speak(line.text), line.text))
        except RefusedError as error:  # VoiceError, AudioError
            failed[line.id] = error
    return len(jobs), failed


def chat_lines(
    chats: Iterable[TextChat], question_voices: Sequence[str], answer_voice: str, voices_a_question: int, seed: int
) -> Iterator[Line]:
    """The lines of text chats, each once: questions in varying voices, answers in one voice.

    One voice asks all questions of a chat, so that a conversation has one human speaker.

    Args:
        voices_a_question: in how many voices each chat is asked; they are drawn by its first question.

    Raises:
        ValueError: if the answer voice is a question voice too. The chain builder tells questions from answers by
            their voices.
    """
    if answer_voice in question_voices:
        raise ValueError(
            f"{answer_voice!r} is the answer voice, so it cannot ask; leave it out of {list(question_voices)}"
        )
    seen: set[str] = set()
    for chat in chats:
        draw = random.Random(f"{seed} voices {chat.turns[0].question}")
        asking = draw.sample(list(question_voices), min(voices_a_question, len(question_voices)))
        sentences = [(turn.question, voice) for voice in asking for turn in chat.turns]
        sentences += [(turn.answer, answer_voice) for turn in chat.turns]
        for text, voice in sentences:
            key = _digest(f"{voice} {text}", 10)
            if key not in seen:
                seen.add(key)
                options = {} if voice == answer_voice else varied(voice, random.Random(f"{seed} {key}"))
                yield Line(f"{'a' if voice == answer_voice else 'q'}-{key}", text, voice, options)


def varied(voice: str, draw: random.Random) -> dict[str, float]:
    """Random options of a voice: a speaking rate, and for espeak-ng a pitch, so that speakers differ."""
    if voice.startswith("flite:"):
        return {"stretch": round(draw.uniform(0.85, 1.15), 3)}
    if voice.startswith("espeak:"):
        return {"speed": draw.randint(150, 195), "pitch": draw.randint(35, 65)}
    return {}


@dataclass(frozen=True)
class SpeakConfig:
    """How a text set is spoken."""

    voices_a_question: int = 1
    """In how many of the question voices each chat is asked."""
    seed: int = 0
    """Decides voices, rates and pitches."""
    most: int | None = None
    """Speak only the first chats, this many, for a trial; all if not given."""
    workers: int | None = None
    """Processes; if not given, one for each core, or one if a model is on a GPU."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("voices_a_question", "most", "workers"):
            check_range(name, getattr(self, name), 1)
        check_range("seed", self.seed, 0)


@command("instruct-speak", flat=True)
def main(
    chats: Path, out: Path, question_voices: list[str], answer_voice: str, config: SpeakConfig = SpeakConfig()
) -> int:
    """Speak a text set.

    Args:
        chats: the text set
        out: folder for the wavs and the manifest `train.jsonl`
        question_voices: TTS voices of the questions; each chat draws one of them
        answer_voice: TTS voice of the answers
        config: how it is spoken
    """
    for voice in [*question_voices, answer_voice]:
        open_voice(voice)  # an unknown kind of voice is an error of the command, not of every line
    with listed_refusals(out / "chats.refused.jsonl") as refusals:
        kept = itertools.islice(read_chats(chats, refusals), config.most)
        lines = list(chat_lines(kept, question_voices, answer_voice, config.voices_a_question, config.seed))
    spoken = speak_lines(lines, out, "train", config.workers)
    print(f"{spoken.manifest}: {spoken.lines - spoken.refused} lines; of {chats.name}: {refusals}")
    return SOME_REFUSED if spoken.refused or refusals.counts else 0


def _digest(content: str, size: int) -> str:
    return hashlib.blake2b(content.encode(), digest_size=size).hexdigest()


if __name__ == "__main__":
    main.cli()

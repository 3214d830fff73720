"""Speak the corpus of the shipped codec: open English in many TTS voices, and human readers beside them.

    python -m instruct_data.speech.codec_corpus --out runs/codec/corpus --lines 300 --answers 100       # a trial
    python -m instruct_data.speech.codec_corpus --out runs/codec/corpus --readers LibriSpeech/train-clean-100

| manifest | utterances | for |
|---|---|---|
| `answers.jsonl` | the answer voice | |
| `voices.jsonl` | all other TTS voices | |
| `encoder.jsonl` | both, and segments of the readers' recordings, repeated to READERS_SHARE | the codebook |
| `vocoder_units.jsonl` | the answer voice, and a perturbed copy of each utterance, with pauses | the vocoder's units |
| `vocoder_sound.jsonl` | the same ids, with the sound that they should have | the vocoder's targets |

A killed run continues where it stopped. Two TTS voices are left out, so that what is measured on them is measured on
unheard voices.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from instruct_data.speech.open_sentences import open_sentences
from instruct_data.speech.speak import Line, speak_lines
from units.corpus.manifest import Utterance, read_manifest, write_manifest
from units.runtime.command import command

ANSWER_VOICE = "flite:slt"
UNHEARD = ("flite:rms", "flite:awb")  # TTS voices that no line is spoken in
ESPEAK_VARIANTS = (
    "f1 f2 f3 f4 f5 m1 m2 m3 m4 m5 m6 m7 m8 klatt klatt2 klatt3 klatt4 klatt5 Alex Alicia Andrea Andy Annie "
    "AnxiousAndy Denis Diogo Gene Gene2 Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed RicishayMax "
    "RicishayMax2 Tweaky adam anika anikaRobot announcer antonio aunty belinda benjamin boris caleb croak "
    "david ed edward fast grandma grandpa gustave ian iven iven2 iven3 iven4 john kaukovalta linda marcelo max "
    "michel miguel norbert pablo paul pedro quincy rob robert robosoft shelby steph steph2 steph3 travis "
    "victor whisper zac"
).split()
ACCENTS = (
    "en-us",
    "gmw/en-GB-scotland",
    "en-029",
    "gmw/en",
    "gmw/en-GB-x-rp",
    "gmw/en-GB-x-gbclan",
    "gmw/en-GB-x-gbcwmd",
)
KAL_SHARE = 0.12  # of the lines: flite's second voice, a recorded man
READERS_SHARE = 0.4  # of the utterances for the encoder
SEGMENT = 5.0  # seconds of a reader's recording in one utterance, about
SHORTEST = 1.5  # seconds of the last segment


def voice_lines(
    count: int, seed: int = 0, recorded: Sequence[str] = ("flite:kal16",), share: float = KAL_SHARE
) -> list[Line]:
    """`count` lines, each with a random voice, rate, pitch and vocal-tract warp.

    Args:
        recorded: voices of flite, which are made of recordings of people, in turn; the other lines are espeak's.
        share: of the lines that they speak.
    """
    draw = random.Random(f"codec voices {seed}")
    lines = []
    for i, text in enumerate(open_sentences(count, seed)):
        warp = round(draw.uniform(0.85, 1.18), 3)
        if draw.random() < share:
            voice = recorded[i % len(recorded)]
            options = {"stretch": round(draw.uniform(0.8, 1.25), 3), "warp": warp}
        else:
            voice = f"espeak:{draw.choice(ACCENTS)}+{draw.choice(ESPEAK_VARIANTS)}"
            options = {"speed": draw.randint(130, 210), "pitch": draw.randint(20, 80), "warp": warp}
        lines.append(Line(f"v{i:06d}", text, voice, options))
    return lines


def answer_lines(count: int, seed: int = 0) -> list[Line]:
    """`count` lines in the answer voice, as it speaks."""
    return [Line(f"a{i:06d}", text, ANSWER_VOICE) for i, text in enumerate(open_sentences(count, seed + 1))]


def reader_segments(folder: Path) -> Iterator[Utterance]:
    """Segments of about SEGMENT seconds of every recording in a LibriSpeech part, or any folder of audio."""
    import soundfile

    files = sorted(path for path in folder.rglob("*") if path.suffix in (".flac", ".wav", ".ogg"))
    if not files:
        raise FileNotFoundError(f"no .flac, .wav or .ogg in {folder}; --readers is a part of LibriSpeech")
    for path in files:
        seconds = soundfile.info(path).duration
        count = max(1, round(seconds / SEGMENT))
        for i in range(count):
            start = round(i * seconds / count, 3)
            length = round(seconds / count, 3) if i + 1 < count else None
            yield Utterance(f"{path.stem}-{i}", path, start=start, duration=length, speaker=path.stem.split("-")[0])


def repeated(readers: list[Utterance], others: int) -> list[Utterance]:
    """The readers' utterances as often as makes them READERS_SHARE beside `others` utterances; at least once."""
    copies = max(1, round(others * READERS_SHARE / (1 - READERS_SHARE) / max(1, len(readers))))
    return [dataclasses.replace(u, id=f"{u.id}-{copy}") for copy in range(copies) for u in readers]


@command("instruct-codec-corpus", positional=False)
def main(
    out: Path,
    lines: int = 4000,
    answers: int = 4500,
    readers: Path | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> None:
    """Speak the corpus of the shipped codec.

    Args:
        out: folder for the wavs and the manifests
        lines: utterances in voices other than the answer voice, 3 to 4 seconds each
        answers: utterances in the answer voice
        readers: a part of LibriSpeech to train on, such as train-clean-100; no human speech if not given
        workers: processes; one for each core if not given
        seed: draws sentences and voices
    """
    from instruct_data.speech.perturbed_copies import perturbed_copies

    for name, count in (("lines", lines), ("answers", answers)):
        if count < 1:
            raise ValueError(f"--{name} is {count}; it must be 1 or more")
    spoken = [
        speak_lines(answer_lines(answers, seed), out, "answers", workers),
        speak_lines(voice_lines(lines, seed), out, "voices", workers),
    ]
    utterances = [u for one in spoken for u in read_manifest(one.manifest)]
    if readers is not None:
        utterances += repeated(list(reader_segments(readers)), len(utterances))
    write_manifest(out / "encoder.jsonl", utterances)
    originals = list(read_manifest(spoken[0].manifest))
    copies, sounds = perturbed_copies(originals, out / "perturbed", workers, seed)
    write_manifest(out / "vocoder_units.jsonl", originals + copies)
    print(write_manifest(out / "vocoder_sound.jsonl", originals + sounds))


if __name__ == "__main__":
    main.cli()

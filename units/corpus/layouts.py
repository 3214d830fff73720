"""The layouts of well-known corpora on disk: one reader each, from a folder to utterances, in a fixed order.

A reader calls `skip(row, reason, detail)` for what it cannot use, and goes on. `units.corpus.corpora` writes both down.
An utterance is named as its corpus names it; where a corpus has no names of its own, by the file's path below the
folder, without the extension: `sub/a` for `sub/a.wav`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from units.corpus.manifest import ManifestError, Utterance

Skip = Callable[..., None]  # (row, reason, detail="")
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
LONGEST_STRETCH = 30.0  # seconds: voice-activity segments of Libri-Light are joined up to here
NO_AUDIO = "no audio file"

# The tags of GigaSpeech's texts, from its README: punctuation, and utterances that are no speech.
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}


def file_id(path: Path, root: Path) -> str:
    """The id of a file below `root`: its relative path without the extension; bytes that are no UTF-8 as `\\xe9`."""
    name = path.relative_to(root).with_suffix("").as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def folder(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """Every audio file below a folder; a .txt of the same name beside it is its transcript."""
    for path in audio_files(root, skip):
        yield Utterance(file_id(path, root), path, text=_transcript(path.with_suffix(".txt"), skip))


def audio_files(root: Path, skip: Skip) -> Iterator[Path]:
    """Audio files below a folder, sorted folder by folder. Two files that differ in the extension only are skipped both."""
    for where, names in _walk(root, skip):
        yield from _audio(where, names, skip)


def _audio(where: Path, names: list[str], skip: Skip) -> Iterator[Path]:
    audio = [name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES]
    twins: dict[str, list[str]] = {}
    for name in audio:
        twins.setdefault(Path(name).stem, []).append(name)
    for name in audio:
        if others := [other for other in twins[Path(name).stem] if other != name]:
            skip(where / name, "another file would have the same id", ", ".join(others))
        else:
            yield where / name


def _walk(root: Path, skip: Skip) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of the files in it), sorted; what cannot be entered is skipped by name."""

    def closed(error: OSError) -> None:
        skip(error.filename, "folder cannot be read", error.strerror)

    for where, below, names in os.walk(root, onerror=closed):
        below.sort()
        for name in below:
            if os.path.islink(os.path.join(where, name)):
                skip(Path(where, name), "link to a folder, which is not followed")
            elif Path(name).suffix.lower() in AUDIO_SUFFIXES:
                skip(Path(where, name), "folder with the name of an audio file")
        yield Path(where), sorted(names)


def fairseq(tsv: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """The .tsv of fairseq's wav2vec and HuBERT: the root on the first line, then `path<tab>samples`.

    As in fairseq, a relative root counts from the working directory.
    """
    lines = _lines(tsv, skip)
    first = next(lines, ("", ""))[1]
    if not first or "\t" in first:
        raise ManifestError(f"{tsv}:1: {first[:60]!r} is no root folder; the first line of a fairseq .tsv names it")
    root = Path(first)
    for where, line in lines:
        name, *rest = line.split("\t")
        if len(rest) != 1 or not rest[0].strip().isdigit():
            skip(where, "not a path, a tab and a number of samples", line)
        elif not os.path.isfile(root / name):
            skip(where, NO_AUDIO, root / name)
        else:
            yield Utterance(Path(name).with_suffix("").as_posix(), root / name)


def librispeech(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """LibriSpeech, whole or one of its sets: SPEAKER/CHAPTER/ with .flac files and SPEAKER-CHAPTER.trans.txt."""
    for chapter, names in _walk(root, skip):
        texts = {}
        for transcripts in (name for name in names if name.endswith(".trans.txt")):
            for where, line in _lines(chapter / transcripts, skip):
                name, _, text = line.partition(" ")
                if text.strip():
                    texts[name] = text.strip()
                else:
                    skip(where, "no text on the line", line)
        for path in _audio(chapter, names, skip):
            name, speaker = path.stem, path.stem.partition("-")[0]
            yield Utterance(name, path, text=texts.pop(name, None), speaker=speaker, lang="en")
        for name, text in texts.items():
            skip(name, NO_AUDIO, text)


def librilight(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """Libri-Light: SPEAKER/BOOK/NAME.flac with NAME.json; an utterance is a stretch of its voice activity."""
    for path in audio_files(root, skip):
        try:
            facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            speech = [(float(onset), float(offset)) for onset, offset in facts["voice_activity"]]
            speaker = str(facts["speaker"])
        except FileNotFoundError:
            skip(path, "no .json beside the audio")
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            skip(path.with_suffix(".json"), "not a Libri-Light .json", f"{type(error).__name__}: {error}")
        else:
            stretches = speech_stretches([s for s in speech if _is_stretch(*s)], LONGEST_STRETCH)
            for onset, offset in (s for s in speech if not _is_stretch(*s)):
                skip(path, "voice activity that is no stretch of time", f"{onset} to {offset}")
            if not speech:
                skip(path, "no voice activity")
            for i, (onset, offset) in enumerate(stretches):
                yield Utterance(
                    f"{file_id(path, root)}_{i:04d}", path, onset, round(offset - onset, 3), speaker=speaker, lang="en"
                )


def speech_stretches(speech: list[tuple[float, float]], longest: float) -> list[tuple[float, float]]:
    """Join neighbouring (onset, offset) in seconds, pauses included, while they span at most `longest` seconds."""
    joined: list[tuple[float, float]] = []
    for onset, offset in sorted(speech):
        if joined and offset - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], max(joined[-1][1], offset))
        else:
            joined.append((onset, offset))
    return joined


def _is_stretch(begin: float, end: float) -> bool:
    return 0 <= begin < end and math.isfinite(end)


def gigaspeech(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """GigaSpeech: the segments of one subset in GigaSpeech.json, read as a stream (the file is larger than memory)."""
    import ijson

    path = root / "GigaSpeech.json"
    with path.open("rb") as file:
        try:
            for audio in ijson.items(file, "audios.item", use_float=True):
                if not isinstance(audio, dict) or not isinstance(audio.get("segments"), list):
                    skip(str(audio)[:100], "an audio without segments")
                    continue
                recording = root / str(audio.get("path"))
                there = os.path.isfile(recording)
                for segment in audio["segments"]:
                    yield from _gigaspeech_segment(segment, recording, there, part, skip)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ManifestError(f"{path} is not whole ({error}); download it again") from error


def _gigaspeech_segment(segment: dict, recording: Path, there: bool, part: str, skip: Skip) -> Iterator[Utterance]:
    try:
        name, text, subsets = str(segment["sid"]), str(segment["text_tn"]), list(segment["subsets"])
        begin, end = float(segment["begin_time"]), float(segment["end_time"])
        speaker = str(segment["speaker"]) if segment.get("speaker") not in (None, "N/A") else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        skip(str(segment)[:100], "not a segment", f"{type(error).__name__}: {error}")
        return
    tags = GARBAGE.intersection(text.split())
    if f"{{{part}}}" not in subsets:
        return  # not asked for, so not skipped either
    if tags:
        skip(name, "no speech", " ".join(sorted(tags)))
    elif not _is_stretch(begin, end):
        skip(name, "not a stretch of time", f"{begin} to {end}")
    elif not there:
        skip(name, NO_AUDIO, recording)
    else:
        text = re.sub(r"\s*(<[A-Z]+>)", lambda tag: PUNCTUATION.get(tag[1], tag[0]), text).strip()
        yield Utterance(name, recording, begin, round(end - begin, 3), text or None, speaker, "en")


def commonvoice(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """Common Voice, one language: PART.tsv and clips/. Its .tsv files are written without any quoting."""
    lines = _lines(root / f"{part}.tsv", skip)
    columns = next(lines, ("", ""))[1].split("\t")
    if not {"client_id", "path", "sentence"} <= set(columns):
        raise ManifestError(
            f"{root / part}.tsv begins with {columns[:4]}; Common Voice's have client_id, path, sentence"
        )
    for where, line in lines:
        cells = line.split("\t")
        row = dict(zip(columns, cells))
        if len(cells) != len(columns):
            skip(where, "another number of columns than the header", len(cells))
        elif not os.path.isfile(root / "clips" / row["path"]):
            skip(where, NO_AUDIO, row["path"])
        else:
            yield Utterance(
                Path(row["path"]).stem, root / "clips" / row["path"], text=row["sentence"].strip() or None,
                speaker=row["client_id"] or None, lang=row.get("locale") or None,
            )  # fmt: skip


def ljspeech(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """LJ Speech: metadata.csv (`id|text|normalised text`, never quoted) and wavs/. The normalised text is taken."""
    for where, line in _lines(root / "metadata.csv", skip):
        cells = line.split("|")
        audio = root / "wavs" / f"{cells[0]}.wav"
        if len(cells) != 3:
            skip(where, "not id|text|normalised text", line)
        elif not os.path.isfile(audio):
            skip(where, NO_AUDIO, audio)
        else:
            yield Utterance(
                cells[0], audio, text=(cells[2].strip() or cells[1].strip()) or None, speaker="LJ", lang="en"
            )


def vctk(root: Path, part: str, skip: Skip) -> Iterator[Utterance]:
    """VCTK and what is laid out like it: wav48_silence_trimmed/SPEAKER/NAME_mic1.flac and txt/SPEAKER/NAME.txt.

    One microphone is read (version 0.92 has two); speaker p315 has no texts, and p280 no mic2.
    """
    recordings = next((root / name for name in ("wav48_silence_trimmed", "wav48") if (root / name).is_dir()), None)
    if recordings is None:
        raise FileNotFoundError(f"{root} holds neither wav48_silence_trimmed nor wav48")
    for path in audio_files(recordings, skip):
        name, _, microphone = path.stem.partition("_mic")
        speaker = path.parent.name
        if microphone and f"mic{microphone}" != part:
            skip(path, "another microphone")
        else:
            text = _transcript(root / "txt" / speaker / f"{name}.txt", skip)
            yield Utterance(name, path, text=text, speaker=speaker, lang="en")


def _transcript(path: Path, skip: Skip) -> str | None:
    """The text of a transcript file on one line; None where there is none, or none that can be read."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()) or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        skip(path, "transcript cannot be read", error)
        return None


def _lines(path: Path, skip: Skip) -> Iterator[tuple[str, str]]:
    """(where, line) of a text file's lines that are not empty, a line at a time; lines that are no UTF-8 are skipped."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            try:
                line.encode()
            except UnicodeEncodeError:
                skip(f"{path}:{number}", "not UTF-8", ascii(line))
                continue
            if line.strip():
                yield f"{path}:{number}", line

"""Readers of well-known corpora: one function per layout on disk, from a folder to utterances, in a fixed order.

A reader adds what it cannot use to the `Refusals` that it is given, and goes on. `units.corpus.corpora` is the command.
The id of an utterance is that of its corpus. If the corpus has no ids, it is the file's path below the folder, without
the suffix: `sub/a` for `sub/a.wav`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from units.corpus.manifest import CorpusReason, ManifestError, Utterance
from units.runtime.refusals import Refusals

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
LONGEST_SEGMENT = 30.0  # seconds: the voice activity of Libri-Light is joined to segments of at most this length

# The tags of GigaSpeech's texts, from its README: punctuation, and utterances without speech.
PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
GARBAGE = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}


def file_id(path: Path, root: Path) -> str:
    """The id of a file below `root`: its relative path without the suffix. Bytes that are not UTF-8 become `\\xe9`."""
    name = path.relative_to(root).with_suffix("").as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def folder(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """Every audio file below a folder; a .txt of the same name beside it is its transcript."""
    for path in audio_files(root, refusals):
        yield Utterance(file_id(path, root), path, text=_transcript(path.with_suffix(".txt"), refusals))


def audio_files(root: Path, refusals: Refusals) -> Iterator[Path]:
    """Audio files below a folder, sorted folder by folder. Files that differ in the suffix only are all refused."""
    for where, names in _walk(root, refusals):
        yield from _audio(root, where, names, refusals)


def _audio(root: Path, where: Path, names: list[str], refusals: Refusals) -> Iterator[Path]:
    """The audio files among the names in one folder `where` below `root`."""
    audio = [name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES]
    by_stem: dict[str, list[str]] = {}
    for name in audio:
        by_stem.setdefault(Path(name).stem, []).append(name)
    for name in audio:
        path = where / name
        if others := [other for other in by_stem[path.stem] if other != name]:
            refusals.add(file_id(path, root), CorpusReason.SAME_ID, f"of {', '.join(others)}", audio=path)
        else:
            yield path


def _walk(root: Path, refusals: Refusals) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of the files in it), sorted. Folders that cannot be read are refused."""

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        name = str(path) if path == root else file_id(path, root)
        refusals.add(name, CorpusReason.UNREADABLE_FOLDER, error.strerror, audio=path)

    for where, below, names in os.walk(root, onerror=unreadable):
        below.sort()
        for path in (Path(where, name) for name in below):
            if path.is_symlink():
                refusals.add(file_id(path, root), CorpusReason.LINKED_FOLDER, audio=path)
            elif path.suffix.lower() in AUDIO_SUFFIXES:
                refusals.add(file_id(path, root), CorpusReason.FOLDER, audio=path)
        yield Path(where), sorted(names)


def fairseq(tsv: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """The .tsv of fairseq's wav2vec and HuBERT: the root on the first line, then `path<tab>samples`.

    As in fairseq, a relative root is relative to the working directory.
    """
    lines = _lines(tsv, refusals)
    first = next(lines, ("", ""))[1]
    if not first or "\t" in first:
        raise ManifestError(
            CorpusReason.DAMAGED,
            f"{tsv}:1: {first[:60]!r} is not a root folder; the first line of a fairseq .tsv names it",
        )
    root = Path(first)
    for where, line in lines:
        name, *rest = line.split("\t")
        if len(rest) != 1 or not rest[0].strip().isdigit():
            refusals.add(where, CorpusReason.INVALID_ROW, f"not a path, a tab and a number of samples: {line}")
        elif not os.path.isfile(root / name):
            refusals.add(where, CorpusReason.NO_AUDIO_FILE, audio=root / name)
        else:
            yield Utterance(Path(name).with_suffix("").as_posix(), root / name)


def librispeech(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """LibriSpeech, whole or one of its sets: SPEAKER/CHAPTER/ with .flac files and SPEAKER-CHAPTER.trans.txt."""
    for chapter, names in _walk(root, refusals):
        texts: dict[str, str] = {}
        for transcripts in (name for name in names if name.endswith(".trans.txt")):
            texts.update(_librispeech_texts(chapter / transcripts, refusals))
        for path in _audio(root, chapter, names, refusals):
            name, speaker = path.stem, path.stem.partition("-")[0]
            yield Utterance(name, path, text=texts.pop(name, None), speaker=speaker, lang="en")
        for name, text in texts.items():
            refusals.add(name, CorpusReason.NO_AUDIO_FILE, f"its text is {text}")


def _librispeech_texts(path: Path, refusals: Refusals) -> Iterator[tuple[str, str]]:
    """(id, text) of the lines of a .trans.txt."""
    for where, line in _lines(path, refusals):
        name, _, text = line.partition(" ")
        if text.strip():
            yield name, text.strip()
        else:
            refusals.add(where, CorpusReason.NO_TEXT, line)


def librilight(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """Libri-Light: SPEAKER/BOOK/NAME.flac with NAME.json. An utterance is a segment of its voice activity."""
    for path in audio_files(root, refusals):
        name, metadata = file_id(path, root), path.with_suffix(".json")
        try:
            facts = json.loads(metadata.read_text(encoding="utf-8"))
            speech = [(float(onset), float(offset)) for onset, offset in facts["voice_activity"]]
            speaker = str(facts["speaker"])
        except FileNotFoundError:
            refusals.add(name, CorpusReason.NO_METADATA, f"there is no {metadata.name}", audio=path)
        except (OSError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            refusals.add(
                name, CorpusReason.INVALID_ROW, f"{metadata.name}: {type(error).__name__}: {error}", audio=path
            )
        else:
            if not speech:
                refusals.add(name, CorpusReason.NO_SPEECH, "its voice activity is empty", audio=path)
            for onset, offset in (s for s in speech if not _is_segment(*s)):
                refusals.add(name, CorpusReason.INVALID_SEGMENT, f"{onset} to {offset}", audio=path)
            segments = join_segments([s for s in speech if _is_segment(*s)], LONGEST_SEGMENT)
            for i, (onset, offset) in enumerate(segments):
                yield Utterance(f"{name}_{i:04d}", path, onset, round(offset - onset, 3), speaker=speaker, lang="en")


def join_segments(speech: list[tuple[float, float]], longest: float) -> list[tuple[float, float]]:
    """Join neighbouring (onset, offset) in seconds, pauses included, while they span at most `longest` seconds."""
    joined: list[tuple[float, float]] = []
    for onset, offset in sorted(speech):
        if joined and offset - joined[-1][0] <= longest:
            joined[-1] = (joined[-1][0], max(joined[-1][1], offset))
        else:
            joined.append((onset, offset))
    return joined


def _is_segment(begin: float, end: float) -> bool:
    return 0 <= begin < end and math.isfinite(end)


def gigaspeech(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """GigaSpeech: the segments of one subset in GigaSpeech.json, which is larger than memory and read as a stream."""
    try:
        import ijson
    except ImportError as error:
        raise ImportError("GigaSpeech.json is read as a stream by ijson: pip install ijson") from error

    path = root / "GigaSpeech.json"
    with path.open("rb") as file:
        try:
            for number, audio in enumerate(ijson.items(file, "audios.item", use_float=True)):
                if not isinstance(audio, dict) or not isinstance(audio.get("segments"), list):
                    refusals.add(f"{path}:audios[{number}]", CorpusReason.INVALID_ROW, f"no segments: {audio}")
                    continue
                recording = root / str(audio.get("path"))
                there = os.path.isfile(recording)
                for segment in audio["segments"]:
                    yield from _gigaspeech_segment(segment, recording, there, part, refusals)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise ManifestError(
                CorpusReason.DAMAGED, f"{path} is damaged or incomplete ({error}); download it again"
            ) from error


def _gigaspeech_segment(
    segment: dict, recording: Path, there: bool, part: str, refusals: Refusals
) -> Iterator[Utterance]:
    """The utterance of a segment of the subset `part`; `there` is whether its recording exists."""
    try:
        name, text, subsets = str(segment["sid"]), str(segment["text_tn"]), list(segment["subsets"])
        begin, end = float(segment["begin_time"]), float(segment["end_time"])
        speaker = str(segment["speaker"]) if segment.get("speaker") not in (None, "N/A") else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        detail = f"not a segment ({type(error).__name__}: {error}): {segment}"
        refusals.add(str(recording), CorpusReason.INVALID_ROW, detail, audio=recording)
        return
    if f"{{{part}}}" not in subsets:
        return  # not asked for, so not refused either
    if tags := GARBAGE.intersection(text.split()):
        refusals.add(name, CorpusReason.NO_SPEECH, " ".join(sorted(tags)), audio=recording)
    elif not _is_segment(begin, end):
        refusals.add(name, CorpusReason.INVALID_SEGMENT, f"{begin} to {end}", audio=recording)
    elif not there:
        refusals.add(name, CorpusReason.NO_AUDIO_FILE, audio=recording)
    else:
        text = re.sub(r"\s*(<[A-Z]+>)", lambda tag: PUNCTUATION.get(tag[1], tag[0]), text).strip()
        yield Utterance(name, recording, begin, round(end - begin, 3), text or None, speaker, "en")


def commonvoice(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """Common Voice, one language: PART.tsv and clips/. Its .tsv files are written without any quoting."""
    lines = _lines(root / f"{part}.tsv", refusals)
    columns = next(lines, ("", ""))[1].split("\t")
    if not {"client_id", "path", "sentence"} <= set(columns):
        raise ManifestError(
            CorpusReason.DAMAGED,
            f"{root / part}.tsv begins with {columns[:4]}; Common Voice's have client_id, path, sentence",
        )
    for where, line in lines:
        cells = line.split("\t")
        row = dict(zip(columns, cells))
        if len(cells) != len(columns):
            refusals.add(where, CorpusReason.INVALID_ROW, f"{len(cells)} columns; the header has {len(columns)}")
        elif not os.path.isfile(root / "clips" / row["path"]):
            refusals.add(where, CorpusReason.NO_AUDIO_FILE, audio=root / "clips" / row["path"])
        else:
            yield Utterance(
                Path(row["path"]).stem,
                root / "clips" / row["path"],
                text=row["sentence"].strip() or None,
                speaker=row["client_id"] or None,
                lang=row.get("locale") or None,
            )


def ljspeech(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """LJ Speech: metadata.csv (`id|text|normalised text`, never quoted) and wavs/. The normalised text is read."""
    for where, line in _lines(root / "metadata.csv", refusals):
        cells = line.split("|")
        audio = root / "wavs" / f"{cells[0]}.wav"
        if len(cells) != 3:
            refusals.add(where, CorpusReason.INVALID_ROW, f"not id|text|normalised text: {line}")
        elif not os.path.isfile(audio):
            refusals.add(where, CorpusReason.NO_AUDIO_FILE, audio=audio)
        else:
            text = cells[2].strip() or cells[1].strip()
            yield Utterance(cells[0], audio, text=text or None, speaker="LJ", lang="en")


def vctk(root: Path, part: str, refusals: Refusals) -> Iterator[Utterance]:
    """VCTK and corpora with its layout: wav48_silence_trimmed/SPEAKER/NAME_mic1.flac and txt/SPEAKER/NAME.txt.

    Version 0.92 has two microphones, and `part` names the one that is read. Speaker p315 has no texts, p280 no mic2.
    """
    recordings = next((root / name for name in ("wav48_silence_trimmed", "wav48") if (root / name).is_dir()), None)
    if recordings is None:
        raise FileNotFoundError(f"{root} holds neither wav48_silence_trimmed nor wav48")
    for path in audio_files(recordings, refusals):
        name, _, microphone = path.stem.partition("_mic")
        if microphone and f"mic{microphone}" != part:
            continue  # not asked for, so not refused either
        speaker = path.parent.name
        text = _transcript(root / "txt" / speaker / f"{name}.txt", refusals)
        yield Utterance(name, path, text=text, speaker=speaker, lang="en")


def _transcript(path: Path, refusals: Refusals) -> str | None:
    """The text of a transcript file on one line; None if there is none, or none that can be read."""
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split()) or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        refusals.add(path, CorpusReason.UNREADABLE_TEXT, error)
        return None


def _lines(path: Path, refusals: Refusals) -> Iterator[tuple[str, str]]:
    """(FILE:LINE, line) of the lines of a text file that are not empty; lines that are not UTF-8 are refused."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            try:
                line.encode()
            except UnicodeEncodeError:
                refusals.add(f"{path}:{number}", CorpusReason.NOT_TEXT, f"not UTF-8: {ascii(line)}")
                continue
            if line.strip():
                yield f"{path}:{number}", line

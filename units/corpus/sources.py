"""Sources of audio: a manifest, fairseq's .tsv, a folder, a glob, one file, or paths on standard input.

listing = list_source("LibriSpeech/dev-clean")
listing.utterances, listing.refused
"""

from __future__ import annotations

import glob
import itertools
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from units.audio import AudioError, AudioReason
from units.corpus import layouts
from units.corpus.layouts import AUDIO_SUFFIXES
from units.corpus.manifest import CorpusReason, Utterance, read_manifest
from units.runtime.refusals import Refusal, Refusals

STANDARD_INPUT = "-"
WILDCARDS = "*?["


@dataclass(frozen=True)
class Listing:
    """Utterances in a fixed order, and what was refused before any audio was opened."""

    utterances: list[Utterance]
    refused: list[Refusal] = field(default_factory=list)


def list_source(source: str | Path) -> Listing:
    """List the utterances of a source.

    The ids of a manifest are kept. The id of a file is its path without the suffix, below the folder, below the fixed
    part of a glob, or as given on standard input. Files that share an id are all refused.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ManifestError: the manifest or .tsv cannot be used.
        AudioError: the folder or glob holds no audio.
    """
    if str(source) == STANDARD_INPUT:
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)  # as bytes: a file's name need not be text
        return _list_files(Path(os.fsdecode(line)) for line in lines if line.strip())
    if _has_wildcard(str(source)) and not Path(source).exists():
        return _list_glob(str(source))
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if source.suffix == ".jsonl":
        return Listing(read_manifest(source))
    refused: list[Refusal] = []
    refusals = Refusals(rows=refused)
    if source.suffix == ".tsv":
        rows = list(layouts.fairseq(source, "", refusals))
        return Listing(_unique(rows, refusals), refused)
    if source.is_file():
        return Listing([Utterance(source.stem, source)])
    files = list(layouts.audio_files(source, refusals))
    if not files and not refused:
        raise AudioError(
            AudioReason.NO_FILES, f"no audio below {source}; looked for {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    return Listing([Utterance(layouts.file_id(path, source), path) for path in files], refused)


def _has_wildcard(text: str) -> bool:
    return any(character in text for character in WILDCARDS)


def _list_glob(pattern: str) -> Listing:
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    if not files:
        raise AudioError(
            AudioReason.NO_FILES, f"{pattern} matches no audio; looked for {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    folders = Path(pattern).parts[:-1]
    fixed = itertools.takewhile(lambda part: not _has_wildcard(part), folders)
    return _list_files(files, Path(*fixed))


def _list_files(files: Iterable[Path], root: Path = Path()) -> Listing:
    """Utterances of files, in their order. Ids are paths below `root`, and whole paths for files elsewhere."""
    named = [(layouts.file_id(path, root if path.is_relative_to(root) else Path(path.anchor)), path) for path in files]
    refusals = Refusals(rows=[])
    return Listing(_unique([Utterance(name, path) for name, path in named], refusals), refusals.rows or [])


def _unique(utterances: list[Utterance], refusals: Refusals) -> list[Utterance]:
    """The utterances whose id no other has, in their order. The others are refused."""
    by_id: dict[str, list[Path]] = {}
    for utterance in utterances:
        by_id.setdefault(utterance.id, []).append(utterance.audio)
    for name, paths in by_id.items():
        if len(paths) > 1:
            for path in paths:
                others = ", ".join(str(other) for other in paths if other != path) or "a repetition"
                refusals.add(name, CorpusReason.SAME_ID, f"of {others}", audio=path)
    return [utterance for utterance in utterances if len(by_id[utterance.id]) == 1]

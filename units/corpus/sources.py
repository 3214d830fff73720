"""What units-extract can be pointed at: a manifest, fairseq's .tsv, a folder, a glob, one file, or paths on standard input.

listing = list_source("LibriSpeech/dev-clean")
listing.utterances, listing.refused
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from units.audio import AudioError
from units.corpus import layouts
from units.corpus.layouts import AUDIO_SUFFIXES
from units.corpus.manifest import Utterance, read_manifest

STANDARD_INPUT = "-"
WILDCARDS = "*?["


@dataclass(frozen=True)
class Refusal:
    """An utterance that could not be read: its id, its audio file, and why."""

    id: str
    audio: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """Utterances in a fixed order, and what was refused before any audio was opened."""

    utterances: list[Utterance]
    refused: list[Refusal] = field(default_factory=list)


def list_source(source: str | Path) -> Listing:
    """List the utterances of a source.

    Ids are those of the manifest; for files, the path below the folder (or below a glob's fixed part, or as given)
    without the extension. Files that would share an id are refused, both.

    Raises: FileNotFoundError; units.manifest.ManifestError; AudioError when there is nothing to read.
    """
    if str(source) == STANDARD_INPUT:
        lines = (line.rstrip(b"\r\n") for line in sys.stdin.buffer)  # as bytes: a file's name need not be text
        return _listed(Path(os.fsdecode(line)) for line in lines if line.strip())
    if any(character in str(source) for character in WILDCARDS) and not Path(source).exists():
        found = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]
        files = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
        if not files:
            raise AudioError(f"{source} matches no audio; looked for {', '.join(sorted(AUDIO_SUFFIXES))}")
        return _listed(files, Path(*_fixed_part(Path(source))))
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if source.suffix == ".jsonl":
        return Listing(read_manifest(source))
    refused: list[Refusal] = []

    def skip(row: object, reason: str, detail: object = "") -> None:
        name = str(row).encode("utf-8", "backslashreplace").decode()
        refused.append(Refusal(Path(name).stem, name, f"{reason}{f' ({detail})' if detail else ''}"))

    if source.suffix == ".tsv":
        return Listing(list(layouts.fairseq(source, "", skip)), refused)
    if source.is_file():
        return Listing([Utterance(source.stem, source)])
    files = list(layouts.audio_files(source, skip))
    if not files and not refused:
        raise AudioError(f"no audio below {source}; looked for {', '.join(sorted(AUDIO_SUFFIXES))}")
    return Listing([Utterance(layouts.file_id(path, source), path) for path in files], refused)


def _fixed_part(pattern: Path) -> Iterable[str]:
    """The folders before a pattern's first wildcard."""
    for part in pattern.parts[:-1]:
        if any(character in part for character in WILDCARDS):
            return
        yield part


def _listed(files: Iterable[Path], root: Path = Path()) -> Listing:
    """Files by name, in their order; without a root, ids are the paths as given."""
    named = [(layouts.file_id(path, root) if path.is_relative_to(root) else layouts.file_id(path, Path(path.anchor)), path)
             for path in files]  # fmt: skip
    times = Counter(name for name, _ in named)
    paths: dict[str, list[str]] = {name: [] for name, count in times.items() if count > 1}
    for name, path in named:
        if name in paths:
            paths[name].append(os.fsencode(path).decode("utf-8", "backslashreplace"))
    refused = [
        Refusal(name, path, f"another file would have the same id ({', '.join(p for p in found if p != path) or 'itself'})")
        for name, found in paths.items() for path in found
    ]  # fmt: skip
    return Listing([Utterance(name, path) for name, path in named if name not in paths], refused)

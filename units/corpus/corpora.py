"""Corpora as they lie on people's disks, made into a manifest.

    python -m units.corpus.corpora folder recordings/ train.jsonl --speaker anna
    python -m units.corpus.corpora librispeech LibriSpeech/train-clean-100 train.jsonl
    python -m units.corpus.corpora gigaspeech GigaSpeech/ dev.jsonl --part DEV
    python -m units.corpus.corpora commonvoice cv-corpus-17.0/de train.jsonl --part train

Names: folder, fairseq (a .tsv), librispeech, librilight, gigaspeech, commonvoice, ljspeech, vctk. What could not be used
is listed beside the manifest, in train.skipped.jsonl, and counted by reason; it never stops the run. Rows are read and
written one at a time, and only ids are kept in memory.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from units.corpus import layouts
from units.corpus.layouts import Skip
from units.corpus.manifest import Utterance, is_plain_text, write_manifest
from units.runtime.atomic import written_whole
from units.runtime.progress import progress


@dataclass(frozen=True)
class Corpus:
    """How one corpus is read.

    read: (folder, part, skip) -> utterances, in a fixed order. layout: what the folder must hold, for people.
    part: the part that is read if none is named; None where the corpus has no parts.
    """

    read: Callable[[Path, str, Skip], Iterator[Utterance]]
    layout: str
    part: str | None = None


CORPORA = {
    "folder": Corpus(layouts.folder, "audio at any depth; a .txt of the same name beside it is its transcript"),
    "fairseq": Corpus(layouts.fairseq, "a .tsv: the root on the first line, then a path, a tab and a length on each"),
    "librispeech": Corpus(layouts.librispeech, "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside the .flac files"),
    "librilight": Corpus(layouts.librilight, "SPEAKER/BOOK/NAME.flac with NAME.json and its voice_activity beside it"),
    "gigaspeech": Corpus(layouts.gigaspeech, "GigaSpeech.json, and audio/ with the .opus files it names", "XL"),
    "commonvoice": Corpus(layouts.commonvoice, "PART.tsv, and clips/ with the .mp3 files it names", "validated"),
    "ljspeech": Corpus(layouts.ljspeech, "metadata.csv, and wavs/"),
    "vctk": Corpus(layouts.vctk, "wav48_silence_trimmed/ (or wav48/) and txt/, both with a folder a speaker", "mic1"),
}


@dataclass(frozen=True)
class Summary:
    """What became of a corpus: utterances written, how many of them have a text, and the skipped rows by reason."""

    utterances: int
    with_text: int
    skipped: dict[str, int]


def write_corpus(
    name: str, folder: str | Path, out: str | Path, part: str | None = None, lower: bool = False,
    speaker: str | None = None,
) -> Summary:  # fmt: skip
    """Write the manifest of a corpus, and beside it OUT.skipped.jsonl with `row`, `reason` and `detail` of the rest.

    Args:
        name: a key of CORPORA.
        folder: the corpus, or the .tsv of fairseq.
        out: the manifest (.jsonl). Both files appear whole or not at all.
        part: a part of the corpus, where it has parts.
        lower: lower-case the texts (LibriSpeech and GigaSpeech are all upper case).
        speaker: who speaks, where the corpus does not say.

    Raises:
        ValueError: an unknown name, a part where there are none, metadata that cannot be read, or nothing usable.
        FileNotFoundError: no such folder, or a file that the layout needs is not in it.
    """
    if name not in CORPORA:
        raise ValueError(f"no corpus is called {name!r}; known are {', '.join(CORPORA)}")
    corpus, folder, out = CORPORA[name], Path(folder), Path(out)
    if part and corpus.part is None:
        raise ValueError(f"{name} has no parts, so --part {part} means nothing here; give a smaller folder instead")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out} is to be a manifest, whose name ends in .jsonl")
    if not folder.exists():
        raise FileNotFoundError(f"no such folder or file: {folder}; {name} is {corpus.layout}")
    with written_whole(out.with_suffix(".skipped.jsonl")) as file:
        skipped = _SkippedRows(file)
        admitted = _Admitted(corpus.read(folder, part or corpus.part or "", skipped), skipped, lower, speaker)
        write_manifest(out, progress(admitted, desc=name, unit="utterances"))
    return Summary(admitted.count, admitted.with_text, dict(skipped.reasons.most_common()))


class _SkippedRows:
    """The `skip` that readers call: writes a line for each skipped row, and counts the reasons."""

    def __init__(self, file: IO) -> None:
        self.file, self.reasons = file, Counter[str]()

    def __call__(self, row: object, reason: str, detail: object = "") -> None:
        self.reasons[reason] += 1
        # ASCII, because a file's name need not be Unicode and this list must be able to name every file.
        self.file.write(json.dumps({"row": str(row), "reason": reason, "detail": str(detail)[:500]}) + "\n")


class _Admitted:
    """The utterances that may stand in a manifest: ids unique, texts sound. Counts them in passing."""

    def __init__(self, utterances: Iterator[Utterance], skip: _SkippedRows, lower: bool, speaker: str | None) -> None:
        self.utterances, self.skip, self.lower, self.speaker = utterances, skip, lower, speaker
        self.count = self.with_text = 0

    def __iter__(self) -> Iterator[Utterance]:
        seen: set[str] = set()
        for utterance in self.utterances:
            if utterance.speaker is None:
                utterance = dataclasses.replace(utterance, speaker=self.speaker)
            said = (utterance.id, utterance.text, utterance.speaker, utterance.lang)
            if not all(is_plain_text(text) for text in said if text is not None):
                self.skip(utterance.audio, "not plain text", ascii(said))
            elif utterance.id in seen:
                self.skip(utterance.audio, "another row has the same id", utterance.id)
            else:
                seen.add(utterance.id)
                self.count += 1
                self.with_text += utterance.text is not None
                if self.lower and utterance.text:
                    utterance = dataclasses.replace(utterance, text=utterance.text.lower())
                yield utterance
        if not self.count:
            raise ValueError(f"nothing usable was found{_reasons(self.skip.reasons)}")


def _reasons(counts: dict[str, int]) -> str:
    return "".join(f"; {count} skipped: {reason}" for reason, count in counts.items())


def main(
    name: str, folder: Path, out: Path, part: str | None = None, lower: bool = False, speaker: str | None = None
) -> None:
    """Make a corpus into a manifest.

    Args:
        name: folder, fairseq, librispeech, librilight, gigaspeech, commonvoice, ljspeech or vctk
        folder: where the corpus lies; for fairseq the .tsv
        out: the manifest to write, a .jsonl
        part: gigaspeech XL, L, M, S, XS, DEV or TEST; commonvoice the tsv's name; vctk mic1 or mic2
        lower: write texts in lower case
        speaker: who speaks, where the corpus does not say: your own recordings, for a voice to be trained on them
    """
    try:
        done = write_corpus(name, folder, out, part, lower, speaker)
    except ValueError as error:
        layout = f" ({name} is {CORPORA[name].layout})" if name in CORPORA else ""
        raise ValueError(f"{error}{layout}") from error
    print(f"{done.utterances} utterances, {done.with_text} with text{_reasons(done.skipped)} -> {out}")


def cli() -> None:
    """Entry point: `python -m units.corpus.corpora NAME FOLDER OUT`; user errors end in one line and exit code 2."""
    from jsonargparse import auto_cli

    try:
        auto_cli(main)
    except (OSError, ValueError) as error:
        print(f"units.corpus.corpora: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

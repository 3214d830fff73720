"""The `units-corpus` command: a corpus, as its publisher lays it out, becomes a manifest.

    units-corpus folder recordings/ train.jsonl --speaker anna
    units-corpus librispeech LibriSpeech/train-clean-100 train.jsonl
    units-corpus gigaspeech GigaSpeech/ dev.jsonl --part DEV
    units-corpus commonvoice cv-corpus-17.0/de train.jsonl --part train

Names: folder, fairseq (a .tsv), librispeech, librilight, gigaspeech, commonvoice, ljspeech, vctk. Rows that cannot be
used are refused: they are counted by reason, listed beside the manifest in train.refused.jsonl, and do not stop the run
(exit code 3). Rows are read and written one at a time, and only ids are kept in memory.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from units.corpus import layouts
from units.corpus.manifest import CorpusReason, ManifestError, Utterance, is_plain_text, write_manifest
from units.runtime.command import SOME_REFUSED, command
from units.runtime.files.atomic import written_whole
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, counted


@dataclass(frozen=True)
class CorpusReader:
    """How one corpus is read.

    read: (folder, part, refusals) -> utterances, in a fixed order. layout: what the folder must hold, for messages.
    part: the part that is read if none is named, such as a subset; None if the corpus has no parts.
    """

    read: Callable[[Path, str, Refusals], Iterator[Utterance]]
    layout: str
    part: str | None = None


READERS = {
    "folder": CorpusReader(layouts.folder, "audio at any depth; a .txt of the same name beside it is its transcript"),
    "fairseq": CorpusReader(
        layouts.fairseq, "a .tsv: the root on the first line, then a path, a tab and a length on each"
    ),
    "librispeech": CorpusReader(
        layouts.librispeech, "SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside the .flac files"
    ),
    "librilight": CorpusReader(
        layouts.librilight, "SPEAKER/BOOK/NAME.flac with NAME.json and its voice_activity beside it"
    ),
    "gigaspeech": CorpusReader(
        layouts.gigaspeech, "GigaSpeech.json, and audio/ with the .opus files it names", part="XL"
    ),
    "commonvoice": CorpusReader(
        layouts.commonvoice, "PART.tsv, and clips/ with the .mp3 files it names", part="validated"
    ),
    "ljspeech": CorpusReader(layouts.ljspeech, "metadata.csv, and wavs/"),
    "vctk": CorpusReader(
        layouts.vctk, "wav48_silence_trimmed/ (or wav48/) and txt/, both with a folder per speaker", part="mic1"
    ),
}


@dataclass(frozen=True)
class Summary:
    """Counts of a corpus: utterances written, how many of them have a text, and refused rows by reason code."""

    utterances: int
    with_text: int
    refused: Counter[str]


def write_corpus(
    name: str,
    folder: str | Path,
    out: str | Path,
    part: str | None = None,
    lower: bool = False,
    speaker: str | None = None,
) -> Summary:
    """Write the manifest of a corpus, and beside it OUT.refused.jsonl with the rows that were refused.

    Args:
        name: a key of READERS.
        folder: the corpus, or the .tsv of fairseq.
        out: the manifest (.jsonl). Both files appear whole or not at all.
        part: a part of the corpus, if it has parts.
        lower: write the texts in lower case (LibriSpeech and GigaSpeech are all upper case).
        speaker: the speaker of utterances for which the corpus names none.

    Raises:
        ValueError: an unknown name, a part of a corpus that has none, or another suffix than .jsonl.
        ManifestError: metadata that cannot be read, or nothing usable.
        FileNotFoundError: the folder, or a file that the layout needs, is missing.
    """
    if name not in READERS:
        raise ValueError(f"unknown corpus {name!r}; known are {', '.join(READERS)}")
    reader, folder, out = READERS[name], Path(folder), Path(out)
    if part and reader.part is None:
        raise ValueError(f"{name} has no parts, so --part {part} cannot be used; give a smaller folder instead")
    if out.suffix != ".jsonl":
        raise ValueError(f"{out} cannot be a manifest; its name must end in .jsonl")
    if not folder.exists():
        raise FileNotFoundError(f"no such folder or file: {folder}; {name} is {reader.layout}")
    with written_whole(out.with_suffix(".refused.jsonl")) as file:
        refusals = Refusals(file=file)
        admitted = _Admitted(reader.read(folder, part or reader.part or "", refusals), refusals, lower, speaker)
        write_manifest(out, progress(admitted, desc=name, unit="utterances"))
    return Summary(admitted.count, admitted.with_text, refusals.counts)


class _Admitted:
    """The utterances that a manifest can hold: unique ids and plain texts. It counts them as they pass."""

    def __init__(self, utterances: Iterator[Utterance], refusals: Refusals, lower: bool, speaker: str | None) -> None:
        self.utterances, self.refusals, self.lower, self.speaker = utterances, refusals, lower, speaker
        self.count = self.with_text = 0

    def __iter__(self) -> Iterator[Utterance]:
        seen: set[str] = set()
        for utterance in self.utterances:
            if utterance.speaker is None:
                utterance = dataclasses.replace(utterance, speaker=self.speaker)
            texts = (utterance.id, utterance.text, utterance.speaker, utterance.lang)
            if not all(is_plain_text(text) for text in texts if text is not None):
                self.refusals.add(utterance.id, CorpusReason.NOT_TEXT, ascii(texts), utterance.audio)
            elif utterance.id in seen:
                self.refusals.add(utterance.id, CorpusReason.SAME_ID, audio=utterance.audio)
            else:
                seen.add(utterance.id)
                self.count += 1
                self.with_text += utterance.text is not None
                if self.lower and utterance.text:
                    utterance = dataclasses.replace(utterance, text=utterance.text.lower())
                yield utterance
        if not self.count:
            raise ManifestError(CorpusReason.NOTHING_USABLE, f"nothing usable was found; {self.refusals}")


@command("units-corpus")
def main(
    name: str, folder: Path, out: Path, part: str | None = None, lower: bool = False, speaker: str | None = None
) -> int:
    """Make a manifest of a corpus.

    Args:
        name: folder, fairseq, librispeech, librilight, gigaspeech, commonvoice, ljspeech or vctk
        folder: the corpus; for fairseq the .tsv
        out: the manifest to write, a .jsonl
        part: gigaspeech XL, L, M, S, XS, DEV or TEST; commonvoice the name of the .tsv; vctk mic1 or mic2
        lower: write texts in lower case
        speaker: the speaker, if the corpus names none: for recordings of one person, to train a vocoder on
    """
    try:
        done = write_corpus(name, folder, out, part, lower, speaker)
    except ManifestError as error:
        raise ManifestError(error.reason, f"{error} ({name} is {READERS[name].layout})") from error
    print(f"{done.utterances} utterances, {done.with_text} with text, {counted(done.refused)} -> {out}")
    return SOME_REFUSED if done.refused else 0


if __name__ == "__main__":
    main.cli()

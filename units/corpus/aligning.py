"""The forced aligner of units-align: pocketsphinx finds when each word of a known text is said."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from units.audio import SAMPLE_RATE, SILENT, AudioError, AudioReason, load_wav, loudness
from units.corpus.alignments import HEADER, Segment
from units.corpus.manifest import CorpusReason, Utterance, has_word, read_manifest
from units.runtime.extras import required
from units.runtime.files.atomic import check_begun, written_whole
from units.runtime.files.json_files import json_lines
from units.runtime.pool import Workers
from units.runtime.progress import progress
from units.runtime.provenance import digest
from units.runtime.refusals import Reason, Refusal, Refusals, RefusedError, listed_refusals, refusal_of

PART = 200  # utterances of a part: half a minute of work
RATE = 100  # frames a second of pocketsphinx
PAD = 25  # frames of faint noise before and after the wav: an utterance begins and ends in silence for the aligner
NOISE = 1e-3  # standard deviation of that noise: digital silence has no log energy to normalise
PEAK = 0.7
BEAM = 1e-200  # of the search; with the usual 1e-48 a tenth of unusual synthetic voices end before their last word
_EDGES = re.compile(r"^[^\w']+|[^\w']+$")  # punctuation around a word


class AlignReason(Reason):
    """Why an utterance has no alignment."""

    UNKNOWN_WORD = "unknown_word"
    """a word that the dictionary does not have"""
    NOT_ALIGNED = "not_aligned"
    """the sound does not fit the text"""


@dataclass
class Aligned:
    """What became of some manifests.

    utterances, words: aligned ones. refused: the others.
    """

    utterances: int = 0
    words: int = 0
    refused: Refusals = field(default_factory=Refusals)


def align(manifests: Sequence[Path], out: Path, workers: int | None = None) -> Aligned:
    """Write the table of alignments of manifests.

    Args:
        workers: processes; None takes one for each core.

    Raises:
        ImportError: pocketsphinx is not installed.
        ValueError: two manifests have the same id; or the table was begun from other utterances.
    """
    required("pocketsphinx", "eval")
    utterances = [utterance for path in manifests for utterance in read_manifest(path)]
    ids = {utterance.id for utterance in utterances}
    if len(ids) < len(utterances):
        raise ValueError(f"{len(utterances) - len(ids)} ids are in two of the manifests; a table needs unique ids")
    home = out.with_name(f".{out.name}.parts")
    home.mkdir(parents=True, exist_ok=True)
    check_begun(home / "plan.json", {"utterances": digest([repr(utterance) for utterance in utterances], 16)})
    parts = [
        (home / f"part-{first // PART:05d}.jsonl", utterances[first : first + PART])
        for first in range(0, len(utterances), PART)
    ]
    missing = [part for part in parts if not part[0].exists()]
    with Workers(workers) as pool, progress(total=len(utterances), desc="aligning", unit="utterances") as bar:
        bar.update(len(utterances) - sum(len(rows) for _, rows in missing))
        for count in pool.run(_align_part, missing):
            bar.update(count)
    done = _joined([path for path, _ in parts], out)
    shutil.rmtree(home)
    return done


def _joined(parts: Sequence[Path], out: Path) -> Aligned:
    """Put the parts together to the table and the list of refusals."""
    done = Aligned()
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals, written_whole(out) as file:
        done.refused = refusals
        file.write("\t".join(HEADER) + "\n")
        for part in parts:
            for _, row in json_lines(part, {"id": str}):
                if "reason" in row:
                    refusals.add(row["id"], _reason(row["reason"]), row.get("detail", ""), row.get("audio"))
                    continue
                done.utterances += 1
                done.words += len(row["words"])
                for start, end, label in row["words"]:
                    file.write(f"{row['id']}\t{start:.2f}\t{end:.2f}\t{label}\n")
    return done


def _reason(code: str) -> Reason:
    for kind in (AlignReason, CorpusReason, AudioReason):
        if code in kind._value2member_map_:
            return kind(code)
    raise ValueError(f"{code!r} is no reason of an alignment")


def _align_part(part: tuple[Path, Sequence[Utterance]]) -> int:
    """Align some utterances and write their part; returns their number."""
    path, utterances = part
    with written_whole(path) as file:
        for utterance in utterances:
            found = _aligned_or_refused(utterance)
            if isinstance(found, Refusal):
                file.write(found.line())
            else:
                words = [[segment.start, segment.end, segment.label] for segment in found]
                file.write(json.dumps({"id": utterance.id, "words": words}) + "\n")
    return len(utterances)


def _aligned_or_refused(utterance: Utterance) -> list[Segment] | Refusal:
    try:
        if not utterance.text or not has_word(utterance.text):
            raise RefusedError(CorpusReason.NO_TEXT, f"{utterance.id} has no text to align")
        if "\t" in utterance.id:
            raise RefusedError(CorpusReason.INVALID_FIELD, f"{utterance.id!r} holds a tab; a table cannot name it")
        wav = load_wav(utterance.audio, utterance.start, utterance.duration)
        if (peak := loudness(wav)) < SILENT:
            raise AudioError(AudioReason.SILENT, f"{utterance.audio} is silent: its peak is {peak:.1e}")
        return aligned(wav, utterance.text)
    except RefusedError as error:
        return refusal_of(utterance.id, error, audio=utterance.audio)
    except OSError as error:
        return refusal_of(utterance.id, AudioReason.UNREADABLE, str(error), audio=utterance.audio)


def aligned(wav: np.ndarray, text: str) -> list[Segment]:
    """When each word of a text is said.

    Args:
        wav: float32 (T,) at 16 kHz, not silent.
        text: what is said. Labels are its words as they are written.

    Raises: RefusedError if a word is not in the dictionary, or the text does not fit the sound.
    """
    decoder = _decoder()
    labels, words = [], []
    for label in text.split():
        if word := _EDGES.sub("", label).lower().replace("\u2019", "'"):
            labels.append(label)
            words.append(word)
    unknown = [word for word in words if decoder.lookup_word(word) is None]
    if unknown:
        raise RefusedError(AlignReason.UNKNOWN_WORD, f"the dictionary has no {unknown[0]!r}")
    decoder.reinit_feat()  # the acoustic front end would otherwise remember the utterance before
    decoder.set_align_text(" ".join(words))
    decoder.start_utt()
    decoder.process_raw(_prepared(wav).tobytes(), no_search=False, full_utt=True)
    decoder.end_utt()
    spoken = [segment for segment in decoder.seg() or () if not segment.word.startswith("<")]
    found = [segment.word.partition("(")[0] for segment in spoken]  # the(2) is another pronunciation
    if found != words:
        raise RefusedError(
            AlignReason.NOT_ALIGNED, f"only {len(found)} of {len(words)} words of {text[:60]!r} fit the sound"
        )
    seconds = len(wav) / SAMPLE_RATE
    return [
        Segment(_within(one.start_frame - PAD, seconds), _within(one.end_frame + 1 - PAD, seconds), label)
        for one, label in zip(spoken, labels)
    ]


def _within(frame: int, seconds: float) -> float:
    """The time of a frame, within the utterance."""
    return min(max(0.0, frame / RATE), seconds)


def _prepared(wav: np.ndarray) -> np.ndarray:
    """wav (T,) -> int16 (pad + T + pad,) with peak 0.7, in faint noise that is the same every time."""
    pad = PAD * SAMPLE_RATE // RATE
    noise = np.random.default_rng(0).normal(0.0, NOISE, len(wav) + 2 * pad)
    noise[pad : pad + len(wav)] += wav * (PEAK / np.abs(wav).max())
    return (np.clip(noise, -1.0, 1.0) * 32767).astype(np.int16)


@functools.lru_cache(maxsize=1)  # one for each process, since a decoder cannot be pickled
def _decoder() -> Any:
    pocketsphinx = required("pocketsphinx", "eval")
    return pocketsphinx.Decoder(loglevel="FATAL", cmn="batch", bestpath=False, beam=BEAM, pbeam=BEAM, wbeam=BEAM)

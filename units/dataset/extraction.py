"""Audio into unit sets: decode ahead, encode in batches, write shards, resume. The command is `units/dataset/extract.py`.

A shard covers a fixed range of the source's rows and appears whole or not at all, so a killed run goes on at the first
missing shard, and rank r of W takes shards r, r+W, ... over a shared folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE, FrameGrid
from units.corpus.decoding import decoded
from units.corpus.manifest import Utterance
from units.dataset.unit_set import (
    COMPLETION_FILE,
    LONGEST_RUN,
    UnitRecord,
    UnitSetReason,
    join_shards,
    refusals_path,
    shard_path,
    write_shard,
)
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.ahead import one_ahead
from units.runtime.atomic import check_begun, written_whole
from units.runtime.progress import progress
from units.runtime.refusals import Refusal, refusal_of

SORTED_FILES, SORTED_SECONDS = 256, 1800.0  # utterances are sorted by length within so many


@dataclasses.dataclass(frozen=True)
class Pace:
    """How the work is cut.

    shard_size: utterances in a shard. batch_seconds: audio in one batch. workers: threads that decode ahead of the
    encoder; 0 decodes in its own. rank, world: this machine, or whatever took this share of the work, among so many.
    process, processes: this process among those that share it further.
    """

    shard_size: int = 2000
    batch_seconds: float = 40.0
    workers: int = 0
    rank: int = 0
    world: int = 1
    process: int = 0
    processes: int = 1


def extract(
    utterances: list[Utterance], out: Path, encoder: UnitEncoder, pace: Pace = Pace(), listed: list[Refusal] | None = None
) -> None:  # fmt: skip
    """Write this rank's shards of a unit set; whoever sees the last one done writes `unit_set.json`.

    Args:
        listed: what the source's listing refused already.

    Raises: ValueError if `out` was begun with another codebook, other rows or another shard size.
    """
    check_plan(out, utterances, encoder, pace.shard_size)
    todo = missing_shards(out, len(utterances), pace)
    if todo:
        (out / COMPLETION_FILE).unlink(missing_ok=True)  # a shard was deleted: the set is not complete any more
    total = sum(len(_rows(utterances, index, pace)) for index in todo)
    began, heard = time.monotonic(), 0.0
    records: dict[int, UnitRecord] = {}
    refused: dict[int, Refusal] = {}
    with progress(total=total, desc=f"units of {out.name}", unit="files") as bar:
        for window in windows(utterances, todo, pace, encoder.features.grid):
            rows = _rows(utterances, window.shard, pace)
            refused |= window.refused
            bar.update(len(window.refused))
            for batch in _by_length(window.wavs, pace.batch_seconds):
                for (row, wav), units in zip(batch, encoder.encode_batch([wav for _, wav in batch])):
                    u = rows[row]
                    if units.durations and max(units.durations) > LONGEST_RUN:
                        detail = f"one unit lasts for {max(units.durations)} frames; the recording may be silent"
                        refused[row] = refusal_of(u.id, UnitSetReason.LONG_RUN, detail, audio=u.audio)
                    else:
                        records[row] = UnitRecord(u.id, units, len(wav), u.text, u.speaker, u.lang)
                    heard += len(wav) / SAMPLE_RATE
                bar.update(len(batch))
                rate = heard / (time.monotonic() - began)
                bar.set_postfix_str(f"{heard / 3600:.2f} h of audio, {rate:.0f} h an hour", refresh=False)
            if window.last:
                with written_whole(refusals_path(out, window.shard)) as file:
                    file.writelines(refused[row].line() for row in sorted(refused))
                in_order = [records[row] for row in sorted(records)]
                write_shard(shard_path(out, window.shard), in_order, encoder.codebook)
                records, refused = {}, {}
    count = -(-len(utterances) // pace.shard_size)
    if all(shard_path(out, i).exists() for i in range(count)):
        join_shards(out, count, encoder.codebook, [one.line() for one in listed or []])


def _rows(utterances: list[Utterance], shard: int, pace: Pace) -> list[Utterance]:
    return utterances[shard * pace.shard_size : (shard + 1) * pace.shard_size]


def missing_shards(out: Path, utterances: int, pace: Pace) -> list[int]:
    """This process's shards that are not there yet. How many processes a rank has is its own matter, so that ranks of
    machines unlike one another leave nothing out."""
    shards = range(pace.rank, -(-utterances // pace.shard_size), pace.world)[pace.process :: pace.processes]
    return [index for index in shards if not shard_path(out, index).exists()]


def check_plan(out: Path, utterances: list[Utterance], encoder: UnitEncoder, shard_size: int) -> None:
    """A resumed run must be the run that was begun."""
    digest = hashlib.sha256()
    for u in utterances:
        row = f"{u.id} {u.start} {u.duration} {u.text} {u.speaker} {u.lang}\n"
        digest.update(row.encode("utf-8", "surrogateescape"))
    plan = {
        "codebook": encoder.codebook.fingerprint,
        "manner": encoder.features.manner,
        "shard_size": shard_size,
        "utterances": len(utterances),
        "rows": digest.hexdigest()[:16],
    }
    check_begun(out / "plan.json", plan)


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of a shard, of a bounded size: (row, wav) of what was read, and why other rows were not.

    last: the shard ends with it.
    """

    shard: int
    wavs: list[tuple[int, np.ndarray]]
    refused: dict[int, Refusal]
    last: bool


def windows(utterances: list[Utterance], todo: list[int], pace: Pace, grid: FrameGrid) -> Iterator[Window]:
    """The shards to do, a window at a time.

    With workers a window is decoded while the one before it is encoded, or its shard written, so that neither waits for
    the other, at the ends of shards either.
    """
    wavs = decoded((row for shard in todo for row in _rows(utterances, shard, pace)), pace.workers, grid)
    found = (
        window
        for shard in todo
        for window in _windows(shard, itertools.islice(wavs, len(_rows(utterances, shard, pace))))
    )
    return one_ahead(found) if pace.workers else found


def _windows(shard: int, wavs: Iterator[np.ndarray | Refusal]) -> Iterator[Window]:
    window = Window(shard, [], {}, last=False)
    seconds = 0.0
    for row, found in enumerate(wavs):
        if isinstance(found, Refusal):
            window.refused[row] = found
            continue
        window.wavs.append((row, found))
        seconds += len(found) / SAMPLE_RATE
        if len(window.wavs) == SORTED_FILES or seconds > SORTED_SECONDS:
            yield window
            window, seconds = Window(shard, [], {}, last=False), 0.0
    yield dataclasses.replace(window, last=True)


def _by_length(window: list[tuple[int, np.ndarray]], seconds: float) -> Iterator[list[tuple[int, np.ndarray]]]:
    window = sorted(window, key=lambda pair: -len(pair[1]))
    while window:
        fits = max(1, int(seconds * SAMPLE_RATE / len(window[0][1])))
        yield window[:fits]
        window = window[fits:]

"""Audio into unit sets: decode ahead, encode in batches, write shards, resume. The command is `units/extract.py`.

A shard covers a fixed range of the source's rows and appears whole or not at all, so a killed run goes on at the first
missing shard, and rank r of W takes shards r, r+W, ... over a shared folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from units.ahead import one_ahead, worked_ahead
from units.audio import SAMPLE_RATE, AudioError, FrameGrid, load_wav
from units.encoder import UnitEncoder
from units.manifest import Utterance, check_begun, written_whole
from units.progress import progress
from units.sources import Refusal
from units.unit_set import LONGEST_RUN, MARKER, UnitRecord, join_shards, refusals_path, shard_path, write_shard

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
        (out / MARKER).unlink(missing_ok=True)  # a shard was deleted: the set is not complete any more
    total = sum(min(pace.shard_size, len(utterances) - index * pace.shard_size) for index in todo)
    began, heard = time.monotonic(), 0.0
    with progress(total=total, desc=f"units of {out.name}", unit="files") as bar:
        for index in todo:
            rows = utterances[index * pace.shard_size : (index + 1) * pace.shard_size]
            records: dict[int, UnitRecord] = {}
            refused: dict[int, Refusal] = {}
            for batch in batches(rows, pace, encoder.features.grid, refused):
                for (row, wav), units in zip(batch, encoder.encode_batch([wav for _, wav in batch])):
                    u = rows[row]
                    if units.durations and max(units.durations) > LONGEST_RUN:
                        refused[row] = _refusal(u, f"one unit lasts for {max(units.durations)} frames; is it silent?")
                    else:
                        records[row] = UnitRecord(u.id, units, len(wav), u.text, u.speaker, u.lang)
                    heard += len(wav) / SAMPLE_RATE
                bar.update(len(batch))
                rate = heard / (time.monotonic() - began)
                bar.set_postfix_str(f"{heard / 3600:.2f} h of audio, {rate:.0f} h an hour", refresh=False)
            bar.update(len(rows) - len(records))
            with written_whole(refusals_path(out, index)) as file:
                file.writelines(_line(refused[row]) for row in sorted(refused))
            write_shard(shard_path(out, index), [records[row] for row in sorted(records)], encoder.codebook)
    count = -(-len(utterances) // pace.shard_size)
    if all(shard_path(out, i).exists() for i in range(count)):
        join_shards(out, count, encoder.codebook, [_line(one) for one in listed or []])


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


def decoded(rows: list[Utterance], workers: int, grid: FrameGrid) -> Iterator[np.ndarray | Refusal]:
    """The wav of each row, at least a frame of the grid, in order, or why there is none; `workers` threads read ahead
    (decoders run beside Python)."""
    return worked_ahead(lambda row: _read(row, grid), rows, workers)


def _read(utterance: Utterance, grid: FrameGrid) -> np.ndarray | Refusal:
    try:
        return load_wav(utterance.audio, utterance.start, utterance.duration, grid)
    except (AudioError, OSError) as error:
        return _refusal(utterance, str(error))


def batches(
    rows: list[Utterance], pace: Pace, grid: FrameGrid, refused: dict[int, Refusal]
) -> Iterator[list[tuple[int, np.ndarray]]]:  # fmt: skip
    """(row, wav) of readable rows, similar lengths together, at most `batch_seconds` of audio; the others to `refused`.

    With workers a window is decoded while the one before it is encoded, so that neither waits for the other.
    """
    windows = _windows(decoded(rows, pace.workers, grid), refused)
    for window in one_ahead(windows) if pace.workers else windows:
        yield from _by_length(window, pace.batch_seconds)


def _windows(
    wavs: Iterator[np.ndarray | Refusal], refused: dict[int, Refusal]
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """(row, wav) of readable rows, in pieces of a bounded size; the others to `refused`."""
    window: list[tuple[int, np.ndarray]] = []
    seconds = 0.0
    for row, found in enumerate(wavs):
        if isinstance(found, Refusal):
            refused[row] = found
            continue
        window.append((row, found))
        seconds += len(found) / SAMPLE_RATE
        if len(window) == SORTED_FILES or seconds > SORTED_SECONDS:
            yield window
            window, seconds = [], 0.0
    yield window


def _by_length(window: list[tuple[int, np.ndarray]], seconds: float) -> Iterator[list[tuple[int, np.ndarray]]]:
    window = sorted(window, key=lambda pair: -len(pair[1]))
    while window:
        fits = max(1, int(seconds * SAMPLE_RATE / len(window[0][1])))
        yield window[:fits]
        window = window[fits:]


def _refusal(utterance: Utterance, reason: str) -> Refusal:
    return Refusal(utterance.id, str(utterance.audio), reason)


def _line(refusal: Refusal) -> str:
    return json.dumps(dataclasses.asdict(refusal)) + "\n"

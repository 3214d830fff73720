"""The shards of a set: decode audio, encode it in batches, write shards, resume.

A shard covers a fixed range of the source's utterances and appears whole or not at all. So a killed run continues at
the first missing shard, and rank r of W writes shards r, r + W, ... of a shared folder.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from units.audio import SAMPLE_RATE, FrameGrid
from units.corpus.decoding import decoded
from units.corpus.manifest import Utterance
from units.dataset.content import Content, Row, content_of
from units.dataset.unit_set import refusals_path, shard_path
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.ahead import one_ahead
from units.runtime.command import check_range
from units.runtime.files.atomic import check_begun, written_whole
from units.runtime.progress import progress
from units.runtime.provenance import digest
from units.runtime.refusals import Refusal, RefusedError, refusal_of
from units.runtime.settings import check_types

SORTED_FILES, SORTED_SECONDS = 256, 1800.0  # the largest window in which utterances are sorted by length


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of the work that one process does, and how it does it.

    shard_size: utterances in a shard. batch_seconds: audio in one batch. workers: threads that decode ahead of the
    encoder; 0 decodes in the encoder's thread. rank, world: this rank among all that share the folder.
    process, processes: this process among those of its rank. keep_silent: silent audio is not refused.
    """

    shard_size: int = 2000
    batch_seconds: float = 40.0
    workers: int = 0
    rank: int = 0
    world: int = 1
    process: int = 0
    processes: int = 1
    keep_silent: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_range("batch_seconds", self.batch_seconds, 0, exclusive=True)
        for name in ("shard_size", "world", "processes"):
            check_range(name, getattr(self, name), 1)
        check_range("workers", self.workers, 0)
        check_range("rank", self.rank, 0, self.world - 1)
        check_range("process", self.process, 0, self.processes - 1)

    def missing(self, out: Path, utterances: int) -> list[int]:
        """The shards of this share that are not written yet.

        A rank deals its shards to its own processes, so ranks may have different numbers of processes.
        """
        count = shard_count(utterances, self.shard_size)
        shards = range(self.rank, count, self.world)[self.process :: self.processes]
        return [index for index in shards if not shard_path(out, index).exists()]

    def rows(self, utterances: list[Utterance], shard: int) -> list[Utterance]:
        """The utterances of one shard."""
        return utterances[shard * self.shard_size : (shard + 1) * self.shard_size]


def shard_count(utterances: int, shard_size: int) -> int:
    """The number of shards of a set."""
    return -(-utterances // shard_size)


def check_plan(out: Path, utterances: list[Utterance], encoder: UnitEncoder | Content, share: Share) -> None:
    """Raise ValueError if `out` was begun with another encoder, other utterances or other settings."""
    rows = (f"{u.id} {u.start} {u.duration} {u.text} {u.speaker} {u.lang}\n" for u in utterances)
    plan = {
        **content_of(encoder).plan(),
        "shard_size": share.shard_size,
        "utterances": len(utterances),
        "rows": digest(rows, length=16),
    }
    if share.keep_silent:  # only then, since plans of earlier releases have no such field
        plan["keep_silent"] = True
    check_begun(out / "plan.json", plan)


def extract(
    utterances: list[Utterance],
    out: Path,
    encoder: UnitEncoder | Content,
    share: Share = Share(),
    listed: list[Refusal] | None = None,
) -> None:
    """Write one share of a set. The process that finds all shards written also writes its completion file.

    Args:
        utterances: of the whole set.
        out: the set's folder.
        encoder: the unit encoder, or other content.
        share: the part that this process does.
        listed: what the listing of the source refused.

    Raises: ValueError if `out` was begun with another encoder, other utterances or another shard size.
    """
    content = content_of(encoder)
    check_plan(out, utterances, content, share)
    todo = share.missing(out, len(utterances))
    if todo:
        (out / content.completion_file).unlink(
            missing_ok=True
        )  # a shard was deleted, so the set is not complete any more
    total = sum(len(share.rows(utterances, index)) for index in todo)
    with progress(total=total, desc=f"{content.noun} of {out.name}", unit="files") as bar:
        writer = _ShardWriter(utterances, out, content, share, bar)
        for window in windows(utterances, todo, share, content.grid):
            writer.add(window)
    count = shard_count(len(utterances), share.shard_size)
    if all(shard_path(out, i).exists() for i in range(count)):
        content.join(out, count, [one.line() for one in listed or []])


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of a shard, of a bounded size: (row, wav) of what was read, and the refusals of other rows.

    last: the shard ends with it.
    """

    shard: int
    wavs: list[tuple[int, np.ndarray]]
    refused: dict[int, Refusal]
    last: bool


class _ShardWriter:
    """Encodes windows, and writes a shard when its last window is encoded."""

    def __init__(self, utterances: list[Utterance], out: Path, content: Content, share: Share, bar: tqdm) -> None:
        self.utterances, self.out, self.content, self.share, self.bar = utterances, out, content, share, bar
        self.made: dict[int, Row] = {}
        self.refused: dict[int, Refusal] = {}
        self.began, self.seconds = time.monotonic(), 0.0

    def add(self, window: Window) -> None:
        rows = self.share.rows(self.utterances, window.shard)
        self.refused |= window.refused
        self.bar.update(len(window.refused))
        for batch in _by_length(window.wavs, self.share.batch_seconds):
            for (row, wav), made in zip(batch, self.content.encode([wav for _, wav in batch])):
                try:
                    self.content.check(made)
                    self.made[row] = (rows[row], len(wav), made)
                except RefusedError as error:
                    self.refused[row] = refusal_of(rows[row].id, error, audio=rows[row].audio)
                self.seconds += len(wav) / SAMPLE_RATE
            self.bar.update(len(batch))
            rate = self.seconds / (time.monotonic() - self.began)
            self.bar.set_postfix_str(f"{self.seconds / 3600:.2f} h of audio, {rate:.0f} h per hour", refresh=False)
        if window.last:
            self._write(window.shard)

    def _write(self, shard: int) -> None:
        with written_whole(refusals_path(self.out, shard)) as file:
            file.writelines(self.refused[row].line() for row in sorted(self.refused))
        self.content.write(shard_path(self.out, shard), [self.made[row] for row in sorted(self.made)])
        self.made, self.refused = {}, {}


def windows(utterances: list[Utterance], todo: list[int], share: Share, grid: FrameGrid) -> Iterator[Window]:
    """The shards to do, a window at a time.

    With workers, a window is decoded while the one before it is encoded or its shard is written, also across the ends
    of shards, so that neither waits for the other.
    """
    wavs = decoded(
        (row for shard in todo for row in share.rows(utterances, shard)), share.workers, grid, share.keep_silent
    )
    found = (
        window
        for shard in todo
        for window in _windows(shard, itertools.islice(wavs, len(share.rows(utterances, shard))))
    )
    return one_ahead(found) if share.workers else found


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


def _by_length(wavs: list[tuple[int, np.ndarray]], seconds: float) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batches of wavs of similar length, the longest first, each of at most so many seconds with its padding."""
    wavs = sorted(wavs, key=lambda pair: -len(pair[1]))
    while wavs:
        fits = max(1, int(seconds * SAMPLE_RATE / len(wavs[0][1])))
        yield wavs[:fits]
        wavs = wavs[fits:]

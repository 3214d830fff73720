"""Worker processes that share a list of jobs."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Workers:
    """Worker processes. They start with the first jobs that are worth it, and end with the `with` block."""

    def __init__(self, count: int | None = None) -> None:
        """count: processes; None is one for each core, and none at all for a small amount of work."""
        self.asked, self.count = count, count or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def run(self, job: Callable[[Work], Result], todo: Sequence[Work], much: bool = True) -> Iterator[Result]:
        """Results of the job for each item of `todo`, in the order in which they are finished.

        Args:
            job: a function that can be pickled.
            todo: its arguments.
            much: whether the work is worth processes if the user gave no number of them.

        Raises: RuntimeError if a process was killed; the errors of the job.
        """
        if self.count == 1 or len(todo) < 2 or (self.asked is None and not much):
            yield from map(job, todo)
            return
        if self._pool is None:
            # ProcessPoolExecutor raises if the system kills a process, where multiprocessing.Pool waits forever
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        try:
            for done in as_completed([self._pool.submit(job, one) for one in todo]):
                yield done.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {self.count} processes was killed: by the system, for lack of memory, or by a fault in a "
                "library. What is done is kept; run the same command again, if necessary with fewer processes"
            ) from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

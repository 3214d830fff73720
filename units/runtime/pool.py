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
    """Processes that share work; they start with the first work that is worth it, and stay until the block ends."""

    def __init__(self, count: int | None = None) -> None:
        """count: processes; None takes one for each core, and none at all for little work."""
        self.asked, self.count = count, count or os.cpu_count() or 1
        self._pool: ProcessPoolExecutor | None = None

    def run(self, job: Callable[[Work], Result], todo: Sequence[Work], much: bool = True) -> Iterator[Result]:
        """What the job returns for each, in whatever order they are done.

        Args:
            much: whether it is worth processes where nobody asked for any.

        Raises: RuntimeError if a process was killed.
        """
        if self.count == 1 or len(todo) < 2 or (self.asked is None and not much):
            yield from map(job, todo)
            return
        if self._pool is None:
            # an executor, since a process that the system kills ends it with an error and not with endless waiting
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        try:
            for done in as_completed([self._pool.submit(job, one) for one in todo]):
                yield done.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of {self.count} processes was killed: by the system, for want of memory, or by a fault in a library. "
                "What is done is kept; type the same line again, if need be with fewer --workers"
            ) from error

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

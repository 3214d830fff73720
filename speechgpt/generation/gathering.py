"""Work for several threads at once: while it is done for one, the others' items are gathered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any


class Job:
    """The items of one call, and its result."""

    def __init__(self, items: list[Any], work: Callable[[list[Any]], list[Any]]) -> None:
        self.items, self.work = items, work
        self._done: SimpleQueue = SimpleQueue()

    def finish(self, found: list[Any] | Exception) -> None:
        self._done.put(found)

    def result(self) -> list[Any]:
        found = self._done.get()
        if isinstance(found, Exception):
            raise found
        return found


def work_together(jobs: list[Job]) -> None:
    """Do the work of jobs at once; if that fails, of each alone."""
    try:
        found = iter(jobs[0].work([item for job in jobs for item in job.items]))
        results: list[Any] = [[next(found) for _ in job.items] for job in jobs]
    except Exception as error:  # noqa: BLE001 - it is raised in the callers' threads
        results = [error] if len(jobs) == 1 else [_alone(job) for job in jobs]
    for job, result in zip(jobs, results):
        job.finish(result)


def _alone(job: Job) -> list[Any] | Exception:
    try:
        return job.work(job.items)
    except Exception as error:  # noqa: BLE001 - as above
        return error


class Gatherer:
    """A function of lists that several threads call: while it works for one, the others' items are gathered.

    work: gives a result for each item, the same as for the item alone.
    """

    def __init__(self, work: Callable[[list[Any]], list[Any]]) -> None:
        self._work = work
        self._busy, self._lock = threading.Lock(), threading.Lock()
        self._waiting: list[Job] = []

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        job = Job(list(items), self._work)
        with self._lock:
            self._waiting.append(job)
        with self._busy:  # the first thread computes the jobs of all waiting threads
            with self._lock:
                jobs, self._waiting = self._waiting, []
            if jobs:
                work_together(jobs)
        return job.result()

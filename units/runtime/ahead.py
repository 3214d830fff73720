"""Threads that compute results ahead of their use, in order, with a bounded number of results in memory."""

from __future__ import annotations

import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_LOADERS = 8  # processes: each is a copy of the training process
END = object()  # follows the last item


def own_cores(beside: int = 1) -> int:
    """The cores that this process may use; on a machine without CPU binding, its part among `beside` processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // beside if cores == os.cpu_count() else cores)


def spare_cores(device: str, beside: int = 1) -> int:
    """The cores left for decoding: none if the device is the CPU, else all cores of this process but one."""
    return 0 if device == "cpu" else max(1, own_cores(beside) - 1)


def usual_loaders(device: str, beside: int = 1) -> int:
    """Worker processes that make the batches of a training on a device, if the user gives no number."""
    return min(MOST_LOADERS, spare_cores(device, beside))


def worked_ahead(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    prepare: Callable[[], None] | None = None,
    weigh: Callable[[Item], float] = lambda item: 0.0,
    room: float = 0.0,
) -> Iterator[Result]:
    """`map(work, items)` by threads, for work that waits or releases Python's lock (decoders, numpy, torch, parquet).

    The map of an executor starts on all items at once and keeps every result until it is used. Here at most two results
    per worker wait.

    Args:
        work: the function.
        items: its arguments, taken one by one.
        workers: threads; 0 computes each result when it is needed.
        prepare: called once in each thread, before its work.
        weigh: the weight of an item's result, such as seconds of audio.
        room: the weight of all results that wait; a heavier result waits alone.

    Raises: the errors of `work`, in the place of its item. Items that wait behind it are not begun.
    """
    if not workers:
        yield from map(work, items)
        return
    with concurrent.futures.ThreadPoolExecutor(workers, initializer=prepare) as pool:
        waiting: deque[tuple[concurrent.futures.Future[Result], float]] = deque()
        try:
            for item in items:
                weight = weigh(item)
                while waiting and (len(waiting) > 2 * workers or sum(one for _, one in waiting) + weight > room):
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(work, item), weight))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for future, _ in waiting:
                future.cancel()


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread computes the next one while the last is in use.

    Raises: the errors of computing an item, in its place.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = pool.submit(next, items, END)
            yield item

"""Threads that work ahead of whoever takes the results: in order, and only a few results at a time in memory; cores for them."""

from __future__ import annotations

import concurrent.futures
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_LOADERS = 8  # each is a copy of the training process
END = object()  # what comes after the last item


def own_cores(beside: int = 1) -> int:
    """The cores that this process may use; of an undivided machine its share among `beside` processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // beside if cores == os.cpu_count() else cores)


def spare_cores(device: str, beside: int = 1) -> int:
    """The cores that a device leaves to decoders: on a CPU none, beside a GPU all that are its process's but one."""
    return 0 if device == "cpu" else max(1, own_cores(beside) - 1)


def usual_loaders(device: str, beside: int = 1) -> int:
    """Processes that make the batches of a training on a device, if its user does not say how many."""
    return min(MOST_LOADERS, spare_cores(device, beside))


def worked_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, prepare: Callable[[], None] | None = None,
    weigh: Callable[[Item], float] = lambda item: 0.0, room: float = 0.0,
) -> Iterator[Result]:  # fmt: skip
    """`map(work, items)` by threads, for work that waits or leaves Python's lock (decoders, numpy, torch, parquet).

    An executor's own map starts on all items at once and keeps what nobody has taken yet; here at most two results a
    worker wait.

    Args:
        workers: threads; 0 does each item when it is asked for.
        prepare: called once in each thread, before its work.
        weigh, room: what an item's result will weigh, and what all that wait may; one heavier than that waits alone.

    Raises: whatever `work` raises, at the place of its item; what waits behind it is not begun.
    """
    if not workers:
        yield from map(work, items)
        return
    with concurrent.futures.ThreadPoolExecutor(workers, initializer=prepare) as pool:
        waiting: deque[tuple[concurrent.futures.Future[Result], float]] = deque()
        try:
            for item in items:
                weight = weigh(item)
                while waiting and (len(waiting) > 2 * workers or sum(held for _, held in waiting) + weight > room):
                    yield waiting.popleft()[0].result()
                waiting.append((pool.submit(work, item), weight))
            while waiting:
                yield waiting.popleft()[0].result()
        finally:
            for left, _ in waiting:
                left.cancel()


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; a thread makes the next one while the last is in use.

    Raises: whatever making an item raises, when its turn comes.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = pool.submit(next, items, END)
            yield item

"""Threads that work ahead of whoever takes the results: in order, and only a few results at a time in memory."""

from __future__ import annotations

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
END = object()  # what comes after the last item


def worked_ahead(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, prepare: Callable[[], None] | None = None
) -> Iterator[Result]:
    """`map(work, items)` by threads, for work that waits or leaves Python's lock (decoders, numpy, torch, parquet).

    An executor's own map starts on all items at once and keeps what nobody has taken yet; here at most two results a
    worker wait.

    Args:
        workers: threads; 0 does each item when it is asked for.
        prepare: called once in each thread, before its work.

    Raises: whatever `work` raises, at the place of its item; what waits behind it is not begun.
    """
    if not workers:
        yield from map(work, items)
        return
    with concurrent.futures.ThreadPoolExecutor(workers, initializer=prepare) as pool:
        waiting: deque[concurrent.futures.Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for left in waiting:
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

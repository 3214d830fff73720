"""What the server's requests wait for: a bounded queue, threads that ask the model, and pieces that leave them.

A request asks the model in a thread of its own. As many run at once as the model takes (`share`); others wait, and past
`waiting` of them a request is refused. Pieces are put into a queue that is never full, so a client that reads slowly
holds nobody back. When a client has gone, `Stopped` ends the work in its thread and frees its row of the batch.
"""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import torch

from speechgpt.answers import SpeechModel
from speechgpt.generation.shared import stoppable

T = TypeVar("T")
SWITCH = 0.0001  # seconds that a thread may hold the interpreter; the model's thread waits for it after every operation
FIRST_GUESS = 2.0  # seconds of an answer, before any was timed
_END = object()


class Busy(RuntimeError):
    """The queue is full. retry_after: seconds until there may be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the server is busy; try again in {retry_after} s")
        self.retry_after = retry_after


class Closing(RuntimeError):
    """The server is stopping, and starts nothing new."""


class Work:
    """The requests of one model.

    running, queued: how many there are now.
    """

    def __init__(self, model: SpeechModel, rows: int, waiting: int) -> None:
        """
        Args:
            rows: requests that ask the model at once, if it can be shared.
            waiting: requests that may wait for these.
        """
        share = getattr(model, "share", None)
        if share is not None:
            share(rows)
        self.rows = rows if share is not None else 1
        self.model, self.waiting = model, waiting
        self.running = self.queued = 0
        self._turns: list[asyncio.Future[None]] = []
        # many requests compute at once, and the model in a thread of its own: more of torch's threads would only wait
        if self.rows > 1:
            sys.setswitchinterval(SWITCH)
        one = {"initializer": torch.set_num_threads, "initargs": (1,)} if self.rows > 1 else {}
        self._threads = ThreadPoolExecutor(self.rows, thread_name_prefix="request", **one)
        self._seconds = FIRST_GUESS
        self._closing = False

    def close(self) -> None:
        """Start nothing new: what waits is refused, what runs goes on."""
        self._closing = True
        for turn in self._turns:
            if not turn.done():
                turn.set_exception(Closing())
        self._turns.clear()

    async def run(self, ask: Callable[[], T]) -> T:
        """What `ask` returns in a thread; cancelling this stops it.

        Raises:
            Busy, Closing: it was not begun.
        """
        async with self.stream(lambda: iter([ask()])) as pieces:
            return await anext(pieces)

    @asynccontextmanager
    async def stream(self, ask: Callable[[], Iterator[T]]) -> AsyncIterator[AsyncIterator[T]]:
        """What an iterator gives in a thread, piece by piece; leaving the context stops it.

        Raises:
            Busy, Closing: it was not begun.
        """
        await self._turn()
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()
        stop, begun = threading.Event(), time.monotonic()

        def put(piece: Any) -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work() -> bool:
            """Whether all pieces were given."""
            try:
                with stoppable(stop):
                    asked = ask()
                    try:
                        for piece in asked:
                            if stop.is_set():
                                return False
                            put(piece)
                    finally:
                        close = getattr(asked, "close", None)
                        if close is not None:
                            close()
                put(_END)
                return True
            except BaseException as error:  # noqa: BLE001 - it is raised where the pieces are read
                put(error)
                return False

        future = loop.run_in_executor(self._threads, work)
        future.add_done_callback(lambda _: self._leave(time.monotonic() - begun, future.result()))

        async def read() -> AsyncIterator[T]:
            while (piece := await pieces.get()) is not _END:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

        reading = read()
        try:
            yield reading
        finally:
            stop.set()
            await reading.aclose()  # type: ignore[attr-defined]

    async def _turn(self) -> None:
        """Wait until the request may run. Raises Busy or Closing."""
        if self._closing:
            raise Closing()
        if self.running < self.rows:
            self.running += 1
            return
        if self.queued >= self.waiting:
            raise Busy(self.retry_after)
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        self.queued += 1
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # its turn came while its client left
            raise
        finally:
            self.queued -= 1
            if turn in self._turns:
                self._turns.remove(turn)

    def _leave(self, seconds: float, whole: bool) -> None:
        if whole or seconds > self._seconds:
            self._seconds += 0.2 * (seconds - self._seconds)
        self._pass_on()

    def _pass_on(self) -> None:
        """The next request takes the place of one that has ended."""
        while self._turns:
            turn = self._turns.pop(0)
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    @property
    def retry_after(self) -> int:
        """Seconds until there may be room for another request."""
        return max(1, math.ceil(self._seconds * (self.queued + 1) / self.rows))

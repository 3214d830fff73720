"""Replies that are sent while the model works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from speechgpt.serve.work import Work

T = TypeVar("T")


class Pieces(Generic[T]):
    """The pieces of an answer whose first one has come; `close` stops the work."""

    def __init__(
        self, working: AbstractAsyncContextManager[AsyncIterator[T]], rest: AsyncIterator[T], first: T
    ) -> None:
        self._working, self._rest, self._first = working, rest, first

    @classmethod
    async def begin(cls, work: Work, ask: Callable[[], Iterator[T]]) -> Pieces[T]:
        """Wait for the first piece, so that an error before it is an error of the whole request."""
        working = work.stream(ask)
        rest = await working.__aenter__()
        try:
            return cls(working, rest, await anext(rest))
        except BaseException as error:
            await working.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aiter__(self) -> AsyncIterator[T]:
        yield self._first
        async for piece in self._rest:
            yield piece

    async def close(self) -> None:
        """Stop the work; what it has already given is dropped."""
        await self._working.__aexit__(None, None, None)


class Streamed(StreamingResponse):
    """A reply of pieces. When it ends, or its client leaves, the work ends too."""

    def __init__(self, pieces: Pieces, content: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._pieces.close()

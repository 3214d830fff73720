"""What is checked of every request before it is answered: headers, site, key, and the length and time of its body."""

from __future__ import annotations

import asyncio
import hmac
import re
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechgpt.generation.shared import Stopped
from speechgpt.serve.errors import ApiError, as_api_error, error_response
from speechgpt.serve.metrics import Metrics

T = TypeVar("T")
MAX_BODY = 64 << 20  # bytes of a request: half an hour of sound
CLIENT_TIMEOUT = 60.0  # seconds without a byte from the client, or without one that it takes
LONGEST_PATH = 8192  # characters
LINGER = 5.0  # seconds for which the rest of a refused body is read, so that its sender gets the reason
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
KEY_PROTOCOL = "openai-insecure-api-key."  # how a browser sends the key of a WebSocket, which has no headers there
OPEN_PATHS = ("/", "/health")  # served without a key: the page holds nothing, and load balancers have no key
PAGE_FILES = "/page/"  # as the page
_NAME = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
HOST = re.compile(rf"{_NAME}(:[0-9]{{1,5}})?")
ORIGIN = re.compile(rf"null|[A-Za-z][A-Za-z0-9+.-]*://(?P<host>{_NAME}(:[0-9]{{1,5}})?)")
CHECKED = (("host", HOST), ("origin", ORIGIN), ("content-length", re.compile("[0-9]{1,18}")))


@dataclass(frozen=True)
class Access:
    """Who may use the server."""

    local: bool = True
    """It listens to this machine alone, so requests must name this machine."""
    key: str = ""
    """What clients send as `Authorization: Bearer KEY`; "" asks for none."""
    origins: Sequence[str] = field(default_factory=tuple)
    """Other sites whose pages may use it, such as https://example.org; `*` is any."""


class Gate:
    """The application behind the checks. Every error becomes a reply."""

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self.app, self.access, self.metrics = app, access, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        call = _Call(scope, receive, send)
        try:
            self._check(scope)
            if scope["method"] == "OPTIONS" and self._allowed_origin(scope):
                await self._preflight(scope, call)
            else:
                call.cors = self._allowed_origin(scope)
                await self.app(scope, call.receive, call.send)
        except (Gone, Stopped):
            call.abort()
        except asyncio.CancelledError:
            call.abort()
            raise
        except Exception as error:  # noqa: BLE001 - every error is a reply
            await call.refuse(as_api_error(error), scope["path"])
        finally:
            self.metrics.answered(scope["path"], call.status)
            _log(scope, call.status)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except ApiError as error:
            await receive()
            if "websocket.http.response" in scope.get("extensions", {}):
                await error_response(error, scope["path"])(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            _log(scope, error.status)
            return
        await self.app(scope, receive, send)
        _log(scope, 101)

    # --- headers

    def _check(self, scope: Scope) -> None:
        """Raises ApiError for a header that has no meaning, another site, a wrong key, or a body that is too long."""
        if scope["type"] == "http" and scope["http_version"] not in ("1.0", "1.1"):
            raise ApiError(505, f"the request is of HTTP/{scope['http_version']}; allowed: HTTP/1.0, HTTP/1.1")
        if len(scope["path"]) > LONGEST_PATH:
            raise ApiError(414, f"the path has {len(scope['path'])} characters; at most {LONGEST_PATH} are allowed")
        for name, allowed in CHECKED:
            values = header_values(scope, name)
            shown = "-".join(part.capitalize() for part in name.split("-"))
            if len(values) > 1:
                raise ApiError(400, f"the request has {len(values)} headers {shown}; one is allowed")
            if values and not allowed.fullmatch(values[0].strip()):
                raise ApiError(400, f"the header {shown} is {values[0]!r}, which is malformed")
        if scope["path"] != "/health" and (site := self._other_site(scope)):
            raise ApiError(403, f"a page of {site} may not use this server")
        if scope.get("method") != "OPTIONS":
            self._check_key(scope)

    def _other_site(self, scope: Scope) -> str | None:
        """The site whose page sent this request, if it is neither this server's page nor one that is allowed.

        Any page that is open in a browser on this machine could send one. A site may also have made its own name point
        to this machine, so a server that listens on this machine alone accepts only this machine's names.
        """
        origin, host = header(scope, "origin"), header(scope, "host").strip()
        reads = scope.get("method") in ("GET", "HEAD")  # a browser shows no reply to the page of another site
        if origin and not reads and not self._allowed_origin(scope):
            found = ORIGIN.fullmatch(origin.strip())
            if found is None or found["host"] != host:
                return origin
        name = HOST.fullmatch(host)
        if name and self.access.local and name[1].strip("[]").lower() not in LOCAL_NAMES:
            return host
        return None

    def _allowed_origin(self, scope: Scope) -> str:
        """The request's origin, if the server was told to allow it; "" otherwise."""
        origin = header(scope, "origin").strip()
        return origin if origin and (origin in self.access.origins or "*" in self.access.origins) else ""

    def _check_key(self, scope: Scope) -> None:
        is_open = scope["path"] in OPEN_PATHS or scope["path"].startswith(PAGE_FILES)
        if not self.access.key or (is_open and scope["type"] == "http"):
            return
        given = header(scope, "authorization")
        given = given[7:] if given[:7].lower() == "bearer " else ""
        if scope["type"] == "websocket" and not given:
            offered = scope.get("subprotocols") or []
            given = next((one[len(KEY_PROTOCOL) :] for one in offered if one.startswith(KEY_PROTOCOL)), "")
        if not hmac.compare_digest(given.strip().encode(), self.access.key.encode()):
            what = "is wrong" if given else "is missing; send Authorization: Bearer KEY"
            raise ApiError(401, f"the API key {what}", "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _preflight(self, scope: Scope, call: _Call) -> None:
        headers = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": header(scope, "access-control-request-headers") or "authorization",
            "Access-Control-Max-Age": "600",
        }
        call.cors = self._allowed_origin(scope)
        await Response(status_code=204, headers=headers)(scope, call.receive, call.send)


class Gone(RuntimeError):
    """The client has gone, or takes no bytes."""


class _Call:
    """One request: its messages, with limits of time and length."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._size, self._read, self._whole = int(header(scope, "content-length") or 0), 0, False
        self.status, self.cors = 0, ""

    async def receive(self) -> Message:
        """The next message. Raises ApiError if the body does not come, ends early, or is too long."""
        if self._whole:
            return await self._receive()
        if not self._read and self._scope["method"] == "POST":
            self._check_length()
        try:
            message = await asyncio.wait_for(self._receive(), CLIENT_TIMEOUT)
        except asyncio.TimeoutError:
            raise ApiError(408, f"no byte came for {CLIENT_TIMEOUT:g} s") from None
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._whole and self._read < self._size:
                raise ApiError(400, f"the request's body ended after {self._read} of {self._size} bytes")
        return message

    def _check_length(self) -> None:
        if not header(self._scope, "content-length"):
            raise ApiError(411, f"a request has a body of 1 to {MAX_BODY} bytes, and a Content-Length")
        if not 0 < self._size <= MAX_BODY:
            status = 413 if self._size else 400
            raise ApiError(
                status, f"a request has a body of 1 to {MAX_BODY} bytes; this Content-Length is {self._size}"
            )

    async def send(self, message: Message) -> None:
        """Send a message. Raises Gone if the client takes no byte for CLIENT_TIMEOUT."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            headers += [(b"cache-control", b"no-store")]
            if self.cors:
                headers += [(b"access-control-allow-origin", self.cors.encode("latin-1")), (b"vary", b"Origin")]
            message = {**message, "headers": headers}
        try:
            await asyncio.wait_for(self._send(message), CLIENT_TIMEOUT)
        except asyncio.TimeoutError:
            raise Gone("the client takes no byte") from None
        except OSError as error:
            raise Gone(str(error)) from error

    def abort(self) -> None:
        """Close the connection at once: what was not sent is not waited for."""
        self.status = self.status or 499
        transport = self._scope.get("state", {}).get("transport")
        if transport is not None:
            transport.abort()

    async def refuse(self, error: ApiError, path: str) -> None:
        """Send an error, then read what the client still sends: it could not read the reason otherwise."""
        if self.status:  # a part of the reply has been sent
            self.abort()
            return
        response = error_response(error, path)
        unread = not self._whole and (self._size > self._read or bool(header(self._scope, "transfer-encoding")))
        if unread:
            response.headers["Connection"] = "close"
        start = {"type": "http.response.start", "status": error.status, "headers": response.raw_headers}
        try:
            await self.send(start)
            await self.send({"type": "http.response.body", "body": response.body, "more_body": True})
            if unread:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._drain(), LINGER)
            await self.send({"type": "http.response.body", "body": b""})
        except Gone:
            self.abort()

    async def _drain(self) -> None:
        while not self._whole:
            message = await self._receive()
            self._whole = message["type"] == "http.disconnect" or not message.get("more_body", False)


def header_values(scope: Scope, name: str) -> list[str]:
    """All values of a header."""
    wanted = name.encode()
    return [value.decode("latin-1") for key, value in scope["headers"] if key == wanted]


def header(scope: Scope, name: str) -> str:
    """The first value of a header; "" if there is none."""
    return next(iter(header_values(scope, name)), "")


async def body_of(request: Request) -> bytes:
    """The whole body of a request. Raises ApiError for one that is too long, and Gone if the client leaves."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone("the client has gone")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise ApiError(413, f"a request has a body of at most {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


async def client_gone(request: Request) -> None:
    """Returns when the client has gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What some work gives; it is stopped when the client leaves. The request's body must have been read.

    Raises:
        Gone: the client has left.
    """
    working: asyncio.Future[T] = asyncio.ensure_future(work)
    tasks: list[asyncio.Future[Any]] = [working, asyncio.ensure_future(client_gone(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone("the client has gone")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _log(scope: Scope, status: int) -> None:
    """One plain line a request."""
    client: Any = scope.get("client") or ("-", 0)
    line = f'{client[0]} "{scope.get("method", "WEBSOCKET")} {scope["path"]}" {status}'
    shown = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
    print(f"{time.strftime('%H:%M:%S')} {shown}", file=sys.stderr)

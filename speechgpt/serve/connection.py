"""One connection: uvicorn's HTTP/1.1 protocol, with a time limit for headers, and errors as JSON.

A client may close its side when it has sent its request, and still read the reply for CLOSED_SIDE seconds; then it
counts as gone, as a client that closes both sides looks the same.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from speechgpt.serve import gate

CLOSED_SIDE = 1.0  # seconds


class Connection(H11Protocol):
    """An HTTP connection of the server."""

    _timer: asyncio.TimerHandle | None = None
    _refused = _upgraded = False

    def connection_made(self, transport: Any) -> None:
        self.app_state = {**self.app_state, "transport": transport}
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._upgraded:  # a WebSocket has the connection now
            return
        if self.cycle is None or self.cycle.response_complete:
            self._wait()
        else:
            self._stop_waiting()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._stop_waiting()
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    def eof_received(self) -> bool:  # type: ignore[override]
        cycle = self.cycle
        if self._refused:
            return False
        if cycle is None or cycle.response_complete:
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                self.send_400_response("the request ended in its headers")
            return False
        cycle.keep_alive = False
        if cycle.more_body:  # the body is shorter than it should be: the gate says so
            cycle.more_body = False
            cycle.message_event.set()
        self.loop.call_later(CLOSED_SIDE, self._left, cycle)
        return True

    def _left(self, cycle: Any) -> None:
        if not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP. The connection may be past the point where h11 can send."""
        self._refuse(400, f"{msg.rstrip('.')}: this is no request of HTTP/1.1")

    def _refuse(self, status: int, reason: str) -> None:
        self._stop_waiting()
        body = json.dumps({"error": reason}).encode() + b"\n"
        phrase = {400: "Bad Request", 408: "Request Timeout"}[status]
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if self._refused or self.transport.is_closing():
            return
        self._refused = True  # what still comes is read for a while: the sender could not read the reason otherwise
        self.transport.write(head.encode() + body)
        self.loop.call_later(gate.LINGER, self.transport.close)

    def _wait(self) -> None:
        """Close the connection if no whole request comes."""
        if self._timer is None:
            self._timer = self.loop.call_later(gate.CLIENT_TIMEOUT, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self._refuse(408, f"no request came for {gate.CLIENT_TIMEOUT:g} s")

"""A chat-completions server in this process, whose replies a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer:
    """Replies to the messages of each request by a function: a text, or an HTTP status to fail with.

    requests: the bodies of the requests so far.
    """

    def __init__(self, reply: Callable[[list[dict]], str | int]) -> None:
        self.reply, self.requests = reply, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                found = server.reply(body["messages"])
                status, content = (found, {"error": "no"}) if isinstance(found, int) else (200, server.choice(found))
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data)))):
                    self.send_header(name, value)
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def choice(self, text: str) -> dict:
        words, most = text.split(), self.requests[-1].get("max_tokens", 10**9)
        reason = "length" if len(words) > most else "stop"  # a word is a token here
        return {"choices": [{"message": {"content": " ".join(words[:most])}, "finish_reason": reason}]}


@contextmanager
def chat_server(reply: Callable[[list[dict]], str | int]) -> Iterator[ChatServer]:
    """A running ChatServer."""
    server = ChatServer(reply)
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()

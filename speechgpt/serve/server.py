"""The `speechgpt-server` command: a model behind HTTP, and a page in the browser to talk with it.

    speechgpt-server --model runs/toy/model                   # then open http://127.0.0.1:8010
    curl --data-binary @q.wav http://127.0.0.1:8010/answer    # lines of JSON, as the answer comes
    curl --data 'the red dog jumps' http://127.0.0.1:8010/say > a.wav

| request | body | reply |
|---|---|---|
| GET / | | the page |
| GET /model | | {"name", "capabilities", "sample_rate"} |
| POST /answer | an audio file | a line of JSON for each piece of the answer |
| POST /transcribe | an audio file | {"text"} |
| POST /chat | a question, as UTF-8 | {"text"} |
| POST /say | a text, as UTF-8 | a wav |

A piece of an answer has what was gained: "transcript", "text", and "wav", 16-bit little-endian samples at the model's
rate in base64; the last piece also has "finished" and "understood".

Errors are {"error": reason}: status 400 for bad input, 404 for a path that does not exist or that the model does not
support, 403 for another site's page. An error in the middle of an answer is its last line. Questions are answered one
at a time, each without history. Sampling is set by the command's options; `?candidates=1` on /answer streams the
speech without self-verification.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from speechgpt.sampling import Sampling
from units.runtime.command import command

if TYPE_CHECKING:
    import numpy as np

    from speechgpt.answers import Piece, SpeechModel

PAGE = Path(__file__).with_name("page.html")
MAX_BODY = 64 << 20  # bytes of a request: half an hour of sound
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
CLIENT_TIMEOUT = 60.0  # seconds without a byte from the client


class Server(ThreadingHTTPServer):
    """A model at a port. Requests are accepted in parallel and answered one after the other."""

    daemon_threads = True

    def __init__(self, model: SpeechModel, sampling: Sampling, address: tuple[str, int]) -> None:
        super().__init__(address, Handler)
        self.model, self.sampling, self.one_at_a_time = model, sampling, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = CLIENT_TIMEOUT

    def do_GET(self) -> None:
        """Serve the page and the facts of the model."""
        path = urlsplit(self.path).path
        if path == "/":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/model":
            model = self.server.model
            self._json(
                {"name": model.name, "capabilities": sorted(model.capabilities), "sample_rate": model.sample_rate}
            )
        else:
            self._json({"error": f"there is no {path}; GET / or /model"}, 404)

    def do_POST(self) -> None:
        """Ask the model."""
        from speechgpt.answers import NotSupported

        path = urlsplit(self.path).path
        work: dict[str, Callable[[bytes], None]] = {
            "/answer": self._answer,
            "/transcribe": self._transcribe,
            "/chat": self._chat,
            "/say": self._say,
        }
        if path not in work:
            self._json({"error": f"there is no {path}; POST to {', '.join(work)}"}, 404)
            return
        if site := self._other_site():
            self._json({"error": f"a page of {site} may not use this server"}, 403)
            return
        try:
            body = self._body()
            with self.server.one_at_a_time:
                work[path](body)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):  # the client has gone
            self.close_connection = True
        except NotSupported as error:
            self._json({"error": str(error)}, 404)
        except (OSError, ValueError) as error:
            self._json({"error": str(error)}, 400)

    def _other_site(self) -> str | None:
        """The site whose page sent this request, if it is not this server's page.

        Any page that is open in a browser on this machine could send one. A site may also have made its own name point
        to this machine, so a server that listens on this machine alone accepts only this machine's names.
        """
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            return origin
        if self.server.server_address[0] in LOCAL_NAMES and urlsplit(f"//{host}").hostname not in (None, *LOCAL_NAMES):
            return host
        return None

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or not 0 < int(length) <= MAX_BODY:
            raise ValueError(f"a request has a body of 1 to {MAX_BODY} bytes; its Content-Length is {length!r}")
        return self.rfile.read(int(length))

    def _answer(self, body: bytes) -> None:
        from speechgpt.answers import answer_pieces

        query = parse_qs(urlsplit(self.path).query)
        sampling = self.server.sampling
        if "candidates" in query:
            sampling = replace(sampling, candidates=int(query["candidates"][0]))
        pieces = answer_pieces(self.server.model, _wav(body), sampling)
        first = next(pieces)  # bad audio is an error before anything is sent
        self._begin("application/x-ndjson")
        self._line(_as_json(first))
        try:
            for piece in pieces:
                self._line(_as_json(piece))
        except ValueError as error:
            self._line({"error": str(error)})

    def _transcribe(self, body: bytes) -> None:
        self._json({"text": self.server.model.transcribe(_wav(body), self.server.sampling)})

    def _chat(self, body: bytes) -> None:
        self._json({"text": self.server.model.chat(_text(body), self.server.sampling)})

    def _say(self, body: bytes) -> None:
        import soundfile

        answer = self.server.model.say(_text(body), self.server.sampling)
        if answer.wav is None:
            raise ValueError("the model gave no speech")
        file = io.BytesIO()
        soundfile.write(file, answer.wav.clip(-1.0, 1.0), self.server.model.sample_rate, subtype="PCM_16", format="WAV")
        self._send(file.getvalue(), "audio/wav")

    def _begin(self, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self._begin(kind, status)
        self.wfile.write(content)

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(content).encode() + b"\n", "application/json", status)

    def _line(self, content: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """One plain line a request."""
        print(f"{self.address_string()} {format % args}", file=sys.stderr)


def _wav(body: bytes) -> np.ndarray:
    """The wav (T,) of an audio file's bytes. Raises ValueError, without the temporary file's name, if they are none."""
    from units.audio import AudioError, load_wav

    with tempfile.NamedTemporaryFile(prefix="speechgpt-") as file:
        file.write(body)
        file.flush()
        try:
            return load_wav(file.name)
        except AudioError as error:
            message = str(error).replace(repr(os.fsencode(file.name)), "it").replace(file.name, "the request's body")
            raise ValueError(message) from error


def _text(body: bytes) -> str:
    try:
        text = body.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError("the request's body is not UTF-8 text") from error
    if not text:
        raise ValueError("the request's body is an empty text")
    return text


def _as_json(piece: Piece) -> dict[str, Any]:
    """A piece as JSON can hold it, without its empty parts."""
    record: dict[str, Any] = {"transcript": piece.transcript, "text": piece.text}
    if piece.wav is not None:
        samples = (piece.wav.clip(-1.0, 1.0) * 32767).astype("<i2")
        record["wav"] = base64.b64encode(samples.tobytes()).decode()
    if piece.answer is not None:
        candidate = piece.answer.candidate
        record |= {"finished": piece.answer.finished, "understood": candidate and candidate.understood}
    return {name: value for name, value in record.items() if value != ""}


@command("speechgpt-server", positional=False)
def main(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8010,
    device: str | None = None,
    dtype: str | None = None,
    sampling: Sampling = Sampling(),
) -> None:
    """Serve a model until Ctrl-C.

    Args:
        model: model folder, such as runs/toy/model, or the id of a model on the hub
        host: the address to listen on: 127.0.0.1 is reached from this machine alone, 0.0.0.0 from the whole network
        port: 0 takes a free one
        device: cpu or cuda; a GPU if there is one, when not given
        dtype: of the model's weights: float32, bfloat16 or float16; as they are stored if not given
        sampling: how tokens are drawn
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}; allowed: 0 to 65535")
    from speechgpt.open_model import open_model

    opened = open_model(model, device, dtype)
    getattr(opened, "preload", lambda: None)()  # a missing or foreign part fails now, not at the first request
    able = ", ".join(sorted(opened.capabilities)) or "nothing"
    with Server(opened, sampling, (host, port)) as server:
        print(f"{opened.name}, supports {able}: http://{host}:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main.cli()

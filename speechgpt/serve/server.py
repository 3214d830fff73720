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

Errors are {"error": reason}: status 400 for bad input, 403 for another site's page, 404 for a path that does not
exist or that the model does not support, 405 for another method, 408 for a body that does not come, 411 for one
without a length, 413 for one that is too long, 500 for an error of the server. An error in the middle of an answer is
its last line. Questions are answered one at a time, each without history. Sampling is set by the command's options;
`?candidates=1` on /answer streams the speech without self-verification.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qs, urlsplit

from speechgpt.sampling import MOST_CANDIDATES, Sampling
from units.runtime.command import check_range, command

if TYPE_CHECKING:
    import numpy as np

    from speechgpt.answers import Piece, SpeechModel

PAGE = Path(__file__).with_name("page.html")
MAX_BODY = 64 << 20  # bytes of a request: half an hour of sound
LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
CLIENT_TIMEOUT = 60.0  # seconds without a byte from the client
LINGER = 30.0  # seconds for which the rest of a refused body is read, so that its sender gets the reason
PATHS = {"/": "GET", "/model": "GET", "/answer": "POST", "/transcribe": "POST", "/chat": "POST", "/say": "POST"}
_NAME = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)"
_HOST = re.compile(rf"{_NAME}(:[0-9]{{1,5}})?")
_ORIGIN = re.compile(rf"null|[A-Za-z][A-Za-z0-9+.-]*://(?P<host>{_NAME}(:[0-9]{{1,5}})?)")


class RequestError(ValueError):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: the reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """A model at a port. Requests are accepted in parallel and answered one after the other."""

    daemon_threads = True

    def __init__(self, model: SpeechModel, sampling: Sampling, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        self.model, self.sampling, self.one_at_a_time = model, sampling, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = CLIENT_TIMEOUT
    command = ""  # the method; none where the first line is not HTTP
    begun = False  # whether a part of the reply has been sent

    def do_GET(self) -> None:
        """Serve the page and the facts of the model."""
        self._reply({"/": lambda: self._send(PAGE.read_bytes(), "text/html; charset=utf-8"), "/model": self._facts})

    def do_POST(self) -> None:
        """Ask the model."""

        def asked(work: Callable[[bytes], None]) -> None:
            if site := self._other_site():
                raise RequestError(403, f"a page of {site} may not use this server")
            body = self._body()
            with self.server.one_at_a_time:
                work(body)

        work = {"/answer": self._answer, "/transcribe": self._transcribe, "/chat": self._chat, "/say": self._say}
        self._reply({path: functools.partial(asked, one) for path, one in work.items()})

    def _reply(self, work: Mapping[str, Callable[[], None]]) -> None:
        """Do the work of the request's path; an error becomes a JSON reply."""
        from speechgpt.answers import NotSupported

        try:
            self._check_headers()
            path = self._url().path
            if path not in work:
                paths = " or ".join(one for one, method in PATHS.items() if method == self.command)
                verb = "POST to" if self.command == "POST" else "GET"
                raise RequestError(404, f"there is no {path}; {verb} {paths}")
            work[path]()
        except (BrokenPipeError, ConnectionResetError):  # the client has gone
            self.close_connection = True
        except RequestError as error:
            self._refuse(error.status, str(error))
        except NotSupported as error:
            self._refuse(404, str(error))
        except TimeoutError:
            self._refuse(408, f"no byte came for {CLIENT_TIMEOUT:g} s")
        except (OSError, ValueError) as error:
            self._refuse(400, str(error))
        except Exception:
            self._refuse(500, "the server has failed; its log says why")
            raise

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what the library refuses, such as a line that is not HTTP, with JSON like every other error."""
        if code == HTTPStatus.NOT_IMPLEMENTED:
            self._refuse(
                405, f"{self.command} is not supported; {', '.join(f'{PATHS[path]} {path}' for path in PATHS)}"
            )
        else:
            self._refuse(code, message or HTTPStatus(code).phrase)

    def _refuse(self, status: int, reason: str) -> None:
        """Send an error, then read what the client still sends: it could not read the reason otherwise."""
        self.close_connection = True
        if self.begun:
            return
        self.request_version = self.protocol_version  # a line that is not HTTP counts as version 0.9, without a status
        with suppress(OSError):
            self._json({"error": reason}, status)
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            end = time.monotonic() + LINGER
            self.connection.settimeout(min(CLIENT_TIMEOUT, LINGER))
            while time.monotonic() < end and self.connection.recv(1 << 16):
                pass

    def _check_headers(self) -> None:
        """Raise RequestError for a header that has no meaning, or two."""
        for name, allowed in (("Host", _HOST), ("Origin", _ORIGIN), ("Content-Length", re.compile("[0-9]{1,18}"))):
            values = self.headers.get_all(name, [])
            if len(values) > 1:
                raise RequestError(400, f"the request has {len(values)} headers {name}; one is allowed")
            if values and not allowed.fullmatch(values[0].strip()):
                raise RequestError(400, f"the header {name} is {values[0]!r}, which is malformed")

    def _url(self) -> SplitResult:
        """The path and the query of the request."""
        try:
            return urlsplit(self.path)
        except ValueError as error:
            raise RequestError(400, f"the path is {self.path!r}, which is malformed ({error})") from error

    def _facts(self) -> None:
        model = self.server.model
        self._json({"name": model.name, "capabilities": sorted(model.capabilities), "sample_rate": model.sample_rate})

    def _other_site(self) -> str | None:
        """The site whose page sent this request, if it is not this server's page.

        Any page that is open in a browser on this machine could send one. A site may also have made its own name point
        to this machine, so a server that listens on this machine alone accepts only this machine's names.
        """
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "").strip()
        if origin is not None:
            found = _ORIGIN.fullmatch(origin.strip())
            if found is None or found["host"] != host:
                return origin
        name = _HOST.fullmatch(host)
        if name and self.server.server_address[0] in LOCAL_NAMES and name[1].strip("[]").lower() not in LOCAL_NAMES:
            return host
        return None

    def _body(self) -> bytes:
        """The request's body. Raises RequestError if it has none, is too long, or ends too early."""
        length = self.headers.get("Content-Length")
        if length is None:
            raise RequestError(411, f"a request has a body of 1 to {MAX_BODY} bytes, and a Content-Length")
        size = int(length)
        if not 0 < size <= MAX_BODY:
            status = 413 if size else 400
            raise RequestError(status, f"a request has a body of 1 to {MAX_BODY} bytes; this Content-Length is {size}")
        body = self.rfile.read(size)
        if len(body) < size:
            raise RequestError(400, f"the request's body ended after {len(body)} of {size} bytes")
        return body

    def _sampling(self) -> Sampling:
        """The sampling of the command, with the candidates of the request. Raises RequestError for another option."""
        try:
            options = parse_qs(self._url().query, keep_blank_values=True, max_num_fields=10, errors="strict")
        except ValueError as error:
            raise RequestError(400, f"the options of the path are malformed ({error})") from error
        values = options.pop("candidates", None)
        if options:
            raise RequestError(400, f"there is no option {', '.join(map(repr, options))}; allowed: candidates")
        if values is None:
            return self.server.sampling
        if len(values) > 1 or not re.fullmatch("-?[0-9]{1,9}", values[0]):
            raise RequestError(400, f"candidates is {', '.join(values)!r}; allowed: a number, 1 to {MOST_CANDIDATES}")
        return replace(self.server.sampling, candidates=int(values[0]))

    def _answer(self, body: bytes) -> None:
        from speechgpt.answers import answer_pieces

        pieces = answer_pieces(self.server.model, _wav(body), self._sampling())
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
        self.begun = True
        self.send_response(status)
        if status == 405:
            self.send_header("Allow", "GET, POST")
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self._begin(kind, status)
        if self.command != "HEAD":  # whose reply has no body
            self.wfile.write(content)

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(content).encode() + b"\n", "application/json", status)

    def _line(self, content: dict[str, Any]) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        """One plain line a request."""
        line = f"{self.address_string()} {format % args}"
        print("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line), file=sys.stderr)


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
    check_range("port", port, 0, 65535)
    from speechgpt.open_model import open_model

    opened = open_model(model, device, dtype)
    getattr(opened, "preload", lambda: None)()  # a missing or foreign part fails now, not at the first request
    able = ", ".join(sorted(opened.capabilities)) or "nothing"
    shown = f"[{host}]" if ":" in host else host
    with Server(opened, sampling, (host, port)) as server:
        print(f"{opened.name}, supports {able}: http://{shown}:{server.server_address[1]}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main.cli()

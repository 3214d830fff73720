"""The `speechgpt-server` command: a model behind HTTP, and a page in the browser to talk with it.

    speechgpt-server --model runs/toy/model                   # then open http://127.0.0.1:8010
    curl --data-binary @q.wav http://127.0.0.1:8010/answer    # lines of JSON, as the answer comes
    curl --data 'the red dog jumps' http://127.0.0.1:8010/say > a.wav

| request | body | reply |
|---|---|---|
| GET / | | the page |
| GET /model | | {"codebook", "stage", "sample_rate"} |
| POST /answer | an audio file | a line of JSON for each piece: "transcript" and "text" are what they have gained, "wav" is sound (16-bit little-endian samples at 16 kHz, in base64); the last one has "finished" and "understood" too |
| POST /transcribe | an audio file | {"text"} |
| POST /chat | a question, as UTF-8 | {"text"} |
| POST /say | a text, as UTF-8 | a wav |

What is wrong with a request is told as {"error"}, with status 400; in the midst of an answer, as its last line. Questions are
answered one at a time, each for itself. Sampling is the command's, but `?takes=1` on /answer lets speech come at once.
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
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import soundfile

from speechgpt.answers import Piece
from speechgpt.generate import Sampling
from speechgpt.inference import SpeechGPT, chat_model
from units.audio import SAMPLE_RATE, AudioError, load_wav

PAGE = Path(__file__).with_name("page.html")
MOST = 64 << 20  # bytes of a request: half an hour of sound
OWN_NAMES = ("127.0.0.1", "localhost", "::1")
PATIENCE = 60.0  # seconds of waiting for a client that says nothing


class Server(ThreadingHTTPServer):
    """A model at a port. Requests come side by side, and are served one after the other."""

    daemon_threads = True

    def __init__(self, gpt: SpeechGPT, sampling: Sampling, address: tuple[str, int]) -> None:
        super().__init__(address, Handler)
        self.gpt, self.sampling, self.one_at_a_time = gpt, sampling, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    timeout = PATIENCE

    def do_GET(self) -> None:
        """The page, and what the model is."""
        path = urlsplit(self.path).path
        if path == "/":
            self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
        elif path == "/model":
            facts = self.server.gpt.facts
            self._json({"codebook": facts.codebook.name, "stage": facts.stage, "sample_rate": SAMPLE_RATE})
        else:
            self._json({"error": f"there is no {path}; GET / or /model"}, 404)

    def do_POST(self) -> None:
        """What is asked of the model."""
        path = urlsplit(self.path).path
        work: dict[str, Callable[[bytes], None]] = {
            "/answer": self._answer, "/transcribe": self._transcribe, "/chat": self._chat, "/say": self._say
        }  # fmt: skip
        if path not in work:
            self._json({"error": f"there is no {path}; POST to {', '.join(work)}"}, 404)
            return
        if stranger := self._stranger():
            self._json({"error": f"a page of {stranger} may not ask this server"}, 403)
            return
        try:
            body = self._body()
            with self.server.one_at_a_time:
                work[path](body)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):  # nobody waits for it any more
            self.close_connection = True
        except (OSError, ValueError) as error:
            self._json({"error": str(error)}, 400)

    def _stranger(self) -> str | None:
        """Whose page asks, if it is not this server's: any page that is open in a browser here could.

        One may also have made its own name point to this machine, so a server of this machine alone goes by its own names.
        """
        origin, host = self.headers.get("Origin"), self.headers.get("Host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            return origin
        if self.server.server_address[0] in OWN_NAMES and urlsplit(f"//{host}").hostname not in (None, *OWN_NAMES):
            return host
        return None

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or not 0 < int(length) <= MOST:
            raise ValueError(
                f"a request has a body of 1 to {MOST} bytes and says how long it is; this one says {length!r}"
            )
        return self.rfile.read(int(length))

    def _answer(self, body: bytes) -> None:
        query = parse_qs(urlsplit(self.path).query)
        sampling = self.server.sampling
        if "takes" in query:
            sampling = replace(sampling, takes=int(query["takes"][0]))
        pieces = self.server.gpt.stream(_wav(body), sampling)
        first = next(pieces)  # what cannot be heard is told before anything is sent
        self._begin("application/x-ndjson")
        self._line(_spelled(first))
        try:
            for piece in pieces:
                self._line(_spelled(piece))
        except ValueError as error:
            self._line({"error": str(error)})

    def _transcribe(self, body: bytes) -> None:
        self._json({"text": self.server.gpt.transcribe_batch([_wav(body)], self.server.sampling)[0]})

    def _chat(self, body: bytes) -> None:
        self._json({"text": self.server.gpt.chat(_text(body), self.server.sampling)})

    def _say(self, body: bytes) -> None:
        [answer] = self.server.gpt.say_batch([_text(body)], self.server.sampling)
        if answer.wav is None:
            raise ValueError("the model gave no speech")
        sound = io.BytesIO()
        soundfile.write(sound, np.clip(answer.wav, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16", format="WAV")
        self._send(sound.getvalue(), "audio/wav")

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
    """The wav of an audio file's bytes. Raises AudioError if they are none."""
    with tempfile.NamedTemporaryFile(prefix="speechgpt-") as file:
        file.write(body)
        file.flush()
        try:
            return load_wav(file.name)
        except AudioError as error:
            said = str(error).replace(repr(os.fsencode(file.name)), "it").replace(file.name, "what was sent")
            raise AudioError(said) from error


def _text(body: bytes) -> str:
    try:
        text = body.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError("what was sent is not UTF-8 text") from error
    if not text:
        raise ValueError("what was sent is an empty text")
    return text


def _spelled(piece: Piece) -> dict[str, Any]:
    """A piece as JSON can hold it, without what it has not."""
    spelled: dict[str, Any] = {"transcript": piece.transcript, "text": piece.text}
    if piece.wav is not None:
        samples = (np.clip(piece.wav, -1.0, 1.0) * 32767).astype("<i2")
        spelled["wav"] = base64.b64encode(samples.tobytes()).decode()
    if piece.answer is not None:
        take = piece.answer.take
        spelled |= {"finished": piece.answer.finished, "understood": take and take.understood}
    return {name: value for name, value in spelled.items() if value != ""}


def main(
    model: str, host: str = "127.0.0.1", port: int = 8010, device: str | None = None, dtype: str | None = None,
    sampling: Sampling = Sampling(),
) -> None:  # fmt: skip
    """Serve a model until Ctrl-C.

    Args:
        model: model folder, such as runs/toy/model, or the id of one of the hub
        host: whom to listen to: 127.0.0.1 is this machine alone, 0.0.0.0 anybody who reaches it
        port: 0 takes a free one
        device: cpu or cuda; a GPU if there is one, when not given
        dtype: of the model's weights: float32, bfloat16 or float16; as they are stored if not given
        sampling: how tokens are drawn
    """
    gpt = chat_model(model, device, dtype)
    _ = gpt.encoder, gpt.vocoder  # what is missing is told now, not to whoever asks first
    with Server(gpt, sampling, (host, port)) as server:
        print(
            f"{gpt.facts.codebook.name}, {gpt.facts.stage}: talk to it at http://{host}:{server.server_address[1]}",
            flush=True,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def cli() -> None:
    """Entry point; a user's error ends in one line and exit code 2."""
    from jsonargparse import auto_cli
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        auto_cli(main, as_positional=False)
    except (OSError, ValueError) as error:
        print(f"speechgpt-server: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

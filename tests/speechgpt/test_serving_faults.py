"""Bad clients: malformed requests, clients that leave or do not read, too many at once, a stop under load."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import websockets.sync.client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import SAMPLING, ask, audio
from tiny_parts import talkative, tones

from speechgpt.answers import Answer, Piece
from speechgpt.inference import SpeechGPT
from speechgpt.serve import gate
from speechgpt.serve.application import Server, Serving
from speechgpt.serve.work import Busy, Work

REPOSITORY = Path(__file__).parents[2]
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "what is two"}]}).encode()
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["model", "messages", "modalities", "audio", "stream", "input", "voice", "response_format", "temperature", "seed"]
    + ["role", "content", "type", "text", "input_audio", "data", "format", "n", "max_tokens", "top_p", "stream_options"]
)
objects = st.dictionaries(names, json_values | st.lists(st.dictionaries(names, json_values, max_size=3), max_size=3))


@pytest.fixture(scope="module")
def gpt(model_folder: Path) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(model_folder))


@pytest.fixture(scope="module")
def server(gpt: SpeechGPT) -> Iterator[Server]:
    with Server(gpt, SAMPLING, Serving(port=0, rows=4, waiting=4)).background() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left(server: Server) -> Iterator[None]:
    """After each test nothing runs, nothing waits, and the server answers."""
    yield
    work = server.service.work
    until(lambda: work.running == work.queued == 0)
    assert ask(server, "POST", "/v1/chat/completions", BODY)[0] == 200


def until(is_so: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- malformed


@fuzz
@given(found=objects, path=st.sampled_from(["/v1/chat/completions", "/v1/audio/speech"]))
def test_any_json_gets_a_reply(server: Server, found: dict, path: str) -> None:
    body = json.dumps(found | ({"max_tokens": 3} if "max_tokens" not in found else {}))
    status, kind, content = ask(server, "POST", path, body.encode())
    assert status == 200 or (400 <= status < 500 and json.loads(content)["error"]["message"])


@fuzz
@given(
    body=st.binary(max_size=200).filter(len),
    path=st.sampled_from(["/v1/chat/completions", "/v1/audio/speech", "/answer"]),
)
def test_any_bytes_get_a_reply(server: Server, body: bytes, path: str) -> None:
    status, kind, content = ask(server, "POST", path, body)
    assert 400 <= status < 500 and json.loads(content)["error"]


@fuzz
@given(
    parts=st.lists(st.sampled_from([
        b"--x", b"--x--", b"\r\n", b"\n", b"\r\n\r\n", b'Content-Disposition: form-data; name="file"; filename="q"',
        b'Content-Disposition: form-data; name="file"', b"Content-Type: audio/wav", b"a" * 50, b"\x00\xff", b'name="',
    ]), min_size=1, max_size=12),
    boundary=st.sampled_from(["x", "", "y" * 100, '"', "x; charset=utf-99"]),
)  # fmt: skip
def test_any_form_gets_a_reply(server: Server, parts: list[bytes], boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}"
    status, _, content = ask(server, "POST", "/v1/audio/transcriptions", b"".join(parts), **{"Content-Type": kind})
    assert 400 <= status < 500 and json.loads(content)["error"]["message"]


def test_any_frames_keep_the_session(server: Server) -> None:
    draw = random.Random(1)
    kinds = ["session.update", "input_audio_buffer.append", "conversation.item.create", "response.create", "x"]
    values = [None, 3, "x", [], {}, {"type": "message", "role": "user", "content": [{}]}, {"audio": {"input": 3}}]
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.address[1]}/v1/realtime?model=m") as client:
        assert json.loads(client.recv(60))["type"] == "session.created"
        for _ in range(150):
            event = {"type": draw.choice(kinds), **{n: draw.choice(values) for n in ("session", "audio", "item")}}
            client.send(json.dumps(event))
        client.send(b"\xff\xfe bytes")
        client.send(json.dumps({"type": "input_audio_buffer.clear"}))
        while json.loads(client.recv(60))["type"] != "input_audio_buffer.cleared":
            pass
    for path in ("/v1/nothing", "/v1/chat/completions"):
        with pytest.raises(websockets.exceptions.WebSocketException):
            websockets.sync.client.connect(f"ws://127.0.0.1:{server.address[1]}{path}").close()
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        websockets.sync.client.connect(f"ws://127.0.0.1:{server.address[1]}/v1/realtime", origin="http://evil.example")
    assert refused.value.response.status_code == 403


def test_a_sound_that_is_too_long_is_refused_unread(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from speechgpt.serve import sounds

    monkeypatch.setattr(sounds, "LONGEST", 1.0)
    status, _, content = ask(server, "POST", "/answer", audio(tones(2.0)))
    assert status == 400 and "at most 1 s" in json.loads(content)["error"]


# --- clients that leave, and slow ones


class Endless:
    """Replaces a model's `chat` and `stream`: they go on until their caller has gone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = self.ended = 0
        self.free = threading.Event()
        monkeypatch.setattr(SpeechGPT, "stream", lambda *_: self._stream())
        monkeypatch.setattr(SpeechGPT, "chat", lambda *_: self._chat())

    def _stream(self) -> Iterator[Piece]:
        self.begun += 1
        try:
            while not self.free.is_set():
                yield Piece(text="x" * 1000)
                time.sleep(0.01)
            yield Piece(answer=Answer(None, "x", None, None))
        finally:
            self.ended += 1

    def _chat(self) -> str:
        from speechgpt.generation.shared import check_stop

        self.begun += 1
        try:
            while not self.free.wait(0.01):
                check_stop()
            return "done"
        finally:
            self.ended += 1


def sent(server: Server, path: str, body: bytes) -> socket.socket:
    """A client that has sent a request and reads nothing."""
    client = socket.create_connection(server.address, timeout=60)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    return client


@pytest.mark.parametrize("path", ["/answer", "/v1/chat/completions", "/chat"])
def test_clients_that_leave_free_their_rows(server: Server, path: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        endless = Endless(patch)
        clients = [sent(server, path, audio(tones(0.3)) if path == "/answer" else BODY) for _ in range(8)]
        until(lambda: endless.begun == 4 and server.service.work.queued == 4)
        for client in clients:
            client.close()
        until(lambda: server.service.work.running == 0)
        assert endless.ended == endless.begun


def test_clients_killed_in_a_real_answer_free_their_rows(server: Server, gpt: SpeechGPT) -> None:
    from speechgpt.generation.shared import shared

    for number in range(12):
        client = sent(server, "/answer", audio(tones(0.3 + 0.05 * (number % 4))))
        time.sleep(0.01 * (number % 4))
        client.close()
    until(lambda: server.service.work.running == 0 and shared(gpt.model).rows == 0)


def test_past_the_queue_requests_are_told_to_come_later(server: Server) -> None:
    with pytest.MonkeyPatch.context() as patch:
        endless = Endless(patch)
        clients = [sent(server, "/chat", b"what") for _ in range(8)]
        until(lambda: server.service.work.queued == 4)
        connection_status, _, content = ask(server, "POST", "/v1/chat/completions", BODY)
        assert connection_status == 429
        error = json.loads(content)["error"]
        assert error["type"] == "rate_limit_error" and error["code"] == "rate_limit_exceeded"
        assert ask(server, "GET", "/health")[0] == 200
        endless.free.set()
        for client in clients:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
            client.close()


def test_slow_readers_hold_nobody_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CLIENT_TIMEOUT", 3.0)

    def much(*_: object) -> Iterator[Piece]:
        for _ in range(2000):
            yield Piece(text="x" * 10_000)
        yield Piece(answer=Answer(None, "x", None, None))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpeechGPT, "stream", much)
        clients = [sent(server, "/answer", audio(tones(0.3))) for _ in range(4)]
        until(lambda: server.service.work.running == 0)  # their answers are made, though nobody has read them
        assert ask(server, "POST", "/chat", b"what")[0] == 200
        until(lambda: len(server.server_state.connections) == 0, 60)  # and their connections are closed
        for client in clients:
            client.close()


def test_a_request_that_does_not_come_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CLIENT_TIMEOUT", 0.3)
    for begin in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"):
        with socket.create_connection(server.address, timeout=60) as client:
            client.sendall(begin)
            assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_session_may_be_silent_for_longer_than_a_request(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CLIENT_TIMEOUT", 0.5)
    with websockets.sync.client.connect(f"ws://127.0.0.1:{server.address[1]}/v1/realtime") as client:
        assert json.loads(client.recv(60))["type"] == "session.created"
        time.sleep(1.5)
        client.send(json.dumps({"type": "input_audio_buffer.clear"}))
        assert json.loads(client.recv(60))["type"] == "input_audio_buffer.cleared"


def test_half_a_body_is_a_bad_request(server: Server) -> None:
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall(b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nhalf")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_a_client_that_leaves_while_it_waits_is_forgotten(gpt: SpeechGPT) -> None:
    async def run() -> None:
        work = Work(gpt, 1, 1)
        free = threading.Event()
        first = asyncio.create_task(work.run(free.wait))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(work.run(lambda: 2))
        await asyncio.sleep(0.05)
        with pytest.raises(Busy):
            await work.run(lambda: 3)
        second.cancel()
        await asyncio.wait([second])
        assert (work.running, work.queued) == (1, 0)
        third = asyncio.create_task(work.run(lambda: 4))
        free.set()
        assert await third == 4 and await first
        await asyncio.sleep(0.1)
        assert work.running == 0

    asyncio.run(run())


# --- the process


def test_a_stop_under_load_finishes_what_runs(model_folder: Path, tmp_path: Path) -> None:
    """SIGTERM: running requests get their answers, waiting ones 503, and the process ends with 0."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "speechgpt.serve.server", "--model", str(model_folder), "--port", "0"]
    command += ["--rows", "2", "--sampling.candidates", "1", "--sampling.temperature", "1", "--sampling.seed", "1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().decode().rsplit(":", 1)[1])
        body = base64.b64encode(audio(tones(0.4))).decode()
        message = {"type": "input_audio", "input_audio": {"data": body, "format": "wav"}}
        asked = json.dumps({"model": "m", "messages": [{"role": "user", "content": [message]}]}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(asked)}\r\n\r\n".encode()
        clients = []
        for _ in range(12):
            clients.append(socket.create_connection(("127.0.0.1", port), timeout=120))
            clients[-1].sendall(head + asked)
        statuses = [int(clients[0].recv(1 << 20).split()[1])]
        process.send_signal(signal.SIGTERM)
        for client in clients[1:]:
            reply = client.recv(1 << 20)
            statuses.append(int(reply.split()[1]) if reply else 0)
        assert process.wait(120) == 0
    assert statuses.count(200) >= 2 and set(statuses) <= {200, 503}
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)

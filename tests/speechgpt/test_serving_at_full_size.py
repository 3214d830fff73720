"""The server under the loads that its docs name: slow readers, malformed requests, thousands of requests."""

from __future__ import annotations

import gc
import json
import random
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import echo_system
import pytest
from echo_system import Echo
from serving import SAMPLING, ask

from speechgpt.serve.application import Server, Serving

pytestmark = pytest.mark.slow
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "what is two"}]}).encode()
STREAMED = json.dumps(
    {"model": "m", "stream": True, "modalities": ["text", "audio"], "messages": [{"role": "user", "content": "one"}]}
).encode()
PATH = "/v1/chat/completions"
MOST_GROWTH = 24 << 20  # bytes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(Echo(), SAMPLING, Serving(port=0, rows=16, waiting=100)).background() as server:
        yield server


def answers(server: Server) -> bool:
    status, _, content = ask(server, "POST", PATH, BODY)
    return status == 200 and json.loads(content)["choices"][0]["message"]["content"] == "you said what is two"


def used_memory() -> int:
    """Bytes of this process, which runs the server."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_64_slow_readers_hold_nobody_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_system, "ANSWERED", 20.0)  # seconds: more than the sockets' buffers hold
    request = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    readers = []
    for _ in range(64):
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        reader.settimeout(60)
        reader.connect(server.address)
        reader.sendall(request % (PATH.encode(), len(STREAMED)) + STREAMED)
        readers.append(reader)
    begun = time.monotonic()
    assert all(answers(server) for _ in range(20))
    assert time.monotonic() - begun < 30
    time.sleep(1)
    unread = 0
    for reader in readers:  # each gets its whole answer in the end
        tail = b""
        while b"[DONE]" not in tail:
            got = reader.recv(1 << 16)
            assert got
            unread += len(got)
            tail = tail[-100:] + got
        reader.close()
    assert unread > 64 * 20 * 48_000


def test_1000_malformed_requests(server: Server) -> None:
    draw = random.Random(5)
    paths = (PATH, "/v1/audio/speech", "/v1/audio/transcriptions", "/answer")

    def malformed(number: int) -> int:
        body = bytearray(draw.choice([BODY, STREAMED, b'{"input": "x"}', b"--x\r\n\r\n", b"RIFF" + bytes(40)]))
        for _ in range(draw.randint(1, 12)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        status, _, _ = ask(server, "POST", draw.choice(paths), bytes(body[: draw.randint(1, len(body))]))
        return status

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(malformed, range(1000)))
    assert all(200 <= status < 500 for status in found) and 400 in found
    assert answers(server)


def test_memory_is_flat_after_2000_requests(server: Server) -> None:
    def burst(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: answers(server), range(count)))
            assert all(pool.map(lambda _: ask(server, "POST", PATH, STREAMED)[0] == 200, range(count // 4)))

    burst(1200)  # fills what is kept on purpose: the last 1,000 spoken turns
    before = used_memory()
    burst(1600)
    grown = used_memory() - before
    print(f"grown by {grown / 2**20:.1f} MiB")
    assert grown < MOST_GROWTH
    assert server.service.work.running == server.service.work.queued == 0

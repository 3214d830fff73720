"""Servers and questions for tests of the server."""

from __future__ import annotations

import http.client
import io
import json
import socket

import numpy as np
import soundfile

from speechgpt.sampling import Sampling
from speechgpt.serve.application import Server
from units.audio import SAMPLE_RATE

SAMPLING = Sampling(temperature=1.0, seed=3, max_new_tokens=200, candidates=1)


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, bytes]:
    """Status, kind and content of a reply."""
    connection = http.client.HTTPConnection(*server.address, timeout=120)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    try:
        return reply.status, reply.headers["Content-Type"], reply.read()
    finally:
        connection.close()


def raw(server: Server, request: bytes) -> tuple[int, dict]:
    """Status and JSON of the reply to some bytes, after which the client sends nothing more."""
    with socket.create_connection(server.address, timeout=60) as client:
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        head, _, content = b"".join(iter(lambda: client.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def audio(wav: np.ndarray, kind: str = "WAV", rate: int = SAMPLE_RATE) -> bytes:
    """A wav (T,) as an audio file."""
    file = io.BytesIO()
    soundfile.write(file, wav, rate, format=kind)
    return file.getvalue()

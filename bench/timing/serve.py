"""Answers a second and first sound of the server; the command is bench.serve."""

from __future__ import annotations

import base64
import http.client
import json
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechgpt.answers import SpeechModel
from speechgpt.generation.sound_process import part_sound
from speechgpt.open_model import open_model
from speechgpt.sampling import Sampling
from speechgpt.serve.application import Server, Serving
from speechgpt.serve.sounds import written
from units.audio import SAMPLE_RATE, load_wav
from units.corpus.manifest import read_manifest
from units.runtime.provenance import commit, machine

BASELINE = "one at a time"


class Unshared:
    """A model without `share`, so that the server asks it one request at a time."""

    def __init__(self, model: SpeechModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name == "share":
            raise AttributeError(name)
        return getattr(self._model, name)


@dataclass
class Asked:
    """What clients measured. first, whole: seconds to the first sound, and to the end."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    texts: dict[int, set[str]] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.whole) / self.seconds


def compare(
    folder: Path, manifest: Path, clients: list[int], asked: int, candidates: int, device: str, rows: int
) -> None:
    """Print both ways at every number of clients."""
    sampling = Sampling(candidates=candidates)
    most = max(asked, 2 * max(clients))
    spoken = read_manifest(manifest)[: min(asked, 32)]
    bodies = [_body(load_wav(one.audio, one.start or 0.0, one.duration)) for one in spoken]
    print(f"{folder}, {len(bodies)} questions, {candidates} candidates, {machine(device)}, commit {commit()}")
    single, shared = open_model(folder, device), open_model(folder, device)
    for model in (single, shared):
        getattr(model, "preload", lambda: None)()
    ways = {BASELINE: Unshared(single), f"up to {rows} rows": shared}
    threads = dict.fromkeys(ways, torch.get_num_threads())  # of the baseline all, as in release 0.1.0
    part_sound(shared, rows)
    threads[list(ways)[1]] = torch.get_num_threads()
    servers = {
        name: Server(model, sampling, Serving(port=0, rows=rows, waiting=4 * most))  # type: ignore[arg-type]
        for name, model in ways.items()
    }
    alone: dict[int, set[str]] = {}
    for name, server in servers.items():
        torch.set_num_threads(threads[name])
        with_one = _asked(server, bodies, 1, 2)  # prepares kernels
        alone = alone or with_one.texts
    for count in clients:
        each = max(2, asked // count)
        figures = {}
        for name, server in servers.items():
            torch.set_num_threads(threads[name])
            figures[name] = _asked(server, bodies, count, each)
        for name, figure in figures.items():
            for number, texts in figure.texts.items():
                alone.setdefault(number, set()).update(texts)
            print(
                f"{count:3} clients  {name:14} {figure.rate:7.2f} answers a second "
                f"{figure.rate / figures[BASELINE].rate:5.2f} times  first sound "
                f"{_milliseconds(figure.first, 50)} (50 %), {_milliseconds(figure.first, 95)} (95 %)"
            )
    differing = sum(len(texts) > 1 for texts in alone.values())
    print(f"{differing} of {len(alone)} questions got different answers")
    for server in servers.values():
        server.should_exit = True


def _body(wav: np.ndarray) -> bytes:
    """A request that asks a wav (T,) aloud."""
    sound = {"data": base64.b64encode(written(wav, SAMPLE_RATE, "wav")[0]).decode(), "format": "wav"}
    message = {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}
    fields = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "pcm16"}, "stream": True}
    return json.dumps({"model": "bench", "messages": [message], **fields}).encode()


def _asked(server: Server, bodies: list[bytes], clients: int, each: int) -> Asked:
    """Clients that begin together, each with `each` questions, one after the other."""
    found, lock = Asked(), threading.Lock()

    def client(number: int) -> None:
        for place in range(each):
            question = (number * each + place) % len(bodies)
            first, whole, said = _ask(server.address, bodies[question])
            with lock:
                found.first += [] if first is None else [first]
                found.whole.append(whole)
                found.texts.setdefault(question, set()).add(said)

    if not server.started:
        threading.Thread(target=server.run_until_stopped, daemon=True).start()
        while not server.started:
            time.sleep(0.01)
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.perf_counter() - begun
    return found


def _ask(address: tuple[str, int], body: bytes) -> tuple[float | None, float, str]:
    """Seconds to the first sound and to the end, and a word for the whole answer."""
    connection = http.client.HTTPConnection(*address, timeout=600)
    begun, first, text, sound = time.perf_counter(), None, "", 0
    connection.request("POST", "/v1/chat/completions", body)
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {reply.read(300)!r}")
    while line := reply.readline():
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise RuntimeError(event["error"]["message"])
        for choice in event["choices"]:
            part = choice["delta"].get("audio") or {}
            text += part.get("transcript", "")
            if part.get("data"):
                first = first or time.perf_counter() - begun
                sound += len(part["data"])
    connection.close()
    return first, time.perf_counter() - begun, f"{text} ({sound})"


def _milliseconds(seconds: list[float], percent: int) -> str:
    """A percentile of measured times."""
    if len(seconds) < 2:
        return f"{1000 * sum(seconds):6.0f} ms"
    return f"{1000 * statistics.quantiles(seconds, n=100, method='inclusive')[percent - 1]:6.0f} ms"

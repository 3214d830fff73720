"""A completions server in this process, on transformers: takes and streams token ids, as vLLM and SGLang do."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import PreTrainedModel


class CompletionsServer:
    """Draws tokens of one model, one request at a time.

    requests: their bodies so far. keeps_end: leave the tokens that stop a reply out of it. fails: a status for the next
    request. sent: tokens.
    """

    def __init__(self, model: PreTrainedModel, eos: set[int], keeps_end: bool) -> None:
        self.model, self.eos, self.keeps_end = model, eos, keeps_end
        self.requests: list[dict[str, Any]] = []
        self.errors: list[BaseException | None] = []
        self.fails, self.models, self.ids, self.sent = 0, ["served"], True, 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = [{"id": one, "object": "model", "max_model_len": 250} for one in server.models]
                self._send({"object": "list", "data": data})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                if server.fails:
                    self._send({"error": {"message": "no memory"}}, server.fails)
                    return
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                for token in server.draw(body):
                    choice = {"index": 0, "text": "x", "finish_reason": None, "logprobs": None}
                    choice |= {"token_ids": [token]} if server.ids else {}
                    self._event({"id": "c", "object": "text_completion", "model": "served", "choices": [choice]})
                    server.sent += 1
                self.wfile.write(b"data: [DONE]\n\n")

            def _event(self, content: dict) -> None:
                self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")
                self.wfile.flush()

            def _send(self, content: dict, status: int = 200) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(data)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        class Http(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # of a client that has left
                    server.errors.append(sys.exc_info()[1])

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def draw(self, body: dict[str, Any]) -> Iterator[int]:
        """Tokens after a prompt, most likely or random, under the biases of the request."""
        given, cache = torch.tensor([body["prompt"]]), None
        stops = {*body.get("stop_token_ids", []), *self.eos}
        generator = torch.Generator().manual_seed(body.get("seed", 0))
        for _ in range(body["max_tokens"]):
            with self._lock, torch.inference_mode():
                out = self.model(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, scores = out.past_key_values, out.logits[0, -1].float().clone()
            for token, bias in body.get("logit_bias", {}).items():
                scores[int(token)] += bias
            if body["temperature"]:
                drawn = torch.multinomial((scores / body["temperature"]).softmax(-1), 1, generator=generator)
                token = int(drawn)
            else:
                token = int(scores.argmax())
            if token not in stops or not self.keeps_end:
                yield token
            if token in stops:
                return
            given = torch.tensor([[token]])


@contextmanager
def completions_server(
    model: PreTrainedModel, eos: set[int] = frozenset(), keeps_end: bool = False
) -> Iterator[CompletionsServer]:
    """A running CompletionsServer. eos: tokens that end any reply of it."""
    server = CompletionsServer(model, set(eos), keeps_end)
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    try:
        yield server
        assert not server.errors
    finally:
        server.http.shutdown()
        server.http.server_close()

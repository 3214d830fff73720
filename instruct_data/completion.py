"""Language models that finish a prompt: an OpenAI-compatible endpoint, or a local transformers model; and a cache of it.

writer = CachedWriter(EndpointWriter("http://localhost:8000/v1", "my-model"), Path("cache.sqlite"))
texts = writer.complete(["Say hello."])
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}  # states of a server that another try may find changed


class WriterError(RuntimeError):
    """A prompt that nothing came of; the message says why."""


class Writer(Protocol):
    """Anything that finishes prompts. `name` says what decides the text, such as the model and the temperature."""

    @property
    def name(self) -> str: ...

    def complete(self, prompts: Sequence[str]) -> list[str | WriterError]:
        """A text for each prompt, or why there is none."""
        ...


@dataclass(frozen=True)
class EndpointWriter:
    """Chat completions of an OpenAI-compatible server.

    url: up to /v1. key_variable: name of the environment variable that holds the key, if the server wants one.
    tries: of each prompt, with twice the wait (seconds) before each. at_once: requests under way at one time.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    most_tokens: int = 256
    tries: int = 5
    wait: float = 1.0
    timeout: float = 120.0
    at_once: int = 8

    @property
    def name(self) -> str:
        return f"{self.model} at {self.temperature}, {self.most_tokens} tokens"

    def complete(self, prompts: Sequence[str]) -> list[str | WriterError]:
        """A text for each prompt, or why there is none."""
        with ThreadPoolExecutor(self.at_once) as pool:
            return list(pool.map(self._complete_one, prompts))

    def _complete_one(self, prompt: str) -> str | WriterError:
        for attempt in range(1, self.tries + 1):
            try:
                return self._ask(prompt)
            except urllib.error.HTTPError as error:
                said = error.read(300).decode(errors="replace").strip()
                failure = WriterError(f"the server answers {error.code}: {said or error.reason}")
                if error.code not in PASSING:
                    return failure
                asked_to_wait = str(error.headers.get("Retry-After", ""))
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                failure, asked_to_wait = WriterError(f"the server cannot be reached: {error}"), ""
            except (ValueError, KeyError, IndexError, TypeError) as error:
                return WriterError(f"no completion in what the server answers: {error!r}")
            if attempt < self.tries:
                pause = self.wait * 2 ** (attempt - 1)
                time.sleep(max(pause, float(asked_to_wait) if asked_to_wait.isdigit() else 0.0))
        return failure

    def _ask(self, prompt: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}],
                "temperature": self.temperature, "max_tokens": self.most_tokens}  # fmt: skip
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            text = json.loads(reply.read())["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"content is {text!r}")
        return text.encode(errors="replace").decode()  # JSON can spell half a character, a database cannot hold it


@dataclass(frozen=True)
class LocalWriter:
    """A causal language model of transformers on this machine, greedy; `folder` is a folder or a hub id."""

    folder: str
    device: str = "cpu"
    most_tokens: int = 256
    at_once: int = 8

    @property
    def name(self) -> str:
        return f"{self.folder}, {self.most_tokens} tokens"

    def complete(self, prompts: Sequence[str]) -> list[str | WriterError]:
        """A text for each prompt."""
        return [
            text for i in range(0, len(prompts), self.at_once) for text in self._batch(prompts[i : i + self.at_once])
        ]

    def _batch(self, prompts: Sequence[str]) -> list[str | WriterError]:
        tokenizer, model = _local_model(self.folder, self.device)
        asked = list(prompts)
        if tokenizer.chat_template:
            asked = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
                )
                for prompt in prompts
            ]
        batch = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=not tokenizer.chat_template)
        batch.pop("token_type_ids", None)
        written = model.generate(
            **batch.to(self.device),
            max_new_tokens=self.most_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        start = batch["input_ids"].shape[1]
        return [str(text).strip() for text in tokenizer.batch_decode(written[:, start:], skip_special_tokens=True)]


@functools.lru_cache(maxsize=1)
def _local_model(folder: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder).to(device).eval()


class CachedWriter:
    """A writer that never does the same prompt twice: its texts lie in a database, keyed by writer and prompt."""

    def __init__(self, writer: Writer, path: Path) -> None:
        """path: the database; it may be shared by several writers and killed at any time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer, self.asked = writer, 0
        self.base = sqlite3.connect(path)
        self.base.execute("create table if not exists texts (prompt blob primary key, text text) without rowid")

    @property
    def name(self) -> str:
        return self.writer.name

    def complete(self, prompts: Sequence[str]) -> list[str | WriterError]:
        """As the writer does; what failed is asked anew the next time."""
        keys = [hashlib.sha256(f"{self.name}\0{prompt}".encode(errors="surrogatepass")).digest() for prompt in prompts]
        known = {key: self._known(key) for key in keys}
        new = {key: prompt for key, prompt in zip(keys, prompts) if known[key] is None}
        self.asked += len(new)
        for key, text in zip(new, self.writer.complete(list(new.values())) if new else []):
            known[key] = text
            if isinstance(text, str):
                self.base.execute("insert or replace into texts values (?, ?)", (key, text))
        self.base.commit()
        return [text for text in (known[key] for key in keys) if text is not None]

    def _known(self, key: bytes) -> str | WriterError | None:
        found = self.base.execute("select text from texts where prompt = ?", (key,)).fetchone()
        return found and found[0]

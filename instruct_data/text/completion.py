"""Language models that finish a prompt: an OpenAI-compatible endpoint, or a local transformers model; and a cache of it.

writer = CachedWriter(EndpointWriter("http://localhost:8000/v1", "my-model"), Path("cache.sqlite"))
texts = writer.complete(["Say hello."])
"""

from __future__ import annotations

import datetime
import email.utils
import functools
import hashlib
import http.client
import itertools
import json
import os
import sqlite3
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

PASSING = {408, 409, 425, 429, 500, 502, 503, 504, *range(520, 530)}  # another try may find the server changed
ENDING = {401, 402, 403, 404}  # no other prompt would fare better: the key, the account, the address or the model
LOST_AFTER = 3  # prompts in a row that no server answered
LONGEST_WAIT = 120.0  # seconds, whatever a server asks for


class WriterError(RuntimeError):
    """A prompt that nothing came of; the message says why."""


class WriterStopped(RuntimeError):
    """Nothing would come of any other prompt either; the message says why."""


class CutText(str):
    """What a model wrote until it had used up its tokens."""


Written = str | WriterError


class Writer(Protocol):
    """Anything that finishes prompts. `name` says what decides the text, such as the model and the temperature."""

    @property
    def name(self) -> str: ...

    def arriving(self, prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        """The number of a prompt with its text, or why there is none, in the order in which they come.

        Raises: WriterStopped.
        """
        ...


@dataclass(frozen=True)
class EndpointWriter:
    """Chat completions of an OpenAI-compatible server.

    url: up to /v1. key_variable: name of the environment variable that holds the key, if the server wants one.
    tries: of each prompt, with twice the wait (seconds) before each. at_once: requests under way at one time.
    timeout: seconds that a server may be silent. extra_body: further fields of a request; null leaves one of ours out.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    most_tokens: int = 1024
    tries: int = 5
    wait: float = 1.0
    timeout: float = 120.0
    at_once: int = 8
    extra_body: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.url!r} is no address of a server; it begins with http:// and ends with /v1")

    @property
    def name(self) -> str:
        extra = f", {json.dumps(self.extra_body, sort_keys=True)}" if self.extra_body else ""
        return f"{self.model} at {self.temperature}{extra}"

    def arriving(self, prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        """See Writer. Raises: WriterStopped if the server turns everybody away, or there is none."""
        stop, lost = threading.Event(), 0
        with ThreadPoolExecutor(self.at_once) as pool:
            asked = {pool.submit(self._complete_one, prompt, stop): i for i, prompt in enumerate(prompts)}
            try:
                for done in as_completed(asked):
                    text = done.result()
                    yield asked[done], text
                    lost = lost + 1 if isinstance(text, _Lost) else 0
                    if lost == LOST_AFTER:
                        raise WriterStopped(str(text))
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _complete_one(self, prompt: str, stop: threading.Event) -> Written:
        failure = WriterError("nobody was asked")
        for attempt in itertools.count(1):
            asked_to_wait = 0.0
            try:
                return self._ask(prompt)
            except urllib.error.HTTPError as error:
                failure = WriterError(f"the server answers {error.code}: {_explained(error)}")
                if error.code in ENDING or "insufficient_quota" in str(failure):
                    raise WriterStopped(str(failure)) from error
                if error.code not in PASSING:
                    return failure
                asked_to_wait = _asked_to_wait(error.headers.get("Retry-After", ""))
            except (OSError, http.client.HTTPException) as error:
                failure = _Lost(f"the server cannot be reached: {error!r}")
            except (ValueError, KeyError, IndexError, TypeError) as error:
                return WriterError(f"no completion in what the server answers: {error!r}")
            pause = max(self.wait * 2 ** (attempt - 1), asked_to_wait)
            if attempt >= self.tries or stop.wait(min(pause, LONGEST_WAIT)):
                break
        return failure

    def _ask(self, prompt: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}],
                "temperature": self.temperature, "max_tokens": self.most_tokens} | self.extra_body  # fmt: skip
        body = {name: value for name, value in body.items() if value is not None}
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable, "").strip():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as reply:
            choice = json.loads(reply.read())["choices"][0]
        text, cut = choice["message"].get("content"), choice.get("finish_reason") == "length"
        if text is None and cut:
            text = ""  # all tokens went into thoughts that the server keeps to itself
        if not isinstance(text, str):
            raise TypeError(f"content is {text!r}")
        text = text.encode(errors="replace").decode()  # JSON can spell half a character, a database cannot hold it
        return CutText(text) if cut else text


class _Lost(WriterError):
    """Nobody answered."""


def _explained(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode(errors="replace").strip() or str(error.reason)
    except (OSError, http.client.HTTPException):
        return str(error.reason)


def _asked_to_wait(said: str) -> float:
    """Seconds of a Retry-After, which is a number of them or a date (RFC 9110, section 10.2.3); 0 if it is neither."""
    if said.strip().isdecimal():
        return float(said)
    try:
        until = email.utils.parsedate_to_datetime(said)
        return (until - datetime.datetime.now(until.tzinfo)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


@dataclass(frozen=True)
class LocalWriter:
    """A causal language model of transformers on this machine, greedy; `folder` is a folder or a hub id."""

    folder: str
    device: str = "cpu"
    most_tokens: int = 1024
    at_once: int = 8

    @property
    def name(self) -> str:
        return self.folder

    def arriving(self, prompts: Sequence[str]) -> Iterator[tuple[int, Written]]:
        """See Writer."""
        for first in range(0, len(prompts), self.at_once):
            yield from enumerate(self._batch(prompts[first : first + self.at_once]), first)

    def _batch(self, prompts: Sequence[str]) -> list[str]:
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
        written = written[:, batch["input_ids"].shape[1] :]
        texts = [str(text).strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
        ends = model.generation_config.eos_token_id
        ended = [_ends(row, ends if isinstance(ends, list) else [ends]) for row in written.tolist()]
        full = written.shape[1] >= self.most_tokens
        return [CutText(text) if full and not end else text for text, end in zip(texts, ended)]


def _ends(row: list[int], ends: list[int | None]) -> bool:
    return any(end in row for end in ends if end is not None)


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
        self.base = sqlite3.connect(path, timeout=60)
        self.base.execute("create table if not exists texts (prompt blob primary key, text text) without rowid")

    @property
    def name(self) -> str:
        return self.writer.name

    def complete(self, prompts: Sequence[str]) -> list[Written]:
        """A text for each prompt, or why there is none; what failed, or was cut, is asked anew the next time.

        Raises: WriterStopped; what came before is in the cache.
        """
        keys = [hashlib.sha256(f"{self.name}\0{prompt}".encode(errors="surrogatepass")).digest() for prompt in prompts]
        known: dict[bytes, Written] = {key: text for key in keys if (text := self._known(key)) is not None}
        new = {key: prompt for key, prompt in zip(keys, prompts) if key not in known}
        self.asked += len(new)
        new_keys = list(new)
        for i, text in self.writer.arriving(list(new.values())) if new else ():
            known[new_keys[i]] = text
            if isinstance(text, str) and not isinstance(text, CutText):
                with self.base:
                    self.base.execute("insert or replace into texts values (?, ?)", (new_keys[i], text))
        return [known[key] for key in keys]

    def _known(self, key: bytes) -> str | None:
        found = self.base.execute("select text from texts where prompt = ?", (key,)).fetchone()
        return found and found[0]

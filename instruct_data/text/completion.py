"""Language models that complete prompts: a chat-completions server, or a local transformers model; and a cache.

    model = CachedModel(EndpointModel("http://localhost:8000/v1", "my-model"), Path("cache.sqlite"))
    texts = model.complete(["Say hello."])

Requests go through the `openai` client, which any server with OpenAI's chat-completions interface understands (vLLM,
SGLang, llama.cpp, ...). The client retries failed requests with exponential back-off, and waits as long as a server's
Retry-After header states. What is written here is what the client does not do: requests in parallel, the cache, and
stopping a run early when no request can succeed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from instruct_data.text.reasons import TextReason
from units.runtime.command import check_range
from units.runtime.extras import required
from units.runtime.files.json_files import FileError, FileReason
from units.runtime.refusals import RefusedError
from units.runtime.settings import check_types

STOPPING = {401, 402, 403, 404}  # HTTP status: the key, the account or the model is wrong, for every prompt alike
UNREACHABLE_LIMIT = 3  # prompts in a row that no server replied to, before the run stops
LONGEST_EXPLANATION = 300  # characters of a server's error that are shown


class CompletionError(RefusedError):
    """One prompt has no completion."""


class EndpointUnavailable(ConnectionError):
    """No prompt can be completed: wrong key, unknown model, no quota left, or no server at this address."""


class TruncatedText(str):
    """The text that a model wrote before it reached its token limit."""


Completion = str | CompletionError
Chat = tuple[dict[str, str], ...]  # messages with "role" (system, user, assistant) and "content"
Prompt = str | Chat  # what a user says, or a whole chat


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as the messages of a chat."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def _key_text(prompt: Prompt) -> str:
    """What stands for a prompt in the key of the cache."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


class CompletionModel(Protocol):
    """Anything that completes prompts."""

    @property
    def name(self) -> str:
        """All that decides the text, such as the model and the temperature; part of the cache key."""
        ...

    def completions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Completion]]:
        """Yield (index of the prompt, its completion) in the order in which they are done.

        Raises:
            EndpointUnavailable: if no other prompt can succeed either.
        """
        ...


@dataclass(frozen=True)
class EndpointModel:
    """A model behind a server with OpenAI's chat-completions interface."""

    url: str
    """The address of the server, up to and including /v1."""
    model: str
    """The server's name of the model."""
    key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key, for servers that need one."""
    temperature: float = 0.0
    most_tokens: int = 1024
    """Token limit of one completion."""
    tries: int = 5
    """Attempts for each prompt."""
    timeout: float = 120.0
    """Seconds without a byte from the server before an attempt fails."""
    at_once: int = 8
    """Requests in parallel."""
    extra_body: dict[str, Any] = field(default_factory=dict)
    """More fields of the request; None removes one of the fields above."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"{self.url!r} is not the address of a server; it begins with http:// and ends with /v1")
        for name in ("most_tokens", "tries", "at_once"):
            check_range(name, getattr(self, name), 1)
        check_range("temperature", self.temperature, 0)
        check_range("timeout", self.timeout, 0, exclusive=True)

    @property
    def name(self) -> str:
        extra = f", {json.dumps(self.extra_body, sort_keys=True)}" if self.extra_body else ""
        return f"{self.model} at {self.temperature}{extra}"

    def completions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Completion]]:
        """See CompletionModel."""
        openai = required("openai")
        key = os.environ.get(self.key_variable, "").strip() or "EMPTY"  # the client requires one, local servers do not
        unreachable = 0
        stopped: list[EndpointUnavailable] = []  # once it holds an error, no worker thread begins another request
        with (
            openai.OpenAI(api_key=key, base_url=self.url, max_retries=self.tries - 1, timeout=self.timeout) as client,
            ThreadPoolExecutor(self.at_once) as pool,
        ):
            futures = {pool.submit(self._complete, client, prompt, stopped): i for i, prompt in enumerate(prompts)}
            try:
                for future in as_completed(futures):
                    text = future.result()
                    yield futures[future], text
                    is_lost = isinstance(text, CompletionError) and text.reason == TextReason.UNREACHABLE
                    unreachable = unreachable + 1 if is_lost else 0
                    if unreachable == UNREACHABLE_LIMIT:
                        raise EndpointUnavailable(str(text))
            finally:
                stopped.append(EndpointUnavailable("the run has ended"))
                client.close()  # requests that wait for their next attempt fail at once
                pool.shutdown(cancel_futures=True)

    def _complete(self, client: Any, prompt: Prompt, stopped: list[EndpointUnavailable]) -> Completion:
        """One request, with the client's retries; none once `stopped` holds an error."""
        import openai

        if stopped:
            raise stopped[0]
        try:
            choice = client.chat.completions.create(**self._request(prompt)).choices[0]
            return _text(choice.message.content, choice.finish_reason == "length")
        except openai.APIStatusError as error:
            explanation = error.response.text[:LONGEST_EXPLANATION].strip() or error.response.reason_phrase
            message = f"the server replied with status {error.status_code}: {explanation}"
            if error.status_code in STOPPING or "insufficient_quota" in explanation:
                stopped.append(EndpointUnavailable(message))
                raise stopped[0] from error
            return CompletionError(TextReason.SERVER_ERROR, message)
        except openai.APIConnectionError as error:
            message = f"the server at {self.url} cannot be reached: {error.__cause__ or error}"
            return CompletionError(TextReason.UNREACHABLE, message)
        except (openai.APIError, ValueError, TypeError, AttributeError, IndexError) as error:
            return CompletionError(TextReason.NO_COMPLETION, f"the server's reply is not a chat completion: {error!r}")

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        """The arguments of the client's call."""
        optional = {"temperature": self.temperature, "max_tokens": self.most_tokens}
        return {
            "model": self.model,
            "messages": messages_of(prompt),
            **{name: value for name, value in optional.items() if name not in self.extra_body},
            "extra_body": {name: value for name, value in self.extra_body.items() if value is not None},
        }


def _text(content: str | None, truncated: bool) -> str:
    """The text of a completion.

    Raises:
        TypeError: if there is no text.
    """
    if content is None and truncated:
        content = ""  # a reasoning model spent all tokens on reasoning, which the server keeps to itself
    if not isinstance(content, str):
        raise TypeError(f"the content is {content!r}")
    text = content.encode(errors="replace").decode()  # JSON can spell half a surrogate pair, a database cannot hold it
    return TruncatedText(text) if truncated else text


@dataclass(frozen=True)
class LocalModel:
    """A causal language model of transformers on this machine."""

    folder: str
    """A folder, or the name of a model on the Hugging Face hub."""
    device: str = "cpu"
    most_tokens: int = 1024
    """Token limit of one completion."""
    at_once: int = 8
    """Prompts in one batch."""
    temperature: float = 0.0
    """0 is greedy. Above it, all words are drawn from, and the same prompts in the same batch get the same texts."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("most_tokens", "at_once"):
            check_range(name, getattr(self, name), 1)
        check_range("temperature", self.temperature, 0)
        check_range("seed", self.seed, 0, 2**31)

    @property
    def name(self) -> str:
        drawn = f" at {self.temperature}, {self.most_tokens} tokens, seed {self.seed}" if self.temperature else ""
        return f"{self.folder}{drawn}"

    def completions(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Completion]]:
        """See CompletionModel."""
        for first in range(0, len(prompts), self.at_once):
            yield from enumerate(self._batch(prompts[first : first + self.at_once]), first)

    def _batch(self, prompts: Sequence[Prompt]) -> list[str]:
        tokenizer, model = local_model(self.folder, self.device)
        texts = [_rendered(tokenizer, prompt) for prompt in prompts]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not tokenizer.chat_template)
        batch.pop("token_type_ids", None)
        how: dict[str, Any] = {"do_sample": False}
        if self.temperature:
            how = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        with _seeded(f"{self.seed}\0" + "\0".join(texts), self.device):
            generated = model.generate(
                **batch.to(self.device), max_new_tokens=self.most_tokens, pad_token_id=tokenizer.pad_token_id, **how
            )
        generated = generated[:, batch["input_ids"].shape[1] :]
        completions = [text.strip() for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]
        if generated.shape[1] < self.most_tokens:
            return completions
        ends = _end_tokens(model)
        ended = [any(token in ends for token in row) for row in generated.tolist()]
        return [text if end else TruncatedText(text) for text, end in zip(completions, ended)]


def _rendered(tokenizer: Any, prompt: Prompt) -> str:
    """A prompt by the model's chat template; for a model without one, the contents alone."""
    messages = messages_of(prompt)
    if not tokenizer.chat_template:
        return "\n".join(message["content"] for message in messages)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@contextmanager
def _seeded(text: str, device: str) -> Iterator[None]:
    """Draw by what a text says, and leave torch's generators as they were."""
    import torch

    devices = [torch.cuda.current_device()] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:7], "big"))
        yield


def _end_tokens(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}


@functools.lru_cache(maxsize=2)  # the measured LLM, and the one that judges it
def local_model(folder: str, device: str) -> tuple[Any, Any]:
    """Tokenizer and model of a folder or hub id; opened once."""
    import torch

    from speechgpt.language_models.whole import open_tokenizer, open_whole
    from units.runtime.precision import multiplies_bfloat16

    tokenizer = open_tokenizer(folder, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = open_whole(folder)
    if model.dtype == torch.bfloat16 and not multiplies_bfloat16(device):
        model = model.float()
    return tokenizer, model.to(device).eval()


class CachedModel:
    """A model with a database of its completions, so that no prompt is completed twice."""

    def __init__(self, model: CompletionModel, path: Path, truncated: bool = False) -> None:
        """Open or begin the database.

        Args:
            path: an SQLite file. Several models and processes may share it, and it survives a killed process.
            truncated: keep truncated completions too, for a model whose name has its token limit.

        Raises:
            FileError: the file is something else.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.model, self.requested, self.path, self.truncated = model, 0, path, truncated
        with _named(path):
            self._database = sqlite3.connect(path, timeout=60)
            self._database.execute(
                "create table if not exists texts (prompt blob primary key, text text) without rowid"
            )

    @property
    def name(self) -> str:
        return self.model.name

    def complete(self, prompts: Sequence[Prompt]) -> list[Completion]:
        """Complete prompts, in their order. Failed completions are not cached, nor truncated ones unless asked for.

        Raises:
            EndpointUnavailable: if no other prompt can succeed; completions so far are in the cache.
        """
        named = (f"{self.name}\0{_key_text(prompt)}" for prompt in prompts)
        keys = [hashlib.sha256(name.encode(errors="surrogatepass")).digest() for name in named]
        known: dict[bytes, Completion] = {key: text for key in keys if (text := self._cached(key)) is not None}
        new = {key: prompt for key, prompt in zip(keys, prompts) if key not in known}
        self.requested += len(new)
        new_keys = list(new)
        for i, text in self.model.completions(list(new.values())) if new else ():
            known[new_keys[i]] = text
            if isinstance(text, str) and (self.truncated or not isinstance(text, TruncatedText)):
                with _named(self.path), self._database:
                    self._database.execute("insert or replace into texts values (?, ?)", (new_keys[i], text))
        return [known[key] for key in keys]

    def _cached(self, key: bytes) -> str | None:
        with _named(self.path):
            row = self._database.execute("select text from texts where prompt = ?", (key,)).fetchone()
        return row[0] if row and isinstance(row[0], str) else None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise FileError, with the file's name, for what SQLite reports of a damaged or foreign database."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked by another process, a full disk, a folder
        raise OSError(f"{path}: {error}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        message = f"{path} is not a cache of completions, or is damaged ({error}); delete it, or give another --cache"
        raise FileError(FileReason.DAMAGED, message) from error

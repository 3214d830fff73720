"""Rewrite text chats for speech: questions as people say them, answers short and speakable.

    python -m instruct_data.text.rewrite chats.jsonl trial.jsonl --local FOLDER --most 20
    python -m instruct_data.text.rewrite chats.jsonl spoken.jsonl --local FOLDER
    python -m instruct_data.text.rewrite chats.jsonl spoken.jsonl --endpoint http://localhost:8000/v1 --model NAME

The prompts are files, `prompts/question.txt` and `prompts/answer.txt`; another folder replaces them. Every completion
is cached by its prompt, so a killed run, or a second run over some other chats, requests nothing twice.
Source of the method: InstructS2S-200K of LLaMA-Omni (Fang et al. 2024, arXiv 2409.06666, section 3).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_data.text.chats import TextChat, TextPair, has_lone_surrogate, write_chats
from instruct_data.text.completion import (
    CachedModel,
    Completion,
    CompletionError,
    CompletionModel,
    EndpointModel,
    EndpointUnavailable,
    LocalModel,
    TruncatedText,
)
from instruct_data.text.filters import Filters, kept_chats
from instruct_data.text.reasons import TextReason
from instruct_data.text.sources import NothingKept, exit_code, read_source
from units.runtime.command import check_range, command
from units.runtime.files.json_files import read_text
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals
from units.runtime.settings import check_types

PROMPTS = Path(__file__).parents[1] / "prompts"
BATCH = 64  # chats whose prompts are completed together, so that their requests can run in parallel


@dataclass(frozen=True)
class Prompts:
    """The two prompts, with places that are filled in.

    question: has the place {question}. answer: has the places {question} and {answer}.
    Both may have the place {history} for the turns before; it is empty in the first turn.
    """

    question: str
    answer: str

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Read `question.txt` and `answer.txt`.

        Raises:
            FileNotFoundError: if one of them is missing.
            ValueError: if a place is unknown or missing, or a file is not UTF-8.
        """
        question, answer = read_text(folder / "question.txt"), read_text(folder / "answer.txt")
        _check_places(folder / "question.txt", question, {"question", "history"})
        _check_places(folder / "answer.txt", answer, {"question", "history", "answer"})
        return cls(question, answer)


def _check_places(path: Path, prompt: str, allowed: set[str]) -> None:
    try:
        places = {place for _, place, _, _ in string.Formatter().parse(prompt) if place is not None}
        if places <= allowed:
            prompt.format(**dict.fromkeys(allowed, ""))  # a format such as {question:d} is wrong as well
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write a brace that is not part of a place twice") from error
    if "question" not in places or not places <= allowed:
        raise ValueError(
            f"{path} has the places {sorted(places)}; allowed are {sorted(allowed)}, and {{question}} is required. "
            "Write a brace that is not part of a place twice"
        )


@dataclass
class _Rewriting:
    """A chat that is being rewritten: the finished turns, and the error that ended it, if any."""

    id: str
    chat: TextChat
    turns: list[TextPair] = field(default_factory=list)
    error: CompletionError | None = None

    @property
    def history(self) -> str:
        """The rewritten turns, for a prompt."""
        if not self.turns:
            return ""
        lines = "\n".join(f"Person: {turn.question}\nAssistant: {turn.answer}" for turn in self.turns)
        return f"The conversation so far:\n{lines}\n\n"


def rewritten(
    chats: Iterable[tuple[str, TextChat]], model: CachedModel, prompts: Prompts, refusals: Refusals, batch: int = BATCH
) -> Iterator[tuple[str, TextChat]]:
    """Stream chats with every question and answer rewritten. A chat with a failed completion is refused.

    Args:
        chats: (FILE:LINE, chat) pairs.
        batch: chats whose prompts are completed together: first all first questions, then their answers, then all
            second questions, and so on.

    Raises:
        EndpointUnavailable: if no prompt can be completed.
    """
    source = iter(chats)
    while group := [_Rewriting(id, chat) for id, chat in itertools.islice(source, batch)]:
        for turn in range(max(len(one.chat.turns) for one in group)):
            unfinished = [one for one in group if not one.error and len(one.chat.turns) > turn]
            _rewrite_turn(unfinished, turn, model, prompts)
        for one in group:
            if one.error:
                refusals.add(one.id, one.error)
            else:
                yield one.id, TextChat(tuple(one.turns))


def _rewrite_turn(group: Sequence[_Rewriting], number: int, model: CachedModel, prompts: Prompts) -> None:
    """Add the rewritten turn of this number to each chat, or the error."""
    turns = [one.chat.turns[number] for one in group]
    filled = [prompts.question.format(question=turn.question, history=one.history) for one, turn in zip(group, turns)]
    questions = _complete(model, filled, "question", prompts.question)
    ready: list[tuple[_Rewriting, TextPair, str]] = []
    for one, turn, question in zip(group, turns, questions):
        if isinstance(question, CompletionError):
            one.error = question
        else:
            ready.append((one, turn, question))
    filled = [
        prompts.answer.format(question=question, answer=turn.answer, history=one.history)
        for one, turn, question in ready
    ]
    for (one, turn, question), answer in zip(ready, _complete(model, filled, "answer", prompts.answer)):
        if isinstance(answer, CompletionError):
            one.error = answer
        else:
            one.turns.append(dataclasses.replace(turn, question=question, answer=answer))


def _complete(model: CachedModel, filled: Sequence[str], name: str, prompt: str) -> list[Completion]:
    """Complete prompts and read the field `name` out of each completion."""
    examples = frozenset(_fields(prompt.replace("{{", "{").replace("}}", "}"), name))
    completions = model.complete(filled)
    return [text if isinstance(text, CompletionError) else read_field(text, name, examples) for text in completions]


def read_field(text: str, name: str, examples: frozenset[str] = frozenset()) -> Completion:
    """The field `name` of the last JSON object in a completion that has it, whatever text surrounds the object.

    The reasoning of a model that writes `<think>..</think>` first is skipped.

    Args:
        examples: values that the prompt holds to show the format; a model that copies one has not answered.
    """
    reasoning, ended, rest = text.rpartition("</think>")
    reply = rest if ended or "<think>" not in text else ""
    values = [value for value in _fields(reply, name) if value not in examples and not has_lone_surrogate(value)]
    if values:
        return values[-1]
    if isinstance(text, TruncatedText):
        message = f"the model reached its token limit before it wrote the {name}; raise --most_tokens"
        return CompletionError(TextReason.OUT_OF_TOKENS, message)
    excerpt = (reply or text).strip()[:80]
    return CompletionError(TextReason.NO_FIELD, f"no {name} in the model's text: {excerpt!r}")


def _fields(text: str, name: str) -> Iterator[str]:
    """The non-empty values of a field in all JSON objects of a text, stripped."""
    for start in (position for position, letter in enumerate(text) if letter == "{"):
        try:
            record, _ = json.JSONDecoder().raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            continue
        value = record.get(name)
        if isinstance(value, str) and value.strip():
            yield value.strip()


@dataclass(frozen=True)
class RewriteConfig:
    """How chats are rewritten."""

    endpoint: str | None = None
    """Address of a server with OpenAI's chat-completions interface, up to /v1; its key is read from OPENAI_API_KEY."""
    model: str = ""
    """The server's name of the model."""
    local: str | None = None
    """A transformers model on this machine, instead of a server."""
    device: str = "cpu"
    """The device of a local model: cpu or cuda."""
    prompts: Path = PROMPTS
    """Folder with question.txt and answer.txt."""
    cache: Path | None = None
    """Database of completions; OUT.cache if not given."""
    filters: Filters = Filters()
    """Which rewritten chats are kept."""
    most: int | None = None
    """Rewrite only this many chats, for a trial; all if not given."""
    most_tokens: int = 1024
    """Token limit of one completion, the reasoning of a reasoning model included."""
    temperature: float = 0.0
    """Sampling temperature of a server; 0 is greedy."""
    extra_body: dict[str, Any] | None = None
    """More fields of a request, as JSON: {"chat_template_kwargs": {"enable_thinking": false}}; null removes a field."""
    at_once: int = 8
    """Requests in parallel, or prompts in a batch of a local model."""
    tries: int = 5
    """Attempts for each request."""
    timeout: float = 120.0
    """Seconds without a byte from the server before an attempt fails."""

    def __post_init__(self) -> None:
        check_types(self)
        if (self.endpoint is None) == (self.local is None):
            raise ValueError("give one of --endpoint URL and --local FOLDER")
        if self.endpoint is not None and not self.model:
            raise ValueError(f"give the name of a model of {self.endpoint}: --model NAME")
        for name in ("most_tokens", "at_once", "tries", "most"):
            check_range(name, getattr(self, name), 1)
        check_range("temperature", self.temperature, 0)
        check_range("timeout", self.timeout, 0, exclusive=True)

    def open_model(self) -> CompletionModel:
        """The model that these settings name."""
        if self.local is not None:
            return LocalModel(self.local, self.device, self.most_tokens, self.at_once)
        return EndpointModel(
            self.endpoint or "",
            self.model,
            temperature=self.temperature,
            most_tokens=self.most_tokens,
            tries=self.tries,
            timeout=self.timeout,
            at_once=self.at_once,
            extra_body=self.extra_body or {},
        )


@command("instruct-rewrite", flat=True)
def main(source: Path, out: Path, config: RewriteConfig) -> int:
    """Rewrite a text set for speech.

    Args:
        source: the text set
        out: the rewritten text set, compressed if its name ends in .gz; refused chats are listed in OUT.refused.jsonl
        config: how chats are rewritten
    """
    model = CachedModel(config.open_model(), config.cache or out.with_name(f"{out.name}.cache"))
    prompts = Prompts.load(config.prompts)
    listed = out.with_name(f"{out.name}.refused.jsonl")
    try:
        with listed_refusals(listed) as refusals:
            chats = itertools.islice(read_source(source, "plain", refusals), config.most)
            shown = progress(chats, desc=f"rewriting {source.name}", unit="chats")
            done = rewritten(shown, model, prompts, refusals, max(BATCH, 2 * config.at_once))
            kept, _ = write_chats(out, kept_chats(done, config.filters, refusals))
    except EndpointUnavailable as error:
        raise EndpointUnavailable(f"{error}. {out} is unchanged; completions so far are in the cache") from error
    if not kept:
        raise NothingKept(f"no chat of {source} was rewritten, {out} is unchanged; {refusals}; see {listed}")
    print(f"{out}: {kept} chats; {model.requested} texts requested; {refusals}")
    return exit_code(refusals)


if __name__ == "__main__":
    main.cli()

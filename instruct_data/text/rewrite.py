"""Text chats rewritten for speech: questions as people say them, answers short and speakable.

    python -m instruct_data.text.rewrite chats.jsonl trial.jsonl --endpoint http://localhost:8000/v1 --model NAME --most 20
    python -m instruct_data.text.rewrite chats.jsonl spoken.jsonl --endpoint http://localhost:8000/v1 --model NAME
    python -m instruct_data.text.rewrite chats.jsonl spoken.jsonl --local FOLDER

The prompts are files, `prompts/question.txt` and `prompts/answer.txt`; a folder of your own replaces them. Every text
is cached by its content, so a killed run, or another run with some other chats, asks for nothing twice.
Source of the idea: InstructS2S-200K of LLaMA-Omni (Fang et al. 2024, arXiv 2409.06666, section 3).
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

from instruct_data.text.chats import TextChat, TextPair, is_broken, write_chats
from instruct_data.text.completion import (
    CachedWriter,
    CutText,
    EndpointWriter,
    LocalWriter,
    Writer,
    WriterError,
    WriterStopped,
    Written,
)
from instruct_data.text.filters import Filters, kept_chats
from instruct_data.text.sources import read_source
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals

PROMPTS = Path(__file__).parents[1] / "prompts"
BATCH = 64  # chats asked for together, so that their requests can be under way at one time


@dataclass(frozen=True)
class Prompts:
    """question: with the place {question}. answer: with {question} and {answer}.

    Both may have the place {history}, for the turns before; a first turn has nothing there.
    """

    question: str
    answer: str

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Read `question.txt` and `answer.txt`.

        Raises: FileNotFoundError, or ValueError on a place that is unknown or missing.
        """
        found = cls(*((folder / f"{name}.txt").read_text(encoding="utf-8-sig") for name in ("question", "answer")))
        for name, text, places in (
            ("question.txt", found.question, {"question", "history"}),
            ("answer.txt", found.answer, {"question", "history", "answer"}),
        ):
            try:
                named = {place for _, place, _, _ in string.Formatter().parse(text) if place is not None}
            except ValueError as error:
                raise ValueError(f"{folder / name}: {error}; braces that are no place are doubled") from error
            if "question" not in named or not named <= places:
                raise ValueError(
                    f"{folder / name} has the places {sorted(named)}; it may name {sorted(places)}, and must name "
                    "{question}; braces that are no place are doubled"
                )
        return found


@dataclass
class _Telling:
    """A chat on its way: the turns that are rewritten, and why there will be no more."""

    where: str
    chat: TextChat
    turns: list[TextPair] = field(default_factory=list)
    failure: WriterError | None = None

    @property
    def history(self) -> str:
        """The rewritten turns, for a prompt."""
        if not self.turns:
            return ""
        lines = "\n".join(f"Person: {turn.question}\nAssistant: {turn.answer}" for turn in self.turns)
        return f"The conversation so far:\n{lines}\n\n"


def rewritten(
    chats: Iterable[tuple[str, TextChat]],
    writer: CachedWriter,
    prompts: Prompts,
    refusals: Refusals,
    batch: int = BATCH,
) -> Iterator[tuple[str, TextChat]]:
    """Stream chats with every question and answer rewritten; a chat of which anything failed is refused.

    Args:
        chats: each with where it stands.
        batch: chats asked for together; first all their first questions, then the answers, then the second questions.

    Raises: WriterStopped.
    """
    source = iter(chats)
    while told := [_Telling(where, chat) for where, chat in itertools.islice(source, batch)]:
        for number in range(max(len(one.chat.turns) for one in told)):
            going = [one for one in told if not one.failure and len(one.chat.turns) > number]
            _rewrite_turn(going, number, writer, prompts)
        for one in told:
            if one.failure:
                refusals.add(one.where, one.failure)
            else:
                yield one.where, TextChat(tuple(one.turns))


def _rewrite_turn(told: Sequence[_Telling], number: int, writer: CachedWriter, prompts: Prompts) -> None:
    """Add the turn of this number to each chat, or the reason why there is none."""
    turns = [one.chat.turns[number] for one in told]
    asked = [prompts.question.format(question=turn.question, history=one.history) for one, turn in zip(told, turns)]
    questions = _ask(writer, asked, "question", prompts.question)
    ready = [(one, turn, said) for one, turn, said in zip(told, turns, questions) if isinstance(said, str)]
    answers = _ask(
        writer,
        [prompts.answer.format(question=said, answer=turn.answer, history=one.history) for one, turn, said in ready],
        "answer", prompts.answer,
    )  # fmt: skip
    for one, failure in zip(told, questions):
        one.failure = failure if isinstance(failure, WriterError) else None
    for (one, turn, said), answer in zip(ready, answers):
        if isinstance(answer, WriterError):
            one.failure = answer
        else:
            one.turns.append(dataclasses.replace(turn, question=said, answer=answer))


def _ask(writer: CachedWriter, asked: Sequence[str], name: str, prompt: str) -> list[Written]:
    form = frozenset(_fields(prompt.replace("{{", "{").replace("}}", "}"), name))
    return [text if isinstance(text, WriterError) else read_field(text, name, form) for text in writer.complete(asked)]


def read_field(text: str, name: str, form: frozenset[str] = frozenset()) -> Written:
    """The field of the last JSON object in what a model wrote, whatever it wrote around it, or thought before it.

    Args:
        form: values that stand in the prompt to show the form, and are no answer.
    """
    thoughts, ended, rest = text.rpartition("</think>")
    said = rest if ended or "<think>" not in text else ""
    values = [value for value in _fields(said, name) if value not in form and not is_broken(value)]
    if values:
        return values[-1]
    if isinstance(text, CutText):
        return WriterError(f"no {name} before the model had used up its tokens: give more with --most_tokens")
    return WriterError(f"no {name} in what the model wrote: {(said or text).strip()[:80]!r}")


def _fields(text: str, name: str) -> Iterator[str]:
    """The values of this name in all JSON objects of a text, stripped, without empty ones."""
    for start in (at for at, letter in enumerate(text) if letter == "{"):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except (json.JSONDecodeError, RecursionError):
            continue
        value = found.get(name)
        if isinstance(value, str) and value.strip():
            yield value.strip()


def rewrite_set(
    source: Path, out: Path, writer: CachedWriter, prompts: Prompts, filters: Filters, most: int | None, batch: int
) -> None:
    """Rewrite a text set into another. Raises SystemExit, and leaves what was there, if nothing comes of it."""
    listed = out.with_name(f"{out.name}.refused.jsonl")
    try:
        with listed_refusals(listed) as refusals:
            chats = itertools.islice(read_source(source, "plain", refusals), most)
            shown = progress(chats, desc=f"rewriting {source.name}", unit="chats")
            told = rewritten(shown, writer, prompts, refusals, batch)
            kept, _ = write_chats(out, kept_chats(told, filters, refusals))
    except WriterStopped as error:
        raise SystemExit(
            f"{error}. {out} is as it was; what was written so far is in the cache, and asked for no more"
        ) from error
    if not kept:
        raise SystemExit(f"nothing of {source} could be rewritten, {out} is as it was; {refusals}; see {listed}")
    print(f"{out}: {kept} chats; {writer.asked} texts asked for; {refusals}")


def main(
    source: Path,
    out: Path,
    endpoint: str | None = None,
    model: str = "",
    local: str | None = None,
    device: str = "cpu",
    prompts: Path = PROMPTS,
    cache: Path | None = None,
    filters: Filters = Filters(),
    most: int | None = None,
    most_tokens: int = 1024,
    temperature: float = 0.0,
    extra_body: dict[str, Any] | None = None,
    at_once: int = 8,
    tries: int = 5,
    timeout: float = 120.0,
) -> None:
    """Rewrite a text set for speech.

    Args:
        source: the text set
        out: the rewritten one, compressed if its name ends in .gz; what failed is listed in OUT.refused.jsonl
        endpoint: an OpenAI-compatible server, up to /v1; its key, if it wants one, stands in OPENAI_API_KEY
        model: the server's name of the model
        local: a transformers model on this machine, instead of a server
        device: cpu or cuda, for a local model
        prompts: folder with question.txt and answer.txt
        cache: database of what was written so far; OUT.cache if not given
        filters: what is kept of the rewritten chats
        most: chats to rewrite, for a look at some before all of them; all if not given
        most_tokens: of one text, the thoughts of a reasoning model among them
        temperature: of a server; 0 draws nothing
        extra_body: more fields of a request, as JSON: {"chat_template_kwargs": {"enable_thinking": false}}; null leaves
            one out
        at_once: requests under way at one time, or prompts in one batch
        tries: of each request
        timeout: seconds that a server may be silent
    """
    if (endpoint is None) == (local is None):
        raise SystemExit("give one of --endpoint URL and --local FOLDER")
    inner: Writer
    if endpoint is None:
        inner = LocalWriter(str(local), device, most_tokens, at_once)
    elif model:
        inner = EndpointWriter(
            endpoint, model, temperature=temperature, most_tokens=most_tokens, tries=tries, timeout=timeout,
            at_once=at_once, extra_body=extra_body or {},
        )  # fmt: skip
    else:
        raise SystemExit(f"say which model of {endpoint}: --model NAME")
    writer = CachedWriter(inner, cache or out.with_name(f"{out.name}.cache"))
    rewrite_set(source, out, writer, Prompts.load(prompts), filters, most, max(BATCH, 2 * at_once))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

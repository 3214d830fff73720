"""Text chats rewritten for speech: questions as people say them, answers short and speakable.

    python -m instruct_data.rewrite chats.jsonl spoken.jsonl --endpoint http://localhost:8000/v1 --model NAME
    python -m instruct_data.rewrite chats.jsonl spoken.jsonl --local FOLDER

The prompts are files, `prompts/question.txt` and `prompts/answer.txt`; a folder of your own replaces them. Every text
is cached by its content, so a killed run, or another run with some other chats, asks for nothing twice.
Source of the idea: InstructS2S-200K of LLaMA-Omni (Fang et al. 2024, arXiv 2409.06666, section 3).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.completion import CachedWriter, EndpointWriter, LocalWriter, Writer, WriterError
from instruct_data.filters import Filters
from instruct_data.refusals import Refusals, listed_refusals
from instruct_data.text_sets import TextChat, TextPair, chat_line, is_broken
from instruct_data.text_sources import read_source
from units.manifest import written_whole
from units.progress import progress

PROMPTS = Path(__file__).parent / "prompts"
BATCH = 64  # chats asked for together


@dataclass(frozen=True)
class Prompts:
    """question: with the place {question}. answer: with {question} and {answer}."""

    question: str
    answer: str

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """Read `question.txt` and `answer.txt`. Raises FileNotFoundError, or ValueError on a place that is unknown."""
        found = cls(*((folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("question", "answer")))
        try:
            found.question.format(question="")
            found.answer.format(question="", answer="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"the prompts in {folder} may name {{question}}, and answer.txt {{answer}} too; other braces are "
                f"doubled ({error!r})"
            ) from error
        return found


def rewritten(
    chats: Iterable[tuple[str, TextChat]], writer: Writer, prompts: Prompts, refusals: Refusals
) -> Iterator[tuple[str, TextChat]]:
    """Stream chats with every question and answer rewritten; a chat of which anything failed is refused.

    Args:
        chats: each with where it stands.
    """
    source = iter(chats)
    while batch := list(itertools.islice(source, BATCH)):
        turns = [turn for _, chat in batch for turn in chat.turns]
        questions = _ask(writer, [prompts.question.format(question=turn.question) for turn in turns], "question")
        asked = [(turn, said) for turn, said in zip(turns, questions) if isinstance(said, str)]
        answers = iter(
            _ask(writer, [prompts.answer.format(question=said, answer=turn.answer) for turn, said in asked], "answer")
        )
        spoken = iter(
            [(turn, said, next(answers) if isinstance(said, str) else said) for turn, said in zip(turns, questions)]
        )
        for where, chat in batch:
            try:
                yield where, TextChat(tuple(map(_turn, itertools.islice(spoken, len(chat.turns)))))
            except WriterError as error:
                refusals.add(where, error)


def _ask(writer: Writer, prompts: Sequence[str], field: str) -> list[str | WriterError]:
    return [text if isinstance(text, WriterError) else read_field(text, field) for text in writer.complete(prompts)]


def read_field(text: str, field: str) -> str | WriterError:
    """The field of the JSON object in what a model wrote, whatever it wrote around it."""
    for start in (at for at, letter in enumerate(text) if letter == "{"):
        try:
            found, _ = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError:
            continue
        value = found.get(field)
        if isinstance(value, str) and value.strip() and not is_broken(value):
            return value.strip()
    return WriterError(f"no {field} in what the model wrote: {text.strip()[:80]!r}")


def _turn(spoken: tuple[TextPair, str | WriterError, str | WriterError]) -> TextPair:
    turn, question, answer = spoken
    for text in (question, answer):
        if isinstance(text, WriterError):
            raise text
    return dataclasses.replace(turn, question=str(question), answer=str(answer))


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
    at_once: int = 8,
    tries: int = 5,
) -> None:
    """Rewrite a text set for speech.

    Args:
        source: the text set
        out: the rewritten one; what failed is listed beside it, in OUT.refused.jsonl
        endpoint: an OpenAI-compatible server, up to /v1; its key, if it wants one, stands in OPENAI_API_KEY
        model: the server's name of the model
        local: a transformers model on this machine, instead of a server
        device: cpu or cuda, for a local model
        prompts: folder with question.txt and answer.txt
        cache: database of what was written so far; OUT.cache if not given
        filters: what is kept of the rewritten chats
        at_once: requests under way at one time, or prompts in one batch
        tries: of each request
    """
    if (endpoint is None) == (local is None):
        raise SystemExit("give one of --endpoint URL and --local FOLDER")
    inner: Writer
    if endpoint is not None:
        inner = EndpointWriter(endpoint, model, tries=tries, at_once=at_once)
    else:
        inner = LocalWriter(str(local), device, at_once=at_once)
    writer = CachedWriter(inner, cache or out.with_name(f"{out.name}.cache"))
    kept = 0
    with listed_refusals(out.with_name(f"{out.name}.refused.jsonl")) as refusals, written_whole(out) as file:
        chats = progress(read_source(source, "plain", refusals), desc=f"rewriting {source.name}", unit="chats")
        for where, chat in rewritten(chats, writer, Prompts.load(prompts), refusals):
            found = filters.apply(chat, where, refusals)
            if found:
                file.write(chat_line(found))
                kept += 1
    print(f"{out}: {kept} chats; {writer.asked} texts asked for; {refusals}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

"""Chats whose answers a language model writes itself, so that it keeps its own way of answering while it learns more.

    python -m instruct_data.text.own.chats own.jsonl --local runs/real/smollm2-135m-instruct

The questions are plain ones (instruct_data/text/own/plain_questions.py), or those of a file, one a line. Every answer
is cached, so a killed run continues where it stopped. An answer that is too long, or cannot be spoken, is left out and
counted. Training on a model's own answers is the simplest guard against forgetting (self-distillation; Yang et al.
2024, arXiv 2402.13669).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.text.chats import TextChat, TextPair, write_chats
from instruct_data.text.completion import CachedModel, Chat, CompletionError, LocalModel, TruncatedText
from instruct_data.text.filters import Filters, kept_chats
from instruct_data.text.own.plain_questions import plain_questions
from instruct_data.text.reasons import TextReason
from instruct_data.text.sources import NothingKept, exit_code
from units.runtime.command import check_range, command
from units.runtime.files.json_files import text_lines
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals
from units.runtime.settings import check_types

FAMILY = "own"  # of the chats, for instruct-build's balance of families


@dataclass(frozen=True)
class OwnChatConfig:
    """Who answers what."""

    local: str
    """Folder or hub id of a causal language model of transformers."""
    questions: Path | None = None
    """File of questions, one a line; plain questions of everyday English if not given."""
    count: int | None = None
    """Ask only this many; all if not given."""
    system: str = "You are a voice assistant. Answer in one short sentence."
    """System prompt of the model's chat template; "" leaves it to the template."""
    most_tokens: int = 60
    """Token limit of an answer; a longer one is left out."""
    at_once: int = 16
    """Questions in one batch."""
    device: str = "cpu"
    """cpu or cuda."""
    filters: Filters = Filters(language="en")
    """Which chats are kept."""
    seed: int = 0
    """Of the order of plain questions."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("count", "most_tokens", "at_once"):
            check_range(name, getattr(self, name), 1)
        check_range("seed", self.seed, 0, 2**31)


def answered(
    questions: Sequence[tuple[str, str]], model: CachedModel, config: OwnChatConfig, refusals: Refusals
) -> Iterator[tuple[str, TextChat]]:
    """Stream (id, chat) of questions that the model answers. One without an answer, or a whole one, is refused.

    Args:
        questions: (id, question).
    """
    asked = iter(questions)
    while some := list(itertools.islice(asked, config.at_once)):
        prompts = [_prompt(question, config.system) for _, question in some]
        for (id, question), answer in zip(some, model.complete(prompts)):
            if isinstance(answer, CompletionError):
                refusals.add(id, answer)
            elif isinstance(answer, TruncatedText):
                refusals.add(id, TextReason.OUT_OF_TOKENS, question)
            elif not answer.strip():
                refusals.add(id, TextReason.NO_WORD, question)
            else:
                yield id, TextChat((TextPair(question, answer, family=FAMILY),))


def _prompt(question: str, system: str) -> Chat:
    asked = {"role": "user", "content": question}
    return ({"role": "system", "content": system}, asked) if system else (asked,)


@command("instruct-own-chats", flat=True)
def main(out: Path, config: OwnChatConfig) -> int:
    """Let a language model answer questions, as a text set.

    Args:
        out: the text set, compressed if its name ends in .gz; what is left out is listed in OUT.refused.jsonl
        config: who answers what
    """
    if config.questions is None:
        asking, name = list(enumerate(plain_questions(config.count, config.seed), 1)), "plain"
    else:
        asking, name = text_lines(config.questions)[: config.count], config.questions.name
    asked = [(f"{name}:{number}", text) for number, text in asking]
    local = LocalModel(config.local, config.device, config.most_tokens, config.at_once)
    model = CachedModel(local, out.with_name(f"{out.name}.cache"))
    listed = out.with_name(f"{out.name}.refused.jsonl")
    with listed_refusals(listed) as refusals:
        chats = answered(asked, model, config, refusals)
        shown = progress(chats, desc="answering", unit="questions", total=len(asked))
        kept, _ = write_chats(out, kept_chats(shown, config.filters, refusals))
    if not kept:
        raise NothingKept(f"no answer of {config.local} to {len(asked)} questions was kept; {refusals}; see {listed}")
    print(f"{out}: {kept} chats; {refusals}")
    return exit_code(refusals)


if __name__ == "__main__":
    main.cli()

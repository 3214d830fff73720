"""Texts that a language model writes itself, drawn at random, so that it keeps its own language while it learns more.

    python -m instruct_data.text.own.texts own_texts.txt --local runs/real/smollm2-135m-instruct

The model is asked to write about words that are drawn by about how often English has them, or gets the requests of a
file, one a line. What it writes is drawn from its own distribution, so training on it beside other data holds the model
where it was, whatever it was trained on: self-distillation without data (Yang et al. 2024, arXiv 2402.13669). That
takes many different texts, each seen once or a few times: some hundred greedy answers, repeated, keep nothing
(docs/training.md). A text at the token limit is kept as far as it goes. Every text is cached, so a killed run continues
where it stopped.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.text.completion import CachedModel, CompletionError, LocalModel
from instruct_data.text.english_words import EnglishWords
from instruct_data.text.reasons import TextReason
from instruct_data.text.sources import NothingKept, exit_code
from units.runtime.command import check_range, command
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import text_lines
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals
from units.runtime.settings import check_types

REQUESTS = (
    "Write a short text about {one} and {other}.",
    "Tell a short story about {one}.",
    "Explain {one} in a few sentences.",
    "Write a paragraph in which {one} and {other} occur.",
    "What do you know about {one}?",
    "Describe {one}.",
)
RARER = 0.75  # power of a word's frequency, so that rare words are asked for more often than they occur


@dataclass(frozen=True)
class OwnTextConfig:
    """Who writes what."""

    local: str
    """Folder or hub id of a causal language model of transformers."""
    requests: Path | None = None
    """File of requests, one a line, as a user would type them; requests to write about English words if not given."""
    count: int = 1536
    """Requests; of a file, at most this many."""
    most_tokens: int = 128
    """Tokens of a text, at most."""
    least_characters: int = 60
    """A shorter text is left out."""
    temperature: float = 0.8
    """Of the draws, above 0: 1 is the model's own distribution, which wanders in a small model."""
    at_once: int = 64
    """Requests in one batch."""
    device: str = "cpu"
    """cpu or cuda."""
    seed: int = 0
    """Of the words and the draws."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("count", "most_tokens", "least_characters", "at_once"):
            check_range(name, getattr(self, name), 1)
        check_range("temperature", self.temperature, 0, exclusive=True)
        check_range("seed", self.seed, 0, 2**31)


def requests_about_words(count: int, seed: int = 0) -> Iterator[str]:
    """`count` requests to write about English words; the same seed gives the same requests."""
    english = EnglishWords()
    draw = random.Random(f"own texts {seed}")
    sums = list(itertools.accumulate(english.chances[word] ** RARER for word in english.words))
    for _ in range(count):
        one, other = draw.choices(english.words, cum_weights=sums, k=2)
        yield draw.choice(REQUESTS).format(one=one, other=other)


def written(
    requests: Sequence[tuple[str, str]], model: CachedModel, config: OwnTextConfig, refusals: Refusals
) -> Iterator[str]:
    """Stream the texts, each as one line. A request without a text, or with too short a one, is refused.

    Args:
        requests: (id, request).
    """
    asked = iter(requests)
    while some := list(itertools.islice(asked, config.at_once)):
        for (id, request), text in zip(some, model.complete([request for _, request in some])):
            if isinstance(text, CompletionError):
                refusals.add(id, text)
            elif len(line := " ".join(text.split())) < config.least_characters:
                refusals.add(id, TextReason.SHORT_TEXT, f"{request}: {line}")
            else:
                yield line


@command("instruct-own-texts", flat=True)
def main(out: Path, config: OwnTextConfig) -> int:
    """Let a language model write texts, drawn at random.

    Args:
        out: the texts, one a line; what is left out is listed in OUT.refused.jsonl
        config: who writes what
    """
    if config.requests is None:
        requests, name = list(enumerate(requests_about_words(config.count, config.seed), 1)), "words"
    else:
        requests, name = text_lines(config.requests)[: config.count], config.requests.name
    asked = [(f"{name}:{number}", request) for number, request in requests]
    local = LocalModel(config.local, config.device, config.most_tokens, config.at_once, config.temperature, config.seed)
    model = CachedModel(local, out.with_name(f"{out.name}.cache"), truncated=True)
    listed = out.with_name(f"{out.name}.refused.jsonl")
    kept = 0
    with listed_refusals(listed) as refusals, written_whole(out) as file:
        texts = written(asked, model, config, refusals)
        for text in progress(texts, desc="writing", unit="texts", total=len(asked)):
            file.write(f"{text}\n")
            kept += 1
        if not kept:
            raise NothingKept(f"no text of {config.local} to {len(asked)} requests was kept; {refusals}; see {listed}")
    print(f"{out}: {kept} texts; {refusals}")
    return exit_code(refusals)


if __name__ == "__main__":
    main.cli()

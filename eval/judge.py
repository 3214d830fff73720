"""A language model that grades replies from 1 to 5, as LLaMA-Omni's InstructS2S-Eval does (arXiv 2409.06666).

    judge = open_judge("http://localhost:8000/v1#my-model", Path("results/judge.cache"))
    verdicts = judge.grades([("what is two plus two", "that makes four")])      # [Verdict({"content": 5, "style": 5})]

An answer of the judge that holds no grade is requested again, with a reminder; after TRIES the reply is unjudged.
Unjudged replies are counted by reason and have no grade. What the judge said is kept in a cache, so that a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.text.completion import (
    CachedModel,
    CompletionError,
    CompletionModel,
    EndpointModel,
    LocalModel,
    TruncatedText,
)
from units.runtime.files.json_files import read_text
from units.runtime.provenance import digest

PROMPT = Path(__file__).parent / "prompts" / "judge.txt"
TRIES = 3  # requests for one reply, beyond the client's own retries of failed requests
GRADES = ("content", "style")
LEAST, MOST = 1, 5
JUDGE_TOKENS = 256
NO_GRADE = "no_grade"  # why a reply is unjudged: the judge never gave a grade; else the code of a failed request
REMINDER = '\n\nYour last answer was no such line. Answer with {"content": N, "style": N} alone.'


class JudgeError(ValueError):
    """A judge's prompt that cannot be used, or a judge that is not named."""


@dataclass(frozen=True)
class Verdict:
    """What a judge made of a reply.

    grades: name -> grade; empty if it is unjudged. unjudged: why, "" if there are grades. tries: requests.
    """

    grades: dict[str, int]
    unjudged: str = ""
    tries: int = 1


class Judge:
    """Grades replies.

    Args:
        model: writes the verdicts.
        prompt: with {question} and {reply}; it asks for one line of JSON with GRADES.
        cache: an SQLite file.

    Raises:
        JudgeError: the prompt lacks a place.
    """

    def __init__(self, model: CompletionModel, prompt: str, cache: Path) -> None:
        if missing := [place for place in ("{question}", "{reply}") if prompt.count(place) != 1]:
            raise JudgeError(f"the judge's prompt needs {' and '.join(missing)} once")
        self.prompt, self.model = prompt, CachedModel(model, cache)

    @property
    def name(self) -> str:
        """The model and the prompt."""
        return f"{self.model.name}, prompt {digest([self.prompt], 6)}"

    def grades(self, exchanges: Sequence[tuple[str, str]]) -> list[Verdict]:
        """A verdict for each (question, reply).

        Raises:
            EndpointUnavailable: no request can succeed; what was judged so far is in the cache.
        """
        found: dict[int, Verdict] = {}
        for attempt in range(TRIES):
            open_ones = [i for i in range(len(exchanges)) if i not in found or found[i].unjudged]
            prompts = [self._asked(*exchanges[i]) + REMINDER * attempt for i in open_ones]
            for i, said in zip(open_ones, self.model.complete(prompts) if prompts else ()):
                grades = {} if isinstance(said, CompletionError) else read_grades(said)
                reason = said.reason.value if isinstance(said, CompletionError) else NO_GRADE
                found[i] = Verdict(grades, "" if grades else reason, attempt + 1)
        return [found[i] for i in range(len(exchanges))]

    def _asked(self, question: str, reply: str) -> str:
        before, between, after = re.split(r"\{question\}|\{reply\}", self.prompt)
        first = self.prompt.index("{question}") < self.prompt.index("{reply}")
        one, other = (question, reply) if first else (reply, question)
        return f"{before}{one}{between}{other}{after}"


def read_grades(said: str) -> dict[str, int]:
    """The grades in what a judge said; empty unless the last JSON object has each of them, from 1 to 5."""
    if isinstance(said, TruncatedText) and "}" not in said:
        return {}
    for text in reversed(re.findall(r"\{[^{}]*\}", said)):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        grades = {name: found.get(name) for name in GRADES}
        if all(type(grade) is int and LEAST <= grade <= MOST for grade in grades.values()):
            return grades
    return {}


def open_judge(specification: str, cache: Path, device: str = "cpu", prompt: Path = PROMPT) -> Judge:
    """Open a judge.

    Args:
        specification: URL#MODEL of a server with OpenAI's chat completions, or a folder or hub id of a causal LM.
        cache: where its answers are kept.
        device: of a local one.
        prompt: the file of its prompt.

    Raises:
        JudgeError: a server without a model, or a prompt that cannot be used.
    """
    url, _, name = specification.partition("#")
    if url.startswith(("http://", "https://")):
        if not name:
            raise JudgeError(f"{specification!r} names no model; a judge is URL#MODEL, or a folder of a causal LM")
        model: CompletionModel = EndpointModel(url, name, most_tokens=JUDGE_TOKENS)
    else:
        model = LocalModel(specification, device, most_tokens=JUDGE_TOKENS)
    return Judge(model, read_text(prompt), cache)

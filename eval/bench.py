"""The bench that the tasks work at: a model, a corpus and a judge; what several tasks need is made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.asr import Judge
from eval.corpus import Corpus, Item, NotMeasured
from eval.subject import NOTHING, Given, Subject
from units.runtime.progress import progress

BATCH = 16  # questions answered between two steps of the progress bar


class Bench:
    """A model, a corpus and a judge.

    An utterance that cannot be read, or that the model refuses (silent, longer than its context), is one to which it gave
    nothing, which counts as wrong; `refused` has its reason.

    Args:
        listener: hears spoken answers; None: nobody does.
        keep: folder for the spoken answers that are kept.

    What a task needs and is not there raises NotMeasured.
    """

    def __init__(self, subject: Subject, corpus: Corpus, listener: Judge | None, keep: Path) -> None:
        self.subject, self.corpus, self.listener, self.keep = subject, corpus, listener, keep
        self.refused: dict[str, str] = {}  # id -> why

    @property
    def judge(self) -> Judge:
        if self.listener is None:
            raise NotMeasured("nobody listens: give the judge a --grammar of all that may be said")
        return self.listener

    @cached_property
    def answers(self) -> list[Given]:
        """The model's answers to the spoken test questions."""
        return self.hear(self.subject.answer, self.corpus.test, "answering", NOTHING)

    @cached_property
    def heard(self) -> list[str]:
        """What the judge hears in those answers."""
        return self.judge.transcribe_all([answer.wav for answer in self.answers])

    @cached_property
    def heard_first(self) -> list[str]:
        """What the judge hears in the answers as they were spoken first, before the model heard itself."""
        heard = list(self.heard)
        again = [i for i, answer in enumerate(self.answers) if answer.candidate and answer.candidate.number]
        first = self.hear(self.answer_once, [self.corpus.test[i] for i in again], "first takes", NOTHING)
        for i, text in zip(again, self.judge.transcribe_all([answer.wav for answer in first])):
            heard[i] = text
        return heard

    def answer_once(self, wavs: Sequence) -> list[Given]:
        """Answers of a model that is told not to listen to itself."""
        return self.subject.answer(wavs, once=True)

    def require(self, part: str) -> None:
        """Raises NotMeasured if the model's answers are such that they cannot have a part."""
        if self.answers and part not in self.subject.parts:
            raise NotMeasured(f"the model's answers have no {part}")

    def hear(
        self, function: Callable[[Sequence[np.ndarray]], list], items: Sequence[Item], name: str, nothing: object = None
    ) -> list:
        """Outputs of a batch function of wavs; `nothing` for an utterance that is refused.

        Raises: ValueError if all are, for then it is not theirs.
        """
        refused: dict[str, str] = {}

        def alone(item: Item) -> object:
            try:
                [found] = function([item.wav()])
            except (ValueError, OSError) as error:
                refused[item.id] = str(error)
                return nothing
            return found

        def of_wavs(batch: list[Item]) -> list:
            try:
                return function([item.wav() for item in batch])
            except (ValueError, OSError):  # by one of them, which shall not cost the others
                return [alone(item) for item in batch]

        outputs = self.in_batches(of_wavs, items, name)
        if refused and len(refused) == len(items):
            raise ValueError(f"{name}: every utterance is refused, the last one because {list(refused.values())[-1]}")
        self.refused |= refused
        return outputs

    def in_batches(self, function: Callable[[list], list], inputs: Sequence, name: str) -> list:
        """Outputs of a batch function, with a progress bar. Raises ValueError if it loses or adds examples."""
        outputs: list = []
        with progress(total=len(inputs), desc=name, unit="examples") as bar:
            for start in range(0, len(inputs), BATCH):
                batch = list(inputs[start : start + BATCH])
                got = function(batch)
                if len(got) != len(batch):
                    raise ValueError(f"{name}: {len(batch)} examples went in, {len(got)} came out")
                outputs += got
                bar.update(len(batch))
        return outputs

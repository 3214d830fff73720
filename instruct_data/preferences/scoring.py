"""Scores of candidates: the words that are misunderstood, how the sound is, and what a judge makes of what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.asr.recogniser import EvaluationASR, open_asr
from eval.judge import LEAST, MOST, PROMPT, Judge, Verdict, open_judge
from eval.metrics import word_errors
from eval.signal.mos import Dnsmos
from instruct_data.preferences.config import Pairing
from instruct_data.preferences.spoken import Ids, Spoken
from speechgpt.generation.generate import generate
from speechgpt.inference import SpeechGPT
from speechgpt.prompts import asr_prompt
from speechgpt.sampling import Sampling
from units.codebook import Units

WORST, BEST = 1.0, 5.0  # opinions of DNSMOS


@dataclass(frozen=True)
class Candidate:
    """Something that was spoken. units: (K,). drawn: by the model; False for the set's own."""

    units: Ids
    drawn: bool = True


@dataclass(frozen=True)
class Scored:
    """A candidate with its scores, lower is better.

    error: its word error rate, the mean over those who listen; 0 where it is not known what was to be said.
    poor: what its sound and the judge add.
    """

    candidate: Candidate
    error: float
    poor: float = 0.0

    @property
    def cost(self) -> float:
        """By what candidates are compared."""
        return self.error + self.poor


class Scorer:
    """The model that spoke, and the others who listen. cache: an SQLite file that keeps what a judge said."""

    def __init__(self, gpt: SpeechGPT, how: Pairing, device: str, cache: Path) -> None:
        self.gpt, self.how, self.device, self.cache = gpt, how, device, cache

    @cached_property
    def asr(self) -> EvaluationASR | None:
        """The evaluation ASR, if one listens."""
        return open_asr(self.how.asr, self.how.grammar, self.device)

    @cached_property
    def dnsmos(self) -> Dnsmos | None:
        """The network that estimates how the sound is, if that counts."""
        return Dnsmos() if self.how.dnsmos else None

    @cached_property
    def judge(self) -> Judge | None:
        """The language model that grades what was said, if one does."""
        if self.how.judge is None:
            return None
        return open_judge(self.how.judge, self.cache, self.device, self.how.judge_prompt or PROMPT)

    def scores(self, spoken: Sequence[tuple[Spoken, Candidate]]) -> list[Scored | None]:
        """Scores of candidates, each with what it is a candidate of; None where the judge gave no grade.

        Raises: EndpointUnavailable if the judge cannot be reached; what it said so far is in the cache.
        """
        units, meant = [one.units for _, one in spoken], [what.text for what, _ in spoken]
        asr, dnsmos = self.asr, self.dnsmos
        wavs = self._wavs(units) if asr or dnsmos else []
        heard: list[Sequence[str | None]] = []
        rates: list[list[float]] = []
        if self.how.hearing:
            heard.append(self._transcripts(units))
            rates.append(_rates(meant, heard[-1]))
        if asr is not None:
            heard.append(asr.transcribe_all(wavs))
            rates.append(_rates(asr.comparable(meant), asr.comparable(heard[-1])))
        poor = np.zeros(len(units))
        if dnsmos is not None:
            opinions = [dnsmos.scores(wav)["overall"] for wav in wavs]
            poor += [self.how.dnsmos * (BEST - opinion) / (BEST - WORST) for opinion in opinions]
        if self.judge is not None:
            verdicts = self._verdicts(self.judge, [what for what, _ in spoken], heard[-1])
            poor += [self.how.judge_weight * _lost(verdict) for verdict in verdicts]
        errors = np.mean(rates, axis=0)
        return [
            None if np.isnan(cost) else Scored(one, float(error), float(cost))
            for (_, one), error, cost in zip(spoken, errors, poor)
        ]

    def _transcripts(self, units: Sequence[Ids]) -> list[str]:
        """What the model itself hears."""
        dialogue, found = self.gpt.dialogue, []
        sampling = Sampling(max_new_tokens=self.how.longest)
        for start in range(0, len(units), self.how.batch):
            prompts = [dialogue.prompt([asr_prompt(ids)]) for ids in units[start : start + self.how.batch]]
            drawn = generate(self.gpt.model, dialogue, prompts, "text", sampling)
            found += [dialogue.parse_reply(ids).text or "" for ids in drawn]
        return found

    def _wavs(self, units: Sequence[Ids]) -> list[np.ndarray]:
        """The sound of each candidate, (T,) at 16 kHz."""
        vocoder, found = self.gpt.vocoder, []
        for start in range(0, len(units), self.how.batch):
            some = [Units(ids, None, self.gpt.codebook) for ids in units[start : start + self.how.batch]]
            found += vocoder.decode_batch(some)
        return found

    def _verdicts(self, judge: Judge, spoken: Sequence[Spoken], heard: Sequence[str | None]) -> list[Verdict]:
        """What the judge makes of what was heard."""
        units = list(dict.fromkeys(what.asked for what in spoken if not isinstance(what.asked, str)))
        transcripts = dict(zip(units, self._transcripts(units)))
        asked = [what.asked if isinstance(what.asked, str) else transcripts[what.asked] for what in spoken]
        return judge.grades([(question, said or "") for question, said in zip(asked, heard)])


def _lost(verdict: Verdict) -> float:
    """0 for the best grades, 1 for the worst; not a number without grades."""
    if not verdict.grades:
        return float("nan")
    return (MOST - sum(verdict.grades.values()) / len(verdict.grades)) / (MOST - LEAST)


def _rates(meant: Sequence[str | None], given: Sequence[str | None]) -> list[float]:
    """Word error rate of each transcript; 0 where it is not known what was to be said."""
    counts = [(0, 1) if text is None else word_errors(text, heard) for text, heard in zip(meant, given, strict=True)]
    return [errors / max(1, expected) for errors, expected in counts]

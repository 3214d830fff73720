"""Candidates of a spoken reply, their scores, and the two of them that make a pair.

C candidates of a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from eval.asr.recogniser import EvaluationASR, open_asr
from eval.metrics import word_errors
from eval.signal.mos import Dnsmos
from instruct_data.build.preference_sets import Pair
from instruct_data.preferences.config import Pairing
from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Message, Reply
from speechgpt.generation.generate import context_length, generate
from speechgpt.generation.grammar import Form
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.inference import SpeechGPT
from speechgpt.prompts import asr_prompt
from speechgpt.sampling import Sampling
from speechgpt.vocab import TA
from units.codebook import Units
from units.notation import SOSP
from units.runtime.provenance import digest
from units.runtime.refusals import Reason, Refusal, refusal_of

WORST, BEST = 1.0, 5.0  # opinions of DNSMOS
KnownText = tuple[int, ...]  # token ids of a text that is said in an interleaved reply


class PairReason(Reason):
    """Why a spoken reply gives no pair."""

    LONG_PROMPT = "long_prompt"
    """its prompt and a transcript of it do not fit the model's context"""
    UNFINISHED = "unfinished"
    """fewer than two candidates came to their end"""
    NOT_UNDERSTOOD = "not_understood"
    """no candidate is understood well enough to be chosen"""
    ALIKE = "alike"
    """the candidates are understood equally well"""


@dataclass(frozen=True)
class SpokenReply:
    """A reply to be spoken again: the last one of a conversation. text: what it says."""

    conversation: Conversation
    text: str


@dataclass(frozen=True)
class Scored:
    """A candidate. error: its word error rate, the mean over those who listen. poor: what its sound adds, 0 without
    DNSMOS."""

    units: tuple[int, ...]
    error: float
    poor: float = 0.0

    @property
    def cost(self) -> float:
        """By what candidates are compared, lower is better."""
        return self.error + self.poor


def spoken_reply(conversation: Conversation) -> SpokenReply | None:
    """The spoken reply that a conversation ends with; None if that has no units, or its text is not known."""
    last = conversation.messages[-1]
    if last.role != "assistant":
        return None
    reply = Reply.from_parts(last.parts)
    if not reply.units:
        return None
    text = reply.text or _read_aloud(conversation.messages[-2])
    return SpokenReply(conversation, text) if text else None


def _read_aloud(asked: Message) -> str:
    """The text that a message asks to be read aloud; "" if it asks for something else."""
    written = [part for part in asked.parts if isinstance(part, str)]
    if len(written) != len(asked.parts) or not written:
        return ""
    return " ".join(written).partition(INPUT_FOLLOWS)[2].strip()


class PairDrawer:
    """A model that speaks, and those who listen to it.

    Raises: as SpeechGPT.from_pretrained and eval.asr.recogniser.open_asr.
    """

    def __init__(self, model: Path, how: Pairing, device: str = "cpu") -> None:
        self.how = how
        self.gpt = SpeechGPT.from_pretrained(model, device)
        self.device = device

    @cached_property
    def asr(self) -> EvaluationASR | None:
        """The evaluation ASR, if one listens."""
        return open_asr(self.how.asr, self.how.grammar, self.device)

    @cached_property
    def dnsmos(self) -> Dnsmos | None:
        """The network that estimates how the sound is, if that counts."""
        return Dnsmos() if self.how.dnsmos else None

    def pairs(self, replies: Sequence[SpokenReply], number: int) -> tuple[list[Pair], list[Refusal]]:
        """The pairs of some replies, and those that give none.

        Args:
            number: of the shard; with the seed it decides the draws.
        """
        found: list[Pair] = []
        refused: list[Refusal] = []
        fitting = [reply for reply in replies if self._fits(reply)]
        drawn = dict(zip(map(id, fitting), self._candidates(fitting, number)))
        heard = iter(self._scored([(ids, reply.text) for reply in fitting for ids in drawn[id(reply)]]))
        for reply in replies:
            name = reply.conversation.id
            if id(reply) not in drawn:
                refused.append(refusal_of(name, PairReason.LONG_PROMPT))
                continue
            candidates = [next(heard) for _ in drawn[id(reply)]]
            pair = self._pair(reply, candidates)
            if isinstance(pair, Pair):
                found.append(pair)
            else:
                errors = ", ".join(f"{candidate.error:.2f}" for candidate in candidates)
                refused.append(refusal_of(name, pair, f"word error rates of its candidates: {errors or 'none'}"))
        return found, refused

    # --- candidates

    def _prompt(self, reply: SpokenReply) -> tuple[list[int], KnownText | None]:
        """Token ids after which the reply is spoken: the turns before it, and its text. Of an interleaved reply, those
        up to its first `[ta]`, with the text beside them."""
        dialogue, special = self.gpt.dialogue, self.gpt.dialogue.vocab.special_id
        before = dialogue.prompt(reply.conversation.messages[:-1])
        ids = dialogue.render(reply.conversation).ids
        said = ids[len(before) :]
        if dialogue.interleaving is None or special(TA) not in said:
            return before + said[: said.index(special(SOSP))], None
        return before + said[: said.index(special(TA)) + 1], tuple(dialogue.answer_tokens(said))

    def _fits(self, reply: SpokenReply) -> bool:
        room = context_length(self.gpt.model) - self.how.longest
        transcript = len(self.gpt.dialogue.encode_text(reply.text)) + len(self.gpt.dialogue.prompt([asr_prompt(())]))
        return max(len(self._prompt(reply)[0]), transcript) < room

    def _candidates(self, replies: Sequence[SpokenReply], number: int) -> list[list[tuple[int, ...]]]:
        """Up to C candidates of each reply, units (K,): those that came to their end; the recorded one last."""
        how, dialogue = self.how, self.gpt.dialogue
        prompts = [prompt for reply in replies for prompt in [self._prompt(reply)] * how.candidates]
        spoken: dict[int, tuple[int, ...] | None] = {}
        alike = [[i for i, (_, text) in enumerate(prompts) if (text is None) == chained] for chained in (True, False)]
        for rows in alike:
            for start in range(0, len(rows), how.batch):
                some = rows[start : start + how.batch]
                seed = int(digest([f"{how.seed} {number} {some[0]}"], 8), 16)
                sampling = Sampling(how.temperature, top_p=how.top_p, max_new_tokens=how.longest, seed=seed)
                texts = tuple(text for text in (prompts[i][1] for i in some) if text is not None)
                form: Form | KnownTexts = KnownTexts(texts) if texts else "units"
                drawn = generate(self.gpt.model, dialogue, [prompts[i][0] for i in some], form, sampling)
                for i, ids in zip(some, drawn):
                    spoken[i] = dialogue.parse_reply(ids).units if dialogue.ended(ids) else None
        every = [spoken[i] for i in range(len(prompts))]
        groups = [every[start : start + how.candidates] for start in range(0, len(every), how.candidates)]
        found = [[units for units in group if units] for group in groups]
        if how.recorded:
            found = [[*group, _units(reply)] for group, reply in zip(found, replies)]
        return found

    # --- scores

    def _scored(self, spoken: Sequence[tuple[tuple[int, ...], str]]) -> list[Scored]:
        """Candidates, each with what it is meant to say, and their word error rates."""
        units, meant = [ids for ids, _ in spoken], [text for _, text in spoken]
        rates: list[list[float]] = []
        if self.how.hearing:
            rates.append(_rates(meant, self._transcripts(units)))
        asr, dnsmos = self.asr, self.dnsmos
        wavs = self._wavs(units) if asr or dnsmos else []
        if asr is not None:
            rates.append(_rates(asr.comparable(meant), asr.comparable(asr.transcribe_all(wavs))))
        poor = [0.0] * len(units)
        if dnsmos is not None:
            poor = [self.how.dnsmos * (BEST - dnsmos.scores(wav)["overall"]) / (BEST - WORST) for wav in wavs]
        return [Scored(ids, sum(of) / len(of), cost) for ids, of, cost in zip(units, zip(*rates), poor)]

    def _transcripts(self, units: Sequence[tuple[int, ...]]) -> list[str]:
        """What the model itself hears."""
        dialogue, found = self.gpt.dialogue, []
        sampling = Sampling(max_new_tokens=self.how.longest)
        for start in range(0, len(units), self.how.batch):
            prompts = [dialogue.prompt([asr_prompt(ids)]) for ids in units[start : start + self.how.batch]]
            drawn = generate(self.gpt.model, dialogue, prompts, "text", sampling)
            found += [dialogue.parse_reply(ids).text or "" for ids in drawn]
        return found

    def _wavs(self, units: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The sound of each candidate, (T,) at 16 kHz."""
        vocoder, found = self.gpt.vocoder, []
        for start in range(0, len(units), self.how.batch):
            some = [Units(ids, None, self.gpt.codebook) for ids in units[start : start + self.how.batch]]
            found += vocoder.decode_batch(some)
        return found

    # --- choice

    def _pair(self, reply: SpokenReply, candidates: Sequence[Scored]) -> Pair | PairReason:
        """The candidate that is understood best and the one that is understood worst; of equals the first."""
        if len(candidates) < 2:
            return PairReason.UNFINISHED
        best = min(candidates, key=lambda one: one.cost)
        drawn = candidates[:-1] if self.how.recorded else candidates
        worst = max(drawn, key=lambda one: one.cost)
        if best.error > self.how.worst_chosen:
            return PairReason.NOT_UNDERSTOOD
        if worst.cost - best.cost < self.how.margin:
            return PairReason.ALIKE
        *turns, last = reply.conversation.messages
        chosen, rejected = (replace(last, parts=(*last.parts[:-1], one.units)) for one in (best, worst))
        task, name = reply.conversation.task, reply.conversation.id
        return Pair(tuple(turns), chosen, rejected, task, name, (round(best.cost, 4), round(worst.cost, 4)))


def _units(reply: SpokenReply) -> tuple[int, ...]:
    """The units of a reply as it is in its set."""
    return Reply.from_parts(reply.conversation.messages[-1].parts).units or ()


def _rates(meant: Sequence[str | None], given: Sequence[str | None]) -> list[float]:
    """Word error rate of each transcript."""
    counts = [word_errors(*pair) for pair in zip(meant, given, strict=True)]
    return [errors / max(1, expected) for errors, expected in counts]

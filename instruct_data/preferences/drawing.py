"""Candidates of what is spoken, and the two of them that make a pair.

C candidates, K units of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instruct_data.build.preference_sets import Pair
from instruct_data.preferences.config import Pairing
from instruct_data.preferences.scoring import Candidate, Scored, Scorer
from instruct_data.preferences.spoken import Spoken
from speechgpt.generation.generate import context_length, generate
from speechgpt.generation.grammar import Form
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.inference import SpeechGPT
from speechgpt.prompts import asr_prompt
from speechgpt.sampling import Sampling
from units.runtime.provenance import digest
from units.runtime.refusals import Reason, Refusal, refusal_of


class PairReason(Reason):
    """Why a reply or an utterance gives no pair."""

    LONG_PROMPT = "long_prompt"
    """its prompt and a transcript of it do not fit the model's context"""
    UNFINISHED = "unfinished"
    """fewer than two candidates came to their end"""
    NOT_UNDERSTOOD = "not_understood"
    """no candidate is understood well enough to be chosen"""
    ALIKE = "alike"
    """the candidates are as good as each other"""
    UNJUDGED = "unjudged"
    """the judge gave fewer than two candidates a grade"""


class PairDrawer:
    """A model that speaks, and those who listen to it.

    Raises: as SpeechGPT.from_pretrained, eval.asr.recogniser.open_asr and eval.judge.open_judge.
    """

    def __init__(self, model: Path, how: Pairing, cache: Path, device: str = "cpu") -> None:
        """cache: an SQLite file for what a judge says."""
        self.how = how
        self.gpt = SpeechGPT.from_pretrained(model, device)
        self.scorer = Scorer(self.gpt, how, device, cache)

    def pairs(self, spoken: Sequence[Spoken], number: int) -> tuple[list[Pair], list[Refusal]]:
        """The pairs of some replies or utterances, and those that give none.

        Args:
            number: of the shard; with the seed it decides the draws.
        """
        found: list[Pair] = []
        refused: list[Refusal] = []
        fitting = [what for what in spoken if self._fits(what)]
        drawn = dict(zip(map(id, fitting), self._candidates(fitting, number)))
        scores = iter(self.scorer.scores([(what, one) for what in fitting for one in drawn[id(what)]]))
        for what in spoken:
            if id(what) not in drawn:
                refused.append(refusal_of(what.id, PairReason.LONG_PROMPT))
                continue
            candidates = [next(scores) for _ in drawn[id(what)]]
            pair = self._pair(what, candidates)
            if isinstance(pair, Pair):
                found.append(pair)
            else:
                errors = ", ".join("?" if one is None else f"{one.cost:.2f}" for one in candidates)
                refused.append(refusal_of(what.id, pair, f"scores of its candidates: {errors or 'none'}"))
        return found, refused

    def _fits(self, what: Spoken) -> bool:
        dialogue, room = self.gpt.dialogue, context_length(self.gpt.model) - self.how.longest
        heard = len(dialogue.prompt([asr_prompt(what.whole(()))])) + len(dialogue.encode_text(what.text or ""))
        return max(len(what.prompt(dialogue)[0]), heard) < room

    def _candidates(self, spoken: Sequence[Spoken], number: int) -> list[list[Candidate]]:
        """Up to C candidates of each: those that came to their end; the recorded one last."""
        if not spoken:
            return []
        how, dialogue = self.how, self.gpt.dialogue
        prompts, forms = zip(*(what.prompt(dialogue) for what in spoken for _ in range(how.candidates)))
        units: dict[int, tuple[int, ...]] = {}  # of the candidates that came to their end
        known = [i for i, form in enumerate(forms) if isinstance(form, KnownTexts)]
        for rows in (known, sorted({*range(len(forms))} - {*known})):
            for start in range(0, len(rows), how.batch):
                some = rows[start : start + how.batch]
                seed = int(digest([f"{how.seed} {number} {some[0]}"], 8), 16)
                sampling = Sampling(how.temperature, top_p=how.top_p, max_new_tokens=how.longest, seed=seed)
                form = _together([forms[i] for i in some])
                drawn = generate(self.gpt.model, dialogue, [prompts[i] for i in some], form, sampling)
                units |= {i: tuple(dialogue.vocab.decode(ids)) for i, ids in zip(some, drawn) if dialogue.ended(ids)}
        found = []
        for place, what in enumerate(spoken):
            rows = range(place * how.candidates, (place + 1) * how.candidates)
            group = [Candidate(what.whole(units[i])) for i in rows if units.get(i)]
            found.append([*group, Candidate(what.recorded, drawn=False)] if how.recorded else group)
        return found

    def _pair(self, what: Spoken, scored: Sequence[Scored | None]) -> Pair | PairReason:
        """The best candidate and the worst one that was drawn; of equals the first."""
        if len(scored) < 2:
            return PairReason.UNFINISHED
        candidates = [one for one in scored if one is not None]
        drawn = [one for one in candidates if one.candidate.drawn]
        if len(candidates) < 2 or not drawn:
            return PairReason.UNJUDGED
        best, worst = min(candidates, key=lambda one: one.cost), max(drawn, key=lambda one: one.cost)
        if best.error > self.how.worst_chosen:
            return PairReason.NOT_UNDERSTOOD
        if worst.cost - best.cost < self.how.margin:
            return PairReason.ALIKE
        scores = (round(best.cost, 4), round(worst.cost, 4))
        return what.pair(best.candidate.units, worst.candidate.units, scores)


def _together(forms: Sequence[Form | KnownTexts]) -> Form | KnownTexts:
    """The form of a batch: that of each of its rows, or all their texts."""
    texts = [text for form in forms if isinstance(form, KnownTexts) for text in form.texts]
    return KnownTexts(tuple(texts)) if texts else forms[0]

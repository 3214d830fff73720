"""Self-verification: a candidate that the model understands is kept; one that it does not is drawn again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from speechgpt.answers import Candidate
from speechgpt.dialogue import Conversation, Dialogue, Message
from speechgpt.generation import candidates
from speechgpt.generation.candidates import choose_candidates, verify
from speechgpt.generation.generate import generate
from speechgpt.prompts import asr_prompt
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA

SPOKEN = [(1, 2, 3), (4,), (5, 6, 5, 6, 5, 6, 5)]
CUT = "cut off"
TEXTS = ["two", "what is two plus two", "x"]


@pytest.fixture(scope="module")
def model(widened: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(widened).eval()


def rendered(dialogue: Dialogue, units: tuple[int, ...], text: str):
    return dialogue.render(Conversation((asr_prompt(units), Message("assistant", (text,)))))


def test_a_batch_is_verified_as_each_utterance_alone(model: PreTrainedModel, dialogue: Dialogue) -> None:
    for units, text, candidate in zip(SPOKEN, TEXTS, verify(model, dialogue, SPOKEN, TEXTS), strict=True):
        one = rendered(dialogue, units, text)
        with torch.no_grad():
            likely = model(input_ids=torch.tensor([one.ids])).logits[0]
        reply = [i for i, trained in enumerate(one.train) if trained]
        assert candidate.units == units and candidate.number == 0
        assert candidate.understood == all(int(likely[i - 1].argmax()) == one.ids[i] for i in reply)


def test_a_candidate_is_understood_if_the_model_would_transcribe_it(model: PreTrainedModel, dialogue: Dialogue) -> None:
    prompt = dialogue.prompt([asr_prompt(SPOKEN[0])])
    meant = rendered(dialogue, SPOKEN[0], "two").ids[len(prompt) :]

    class Parrot(torch.nn.Module):
        """Transcribes the first utterance as "two", and any other one as nothing."""

        config, device = model.config, model.device

        def forward(self, input_ids, attention_mask, position_ids, logits_to_keep):
            logits = model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids).logits * 0
            for row, (ids, mask) in enumerate(zip(input_ids.tolist(), attention_mask.tolist())):
                start = mask.index(1) + len(prompt)
                if ids[mask.index(1) : start] == prompt:
                    for i, token in enumerate(meant):
                        logits[row, start - 1 + i, token] = 9.0
            return type("Output", (), {"logits": logits[:, -logits_to_keep:]})

    found = verify(Parrot(), dialogue, [SPOKEN[0], SPOKEN[0], SPOKEN[1]], ["two", "plus", "two"])
    assert [candidate.understood for candidate in found] == [True, False, False]


def test_speech_beyond_the_context_is_not_verified(model: PreTrainedModel, dialogue: Dialogue, monkeypatch) -> None:
    long = (1, 2) * model.config.max_position_embeddings
    assert verify(model, dialogue, [long, SPOKEN[1]], TEXTS[:2])[0].understood is None
    monkeypatch.setattr(candidates, "generate", None)  # it would fail
    assert choose_candidates(model, dialogue, [[1]], ["two"], [long], Sampling()) == [Candidate(long, None)]


class Script:
    """A scripted model: text -> (units, understood) of each candidate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dialogue: Dialogue, acts: dict[str, list[tuple]]) -> None:
        self.dialogue, self.acts, self.asked, self.samplings = dialogue, acts, [], []
        self.said = dict.fromkeys(acts, 0)
        monkeypatch.setattr(candidates, "verify", self.verify)
        monkeypatch.setattr(candidates, "generate", self.generate)

    def verify(self, model, dialogue, spoken, texts) -> list[Candidate]:
        found = [Candidate(*self.acts[text][self.said[text]][:2]) for text in texts]
        assert [candidate.units for candidate in found] == list(spoken)
        for text in texts:
            self.said[text] += 1
        return found

    def generate(self, model, dialogue, prompts, form, sampling) -> list[list[int]]:
        assert form == "units"
        texts = ["".join(map(chr, prompt)) for prompt in prompts]
        self.asked.append(texts)
        self.samplings.append(sampling)
        acts = [self.acts[text][self.said[text]] for text in texts]
        end = self.dialogue.vocab.special_id(EOA)
        return [self.dialogue.vocab.encode(act[0]) + ([] if act[2:] == (CUT,) else [end]) for act in acts]

    def choose(self, **sampling) -> list[Candidate]:
        texts = list(self.acts)
        prompts = [[ord(letter) for letter in text] for text in texts]
        first = [acts[0][0] for acts in self.acts.values()]
        return choose_candidates(None, self.dialogue, prompts, texts, first, Sampling(**sampling))


def test_only_misunderstood_candidates_are_drawn_again(monkeypatch, dialogue: Dialogue) -> None:
    script = Script(
        monkeypatch,
        dialogue,
        {
            "clear": [((1,), True)],
            "second": [((2,), False), ((3,), True)],
            "third": [((4,), False), ((5,), False), ((6,), True)],
            "never": [((7,), False), ((8,), False), ((9,), False)],
            "cut": [((10,), False), ((11,), True, CUT), ((0,), True)],
        },
    )
    assert script.choose(candidates=3) == [
        Candidate((1,), True, 0),
        Candidate((3,), True, 1),
        Candidate((6,), True, 2),
        Candidate((7,), False, 0),
        Candidate((0,), True, 2),
    ]
    assert script.asked == [["second", "third", "never", "cut"], ["third", "never", "cut"]]


def test_further_candidates_are_sampled_and_repeatable(monkeypatch, dialogue: Dialogue) -> None:
    acts = {"a": [((1,), False)] * 4}
    script = Script(monkeypatch, dialogue, acts)
    script.choose(candidates=4, top_k=5)
    assert all(s.temperature > 0 and s.top_k == 5 for s in script.samplings)
    assert len({s.seed for s in script.samplings}) == 3
    again = Script(monkeypatch, dialogue, acts)
    again.choose(candidates=4, top_k=5, temperature=0.3, seed=0)
    assert [s.seed for s in again.samplings] == [s.seed for s in script.samplings]
    assert {s.temperature for s in again.samplings} == {0.3}
    free = Script(monkeypatch, dialogue, acts)
    free.choose(candidates=4, temperature=0.3)  # unseeded sampling stays unseeded
    assert {s.seed for s in free.samplings} == {None}


def test_a_single_candidate_is_not_verified(monkeypatch, dialogue: Dialogue) -> None:
    script = Script(monkeypatch, dialogue, {"a": [((1,), False)]})
    script.choose(candidates=1)
    assert script.asked == []
    with pytest.raises(ValueError, match="candidates is 0"):
        Sampling(candidates=0)


def test_a_random_model_keeps_its_first_candidate(model: PreTrainedModel, dialogue: Dialogue, monkeypatch) -> None:
    prompts = [dialogue.prompt([Message("human", (text,))]) for text in TEXTS]
    sampling = Sampling(max_new_tokens=30, candidates=3)
    first = [dialogue.parse_reply(ids).units for ids in generate(model, dialogue, prompts, "units", sampling)]
    assert [candidate.understood for candidate in verify(model, dialogue, first, TEXTS)] == [False] * 3
    asked = []
    monkeypatch.setattr(candidates, "generate", lambda *args: asked.append(args[2]) or generate(*args))
    assert choose_candidates(model, dialogue, prompts, TEXTS, first, sampling) == [
        Candidate(units, False) for units in first
    ]
    assert asked == [prompts, prompts]

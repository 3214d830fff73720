"""Sampling with a grammar: whatever a random model draws is a reply of the form asked for; batches equal their rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import K
from transformers import AutoModelForCausalLM, PreTrainedModel

from speechgpt.dialogue import Dialogue, Message
from speechgpt.generate import Form, GrammarProcessor, Sampling, generate
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT, TA, TQ, UA
from units.notation import EOSP, SOSP

QUESTIONS = [("what is two plus two",), ((1, 2, 3, 4, 5),), ("hear", (7,)), ((3,) * 40,), ("x",)]


@pytest.fixture(scope="module")
def model(widened: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(widened).eval()


@pytest.fixture(scope="module")
def brief(widened: Path, dialogue: Dialogue) -> PreTrainedModel:
    """A random model that likes markers, so that its replies end within a few dozen tokens."""
    model = AutoModelForCausalLM.from_pretrained(widened).eval()
    liking = torch.zeros(model.get_output_embeddings().weight.shape[0])
    liking[list(dialogue.vocab.markers.values())] = 5.0
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + liking)
    return model


@pytest.fixture(scope="module")
def prompts(dialogue: Dialogue) -> list[list[int]]:
    return [dialogue.prompt([Message("human", parts)]) for parts in QUESTIONS]


def sections(dialogue: Dialogue, reply: list[int]) -> list[str]:
    """A reply as its classes of tokens, runs collapsed: text, units and markers by name."""
    names = {token: word for word, token in dialogue.vocab.markers.items()}
    kinds = ["units" if dialogue.vocab.is_unit(token) else names.get(token, "text") for token in reply]
    return [kind for kind, before in zip(kinds, [None, *kinds]) if kind != before]


def draw(
    model: PreTrainedModel, dialogue: Dialogue, prompts: list[list[int]], form: Form, seed: int
) -> list[list[int]]:
    return generate(model, dialogue, prompts, form, Sampling(temperature=1.5, max_new_tokens=150, seed=seed))


@pytest.mark.parametrize("form", ["text", "units", "chain"])
def test_every_reply_obeys_its_form(brief: PreTrainedModel, dialogue: Dialogue, prompts, form: Form) -> None:
    full = {
        "text": [["text", EOA], [EOA]],
        "units": [[SOSP, "units", EOSP, EOA]],
        "chain": [[*start, "text", TA, "text", UA, SOSP, "units", EOSP, EOA] for start in ([], [TQ])]
        + [[TQ, TA, "text", UA, SOSP, "units", EOSP, EOA]],
    }[form]
    never = set(dialogue.tokenizer.all_special_ids) - set(dialogue.vocab.markers.values())
    never = {token for token in never if not dialogue.vocab.is_unit(token)}
    never |= {dialogue.vocab.marker(word) for word in (HUMAN, SPEECHGPT, EOH)}
    finished = 0
    for seed in range(4):
        for reply in draw(brief, dialogue, prompts, form, seed):
            assert not never & set(reply)
            assert max(reply) < len(dialogue.tokenizer)  # rows beyond are padding
            found = sections(dialogue, reply)
            assert any(found == one[: len(found)] for one in full), found
            said = dialogue.parse_reply(reply)
            if reply[-1] != dialogue.vocab.marker(EOA):
                continue
            finished += 1
            assert found in full
            assert (said.units is None) == (form == "text")
            assert (said.transcript is None) == (form != "chain" or reply[:2] == [dialogue.vocab.marker(TQ)])
            assert (said.text is None) == (form == "units")
            assert said.units is None or all(0 <= unit < K for unit in said.units)
    assert finished > 2


def test_every_step_rules_out_the_padding_rows(model: PreTrainedModel, dialogue: Dialogue) -> None:
    rows = model.get_output_embeddings().weight.shape[0]
    assert rows > len(dialogue.tokenizer)
    marker, vocab = dialogue.vocab.marker, dialogue.vocab
    reply = [marker(TQ), *dialogue.encode_text("heard;"), marker(TA), *dialogue.encode_text("said"), marker(UA)]
    reply += [*vocab.encode((1, 2)), marker(EOA)]
    grammar = GrammarProcessor(dialogue, "chain", rows, 1, torch.device("cpu"))
    ids = torch.zeros(1, 1, dtype=torch.long)
    for token in reply:
        scores = grammar(ids, torch.zeros(1, rows))
        assert torch.isfinite(scores[0, token]), token
        assert torch.isinf(scores[0, len(dialogue.tokenizer) :]).all()
        assert torch.isinf(scores[0, [dialogue.tokenizer.bos_token_id, dialogue.tokenizer.eos_token_id]]).all()
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize("form", ["text", "units", "chain"])
def test_a_batch_is_its_rows_one_by_one(model: PreTrainedModel, dialogue: Dialogue, prompts, form: Form) -> None:
    sampling = Sampling(max_new_tokens=40)
    together = generate(model, dialogue, prompts, form, sampling)
    alone = [generate(model, dialogue, [prompt], form, sampling)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(reply) for reply in alone}) > 1  # the prompts matter


def test_draws_repeat_with_their_seed(model: PreTrainedModel, dialogue: Dialogue, prompts) -> None:
    first, again, other = (draw(model, dialogue, prompts, "units", seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_no_prompts_have_no_replies(model: PreTrainedModel, dialogue: Dialogue) -> None:
    assert generate(model, dialogue, [], "text", Sampling()) == []


@pytest.mark.parametrize("length", [256, 300])
def test_a_prompt_that_fills_the_context_is_refused(model: PreTrainedModel, dialogue: Dialogue, length: int) -> None:
    with pytest.raises(ValueError, match=f"the prompt has {length} tokens and this model's context is 256"):
        generate(model, dialogue, [[5] * length, [5]], "text", Sampling())
    assert len(generate(model, dialogue, [[5] * 255], "text", Sampling())[0]) == 1

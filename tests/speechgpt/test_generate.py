"""Generation under a grammar: any reply of a random model has the requested form; batches equal their rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_parts import K
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from speechgpt.dialogue import Dialogue, Message
from speechgpt.generation.generate import context_length, draws, generate
from speechgpt.generation.grammar import Form, Grammar
from speechgpt.sampling import LOOP, MOST_LOOPED, Sampling, loops
from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT, TA, TQ, UA
from units.notation import EOSP, SOSP

QUESTIONS = [("what is two plus two",), ((1, 2, 3, 4, 5),), ("hear", (7,)), ((3,) * 40,), ("x",)]


@pytest.fixture(scope="module")
def model(widened: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(widened).eval()


@pytest.fixture(scope="module")
def brief(widened: Path, dialogue: Dialogue) -> PreTrainedModel:
    """A random model with likelier special tokens, so that its replies end within a few dozen tokens."""
    model = AutoModelForCausalLM.from_pretrained(widened).eval()
    liking = torch.zeros(model.get_output_embeddings().weight.shape[0])
    liking[list(dialogue.vocab.special_ids.values())] = 5.0
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + liking)
    return model


@pytest.fixture(scope="module")
def prompts(dialogue: Dialogue) -> list[list[int]]:
    return [dialogue.prompt([Message("human", parts)]) for parts in QUESTIONS]


def sections(dialogue: Dialogue, reply: list[int]) -> list[str]:
    """A reply as its classes of tokens, runs collapsed: text, units and special tokens by name."""
    names = {token: word for word, token in dialogue.vocab.special_ids.items()}
    kinds = ["units" if dialogue.vocab.is_unit(token) else names.get(token, "text") for token in reply]
    return [kind for kind, before in zip(kinds, [None, *kinds]) if kind != before]


def draw(
    model: PreTrainedModel, dialogue: Dialogue, prompts: list[list[int]], form: Form, seed: int
) -> list[list[int]]:
    return generate(model, dialogue, prompts, form, Sampling(temperature=1.5, max_new_tokens=150, seed=seed))


@pytest.mark.parametrize("form", ["text", "units", "chain"])
def test_every_reply_has_its_form(brief: PreTrainedModel, dialogue: Dialogue, prompts, form: Form) -> None:
    full = {
        "text": [["text", EOA], [EOA]],
        "units": [[SOSP, "units", EOSP, EOA]],
        "chain": [[*start, "text", TA, "text", UA, SOSP, "units", EOSP, EOA] for start in ([], [TQ])]
        + [[TQ, TA, "text", UA, SOSP, "units", EOSP, EOA]],
    }[form]
    never = set(dialogue.tokenizer.all_special_ids) - set(dialogue.vocab.special_ids.values())
    never = {token for token in never if not dialogue.vocab.is_unit(token)}
    never |= {dialogue.vocab.special_id(word) for word in (HUMAN, SPEECHGPT, EOH)}
    finished = 0
    for seed in range(4):
        for reply in draw(brief, dialogue, prompts, form, seed):
            assert not never & set(reply)
            assert max(reply) < len(dialogue.tokenizer)  # rows beyond are padding
            found = sections(dialogue, reply)
            assert any(found == one[: len(found)] for one in full), found
            said = dialogue.parse_reply(reply)
            if reply[-1] != dialogue.vocab.special_id(EOA):
                continue
            finished += 1
            assert found in full
            assert (said.units is None) == (form == "text")
            assert (said.transcript is None) == (form != "chain" or reply[:2] == [dialogue.vocab.special_id(TQ)])
            assert (said.text is None) == (form == "units")
            assert said.units is None or all(0 <= unit < K for unit in said.units)
    assert finished > 2


def test_a_continuation_is_units_up_to_the_end(brief: PreTrainedModel, dialogue: Dialogue) -> None:
    begun = [[*dialogue.vocab.encode((1, 2))[:-1]]] * 4
    ended = [reply for seed in range(4) for reply in draw(brief, dialogue, begun, "continuation", seed)]
    ended = [sections(dialogue, reply) for reply in ended if dialogue.ended(reply)]
    assert len(ended) > 4 and all(found in (["units", EOSP, EOA], [EOSP, EOA]) for found in ended)


def test_no_step_allows_padding_rows(model: PreTrainedModel, dialogue: Dialogue) -> None:
    rows = model.get_output_embeddings().weight.shape[0]
    assert rows > len(dialogue.tokenizer)
    special, vocab = dialogue.vocab.special_id, dialogue.vocab
    reply = [special(TQ), *dialogue.encode_text("heard;"), special(TA), *dialogue.encode_text("said"), special(UA)]
    reply += [*vocab.encode((1, 2)), special(EOA)]
    grammar, states = Grammar(dialogue, "chain", rows, torch.device("cpu")), torch.zeros(1, dtype=torch.long)
    for token in reply:
        allowed = grammar.allowed(states)[0]
        assert allowed[token], token
        assert not allowed[len(dialogue.tokenizer) :].any()
        assert not allowed[[dialogue.tokenizer.bos_token_id, dialogue.tokenizer.eos_token_id]].any()
        states = grammar.after(states, torch.tensor([token]))
    assert grammar.allowed(states)[0].nonzero().tolist() == [[special(EOA)]]  # a finished row waits for the others


def test_added_special_tokens_are_not_text(widened: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(widened)
    tokenizer.add_tokens([AddedToken("<|eot_id|>", special=True), AddedToken("<|reserved_7|>", special=True), "plain"])
    dialogue = Dialogue(tokenizer)
    allowed = Grammar(dialogue, "text", len(tokenizer), torch.device("cpu")).allowed(torch.zeros(1, dtype=torch.long))[
        0
    ]
    words = dict(zip(("<|eot_id|>", "<|reserved_7|>", "plain"), allowed[-3:].tolist(), strict=True))
    assert words == {"<|eot_id|>": False, "<|reserved_7|>": False, "plain": True}


class Allowed(LogitsProcessor):
    """The grammar as a logits processor of transformers."""

    def __init__(self, dialogue: Dialogue, form: Form, rows: int, prompt: int) -> None:
        self.grammar, self.prompt = Grammar(dialogue, form, rows, torch.device("cpu")), prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        states = torch.zeros(len(input_ids), dtype=torch.long)
        for at in range(self.prompt, input_ids.shape[1]):
            states = self.grammar.after(states, input_ids[:, at])
        return scores.masked_fill(~self.grammar.allowed(states), float("-inf"))


@pytest.mark.parametrize("form", ["text", "units", "chain"])
def test_the_most_likely_reply_equals_that_of_transformers(
    brief: PreTrainedModel, dialogue: Dialogue, prompts, form
) -> None:
    end = dialogue.vocab.special_id(EOA)
    for prompt in prompts:
        grammar = Allowed(dialogue, form, brief.get_output_embeddings().weight.shape[0], len(prompt))
        theirs = brief.generate(
            torch.tensor([prompt]),
            max_new_tokens=60,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
            logits_processor=LogitsProcessorList([grammar]),
        )[0, len(prompt) :].tolist()
        assert generate(brief, dialogue, [prompt], form, Sampling(max_new_tokens=60)) == [theirs]


def test_generation_settings_of_the_base_model_are_ignored(widened: Path, dialogue: Dialogue, prompts) -> None:
    model = AutoModelForCausalLM.from_pretrained(widened).eval()
    sampling = Sampling(max_new_tokens=40)
    plain = generate(model, dialogue, prompts, "units", sampling)
    model.generation_config.repetition_penalty = 5.0  # as in the folders of Qwen
    model.generation_config.no_repeat_ngram_size = 1
    assert generate(model, dialogue, prompts, "units", sampling) == plain


@pytest.mark.parametrize("form", ["text", "units", "chain"])
def test_a_batch_equals_its_rows(model: PreTrainedModel, dialogue: Dialogue, prompts, form: Form) -> None:
    sampling = Sampling(max_new_tokens=40)
    together = generate(model, dialogue, prompts, form, sampling)
    alone = [generate(model, dialogue, [prompt], form, sampling)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(reply) for reply in alone}) > 1  # the prompts matter


def positioned(rows: int) -> PreTrainedModel:
    """A random GPT-2, whose positions are a table of 64 rows; a higher one is an index error."""
    torch.manual_seed(4)
    return GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_positions=64, n_embd=32, n_layer=2, n_head=2)).eval()


@pytest.mark.parametrize("form", ["text", "units"])
def test_a_long_prompt_does_not_shorten_other_replies(dialogue: Dialogue, form: Form) -> None:
    model = positioned(len(dialogue.tokenizer))
    prompts = [dialogue.prompt([Message("human", ((1,) * length,))]) for length in (1, 20, 50)]
    assert max(map(len, prompts)) < 64 and sum(map(len, prompts)) > 64
    alone = [generate(model, dialogue, [prompt], form, Sampling())[0] for prompt in prompts]
    assert generate(model, dialogue, prompts, form, Sampling()) == alone
    assert [len(reply) for reply in alone] == [context_length(model) - len(prompt) for prompt in prompts]


def test_tokens_are_yielded_one_by_one(brief: PreTrainedModel, dialogue: Dialogue, prompts) -> None:
    sampling = Sampling(temperature=1.5, max_new_tokens=60, seed=1)
    steps = list(draws(brief, dialogue, prompts, "chain", sampling))
    replies = generate(brief, dialogue, prompts, "chain", sampling)
    assert len(steps) == max(map(len, replies)) > min(map(len, replies))
    for row, reply in enumerate(replies):
        column = [tokens[row] for tokens in steps]
        assert column == reply + [None] * (len(steps) - len(reply))


def test_a_seed_does_not_touch_the_global_generator(model: PreTrainedModel, dialogue: Dialogue, prompts) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    draw(model, dialogue, prompts, "units", 5)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "setting", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_invalid_sampling_is_refused(setting: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Sampling(**setting)


@pytest.mark.parametrize("setting", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrowest_sampling_takes_the_most_likely_token(
    model: PreTrainedModel, dialogue: Dialogue, prompts, setting: dict
) -> None:
    likeliest = generate(model, dialogue, prompts, "units", Sampling(max_new_tokens=20))
    assert (
        generate(model, dialogue, prompts, "units", Sampling(temperature=2.0, max_new_tokens=20, **setting))
        == likeliest
    )


def test_the_same_seed_gives_the_same_reply(model: PreTrainedModel, dialogue: Dialogue, prompts) -> None:
    first, again, other = (draw(model, dialogue, prompts, "units", seed) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_no_prompts_give_no_replies(model: PreTrainedModel, dialogue: Dialogue) -> None:
    assert generate(model, dialogue, [], "text", Sampling()) == []


@pytest.mark.parametrize("length", [256, 300])
def test_a_prompt_that_fills_the_context_is_refused(model: PreTrainedModel, dialogue: Dialogue, length: int) -> None:
    with pytest.raises(ValueError, match=f"the prompt has {length} tokens and this model's context is 256"):
        generate(model, dialogue, [[5] * length, [5]], "text", Sampling())
    assert len(generate(model, dialogue, [[5] * 255], "text", Sampling())[0]) == 1


def test_a_config_without_a_context_is_refused() -> None:
    model = BloomForCausalLM(BloomConfig(vocab_size=8, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="this bloom has no max_position_embeddings"):
        context_length(model)


@pytest.mark.parametrize(
    ("ids", "looping"),
    [
        ([5] * LOOP, True),
        ([5] * (LOOP - 1), False),
        ([1, 2, 3] + [7, 8] * LOOP, True),
        ([7, 8] * LOOP + [7], True),
        ([7, 8] * LOOP + [9], False),
        (list(range(MOST_LOOPED)) * 4, True),
        (list(range(MOST_LOOPED + 1)) * 4, False),
    ],
)
def test_a_reply_loops_where_its_end_is_one_phrase_over_and_over(ids: list[int], looping: bool) -> None:
    assert loops(ids) is looping


def test_a_transcript_that_loops_is_ended(widened: Path, dialogue: Dialogue) -> None:
    model = AutoModelForCausalLM.from_pretrained(widened).eval()
    word = dialogue.text.encode("a")[0]
    favoured = torch.zeros(model.get_output_embeddings().weight.shape[0])
    favoured[word] = 1e4
    model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + favoured)
    prompt = dialogue.prompt([Message("human", ("x",))])
    [endless] = generate(model, dialogue, [prompt], "text", Sampling(max_new_tokens=60))
    assert endless == [word] * 60
    [ended] = generate(model, dialogue, [prompt], "text", Sampling(max_new_tokens=60).of_transcripts)
    assert ended == [word] * LOOP

"""Sample replies to held-out documents: their prompts, and the generation loop that they share with inference."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_run import CODEBOOK, chats, make_run, opened, stage_config
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from speechgpt.dialogue import Dialogue
from speechgpt.vocab import UnitVocab, new_words
from stages.config import Source
from stages.packing.blocks import load_blocks
from stages.unit_system.samples import SAMPLING, prompt_end, reply_opening, sample_replies


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def widened(run):
    """The tokenizer after stage 1."""
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    tokenizer.add_tokens(new_words(CODEBOOK.size), special_tokens=True)
    return tokenizer


class Echo(torch.nn.Module):
    """A model that repeats the last token of its prompt once, then ends; it records its prompts."""

    device = torch.device("cpu")
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=128))

    def __init__(self, end: int, rows: int) -> None:
        super().__init__()
        self.end, self.rows, self.prompts = end, rows, []

    def forward(self, input_ids: torch.Tensor, past_key_values: object = None, **how: object) -> SimpleNamespace:
        begins = past_key_values is None
        if begins:
            self.prompts.append(input_ids[0].tolist())
        logits = torch.zeros(1, 1, self.rows)
        logits[0, 0, int(input_ids[0, -1]) if begins else self.end] = 1.0
        return SimpleNamespace(logits=logits, past_key_values="begun")


def sampled(run, widened, **changes) -> tuple[list[dict[str, str]], Echo]:
    config = stage_config(run, dev_documents=1000, **changes)
    _, held_out = load_blocks(opened(config, widened), 1, quiet=True)
    model = Echo(widened.eos_token_id, len(widened))
    return sample_replies(model, held_out, widened, UnitVocab.from_words(widened.get_vocab()), 3), model


@pytest.mark.parametrize("prefix", ["", "Be kind."])
@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_samples_reply_to_whole_prompts(run, widened, train_on_prompt: bool, prefix: str) -> None:
    data = [Source("data/chat.jsonl.gz")]
    samples, model = sampled(run, widened, data=data, train_on_prompt=train_on_prompt, prefix=prefix)
    dialogue = Dialogue(widened, prefix)
    prompts = {tuple(dialogue.prompt(chat.messages[:1])): dialogue.render(chat).ids for chat in chats()}
    assert len(samples) > 1
    for sample, prompt in zip(samples, model.prompts, strict=True):
        rest = prompts[tuple(prompt)][len(prompt) :]
        assert sample["expected"] == widened.decode(rest)
        assert sample["reply"] == widened.decode([prompt[-1], widened.eos_token_id])


def test_a_quarter_of_a_document_without_turns_is_the_prompt(run, widened) -> None:
    samples, model = sampled(run, widened, data=[Source("units/train"), Source("corpus/text.txt")])
    assert [sample["task"] for sample in samples] == ["text", "units", "text"] and len(model.prompts) == 3
    for sample, prompt in zip(samples, model.prompts, strict=True):
        whole = len(prompt) + len(widened.encode(sample["expected"], add_special_tokens=False))
        assert sample["task"] == "text" or len(prompt) == max(1, whole // 4)
    assert reply_opening(widened, None) == []  # a text LLM has no conversations
    assert [prompt_end(np.arange(n), []) for n in (1, 4, 9)] == [1, 1, 2]


def test_documents_that_were_cut_have_a_prompt_too(widened) -> None:
    opening = reply_opening(widened, UnitVocab.from_words(widened.get_vocab()))
    two_replies = np.array([1, 2, *opening, 5, *opening, 6])
    assert prompt_end(two_replies, opening) == 2 + len(opening)  # the first of two replies
    assert prompt_end(np.array([1, 2, opening[0]]), opening) == 3  # within the opening
    assert prompt_end(np.array([1, 2, 3, 4, 5, 6, 7, 8]), opening) == 2  # before it


def tiny_llama(rows: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, initializer_range=1.0, **shape))


def test_the_text_llm_s_generation_config_changes_no_sample(run, widened) -> None:
    data = [Source("data/chat.jsonl.gz")]
    config = stage_config(run, data=data, dev_documents=1000)
    _, held_out = load_blocks(opened(config, widened), 1, quiet=True)
    vocab = UnitVocab.from_words(widened.get_vocab())
    model = tiny_llama(len(widened))
    plain = sample_replies(model, held_out, widened, vocab, 2)
    settings = {"do_sample": True, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_beams": 2}
    model.generation_config = GenerationConfig(**settings, min_length=200, top_k=3, temperature=5.0)
    assert sample_replies(model, held_out, widened, vocab, 2) == plain


def test_a_sample_is_what_transformers_generates_greedily(run, widened) -> None:
    config = stage_config(run, data=[Source("data/chat.jsonl.gz")], dev_documents=1000)
    _, held_out = load_blocks(opened(config, widened), 1, quiet=True)
    model = tiny_llama(len(widened)).eval()
    vocab = UnitVocab.from_words(widened.get_vocab())
    (sample,) = sample_replies(model, held_out, widened, vocab, 1)
    opening = reply_opening(widened, vocab)
    prompts = [ids[: prompt_end(ids, opening)] for ids in (Dialogue(widened).render(chat).ids for chat in chats())]
    (prompt,) = [ids for ids in prompts if widened.decode(ids) == sample["prompt"]]
    ids = torch.tensor([prompt])
    ends = [widened.eos_token_id, vocab.special_id("<eoa>")]
    how = {"max_new_tokens": SAMPLING.max_new_tokens, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **how)[0, len(prompt) :]
    assert sample["reply"] == widened.decode(written)
    assert 0 < len(written) <= SAMPLING.max_new_tokens

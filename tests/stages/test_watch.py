"""What a stage writes down of held-out documents: what the model is asked, and by which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import CODEBOOK, chats, make_run, stage_config
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from speechgpt.dialogue import Dialogue
from speechgpt.vocab import UnitVocab, new_words
from stages.config import Source
from stages.data import load_blocks
from stages.watch import prompt_end, reply_opening, sample_replies


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def widened(run):
    """The tokenizer after stage 1."""
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    tokenizer.add_tokens(new_words(CODEBOOK.size), special_tokens=True)
    return tokenizer


class Parrot(torch.nn.Module):
    """A model that says the last token of its prompt again, and remembers what it was asked."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[list[int], dict[str, Any]]] = []

    def generate(self, input_ids: torch.Tensor, **how: Any) -> torch.Tensor:
        self.asked.append((input_ids[0].tolist(), how))
        return torch.cat([input_ids, input_ids[:, -1:]], dim=1)


def sampled(run, widened, **changes) -> tuple[list[dict[str, str]], Parrot]:
    config = stage_config(run, dev_documents=1000, **changes)
    _, dev = load_blocks(config, widened, CODEBOOK, 1, quiet=True)
    model = Parrot()
    return sample_replies(model, dev, widened, UnitVocab.from_words(widened.get_vocab()), 3), model


@pytest.mark.parametrize("prefix", ["", "Be kind."])
@pytest.mark.parametrize("train_on_prompt", [False, True])
def test_samples_reply_to_whole_prompts(run, widened, train_on_prompt: bool, prefix: str) -> None:
    data = [Source("data/chat.jsonl.gz")]
    samples, model = sampled(run, widened, data=data, train_on_prompt=train_on_prompt, prefix=prefix)
    dialogue = Dialogue(widened, prefix)
    prompts = {tuple(dialogue.prompt(chat.messages[:1])): dialogue.render(chat).ids for chat in chats()}
    assert len(samples) > 1
    for sample, (asked, _) in zip(samples, model.asked, strict=True):
        rest = prompts[tuple(asked)][len(asked) :]
        assert sample["expected"] == widened.decode(rest) and sample["reply"] == widened.decode(asked[-1:])


def test_of_what_is_no_conversation_a_quarter_is_the_prompt(run, widened) -> None:
    samples, model = sampled(run, widened, data=[Source("units/train"), Source("corpus/text.txt")])
    assert [sample["task"] for sample in samples] == ["text", "units", "text"] and len(model.asked) == 3
    for sample, (asked, _) in zip(samples, model.asked, strict=True):
        whole = len(asked) + len(widened.encode(sample["expected"], add_special_tokens=False))
        assert sample["task"] == "text" or len(asked) == max(1, whole // 4)
    assert reply_opening(widened, None) == []  # a text LLM has no conversations
    assert [prompt_end(np.arange(n), []) for n in (1, 4, 9)] == [1, 1, 2]


def test_documents_that_were_cut_have_a_prompt_too(widened) -> None:
    opening = reply_opening(widened, UnitVocab.from_words(widened.get_vocab()))
    assert prompt_end(np.array([1, 2, *opening, 5, *opening, 6]), opening) == 2 + len(
        opening
    )  # the first of two replies
    assert prompt_end(np.array([1, 2, opening[0]]), opening) == 3  # within the opening
    assert prompt_end(np.array([1, 2, 3, 4, 5, 6, 7, 8]), opening) == 2  # before it


def test_whether_processes_wait_for_one_another_is_left_to_transformers(run, widened) -> None:
    _, model = sampled(run, widened, data=[Source("data/chat.jsonl.gz")])  # which does under ZeRO-3 and FSDP
    assert all(how.get("synced_gpus") is None for _, how in model.asked)


def test_the_text_llm_s_own_way_to_generate_changes_no_sample(run, widened) -> None:
    data = [Source("data/chat.jsonl.gz")]
    _, dev = load_blocks(stage_config(run, data=data, dev_documents=1000), widened, CODEBOOK, 1, quiet=True)
    vocab = UnitVocab.from_words(widened.get_vocab())
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(widened), hidden_size=16, num_hidden_layers=1,
                                         num_attention_heads=2, intermediate_size=16, initializer_range=1.0))  # fmt: skip
    plain = sample_replies(model, dev, widened, vocab, 2)
    model.generation_config = GenerationConfig(do_sample=True, repetition_penalty=9.0, no_repeat_ngram_size=1, num_beams=2,
                                               min_length=200, top_k=3, temperature=5.0)  # fmt: skip
    assert sample_replies(model, dev, widened, vocab, 2) == plain

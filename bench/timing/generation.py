"""Tokens a second of the reply loop and of transformers' generate; the command is bench.generation."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.timing.train import SHAPES
from speechgpt.dialogue import Dialogue
from speechgpt.generation.generate import generate
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA
from speechgpt.widen import widen
from stages.start_models.text_llm import train_tokenizer
from units.runtime.provenance import commit, machine

UNITS = 500
BASELINE = "transformers' generate"


def widened(shape: str, device: str, seed: int) -> tuple[LlamaForCausalLM, Dialogue]:
    """A model of random weights, in bfloat16 on a GPU, with the dialogue of its widened tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        text = Path(name) / "text.txt"
        text.write_text("what is two plus two? that makes four.\n" * 20)
        tokenizer = train_tokenizer(text, 300)
    torch.manual_seed(seed)
    on_gpu = device == "cuda"
    settings = SHAPES[shape] | {"vocab_size": 32_000 if shape == "1b" else len(tokenizer)}
    model = LlamaForCausalLM(LlamaConfig(**settings, max_position_embeddings=4096))
    widen(tokenizer, model, UNITS, init="random")
    model.to(device, dtype=torch.bfloat16 if on_gpu else torch.float32).eval()
    return model, Dialogue(tokenizer)


def endless(model: LlamaForCausalLM, dialogue: Dialogue) -> None:
    """Make the end of a reply the least likely token, so that every reply is as long as asked."""
    end = torch.tensor([dialogue.vocab.special_id(EOA)], device=model.device)
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, scores: scores.index_fill(-1, end, -1e4))


def compare(shape: str, device: str, rows: list[int], tokens: int, prompt: int, rounds: int, seed: int) -> None:
    """Print tokens a second of both ways at every number of rows."""
    model, dialogue = widened(shape, device, seed)
    endless(model, dialogue)
    draw = torch.Generator().manual_seed(seed)
    print(f"{shape}, {model.dtype}, prompts of {prompt} tokens, {tokens} drawn, {machine(device)}, commit {commit()}")
    for count in rows:
        prompts = torch.randint(3, 100, (count, prompt), generator=draw)
        ways: dict[str, Callable[[], None]] = {
            BASELINE: partial(theirs, model, prompts, tokens),
            "reply loop": partial(ours, model, dialogue, prompts, tokens),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                took = _seconds(way, device)
                if number:  # the first pass prepares kernels
                    seconds[name].append(took)
        speed = {name: count * tokens / statistics.median(times) for name, times in seconds.items()}
        for name, value in speed.items():
            speeds = f"{value:10,.1f} tokens a second  {value / count:8.1f} a row  {value / speed[BASELINE]:5.2f} times"
            print(f"{count:4} rows  {name:24} {speeds}")


def ours(model: LlamaForCausalLM, dialogue: Dialogue, prompts: Tensor, tokens: int) -> None:
    """The reply loop, under the grammar of a spoken reply."""
    replies = generate(model, dialogue, prompts.tolist(), "units", Sampling(max_new_tokens=tokens))
    assert all(len(reply) == tokens for reply in replies)


def theirs(model: LlamaForCausalLM, prompts: Tensor, tokens: int) -> None:
    """transformers' greedy generate."""
    ids = prompts.to(model.device)
    settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert found.shape[1] == prompts.shape[1] + tokens


def _seconds(way: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began

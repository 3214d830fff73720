"""Training steps with each implementation of attention; the command is bench.attention."""

from __future__ import annotations

import contextlib
import statistics
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.timing.train import SHAPES, conversations, stage_attention
from stages.packing.attention import BY_DOCUMENT, VARLEN, takes_bounds
from stages.packing.blocks import PackedBlocks, flattened
from stages.start import check_varlen
from units.runtime.precision import autocast
from units.runtime.provenance import commit, machine

BASELINE = "sdpa"
WARM_UP = 2  # rounds that are not timed


def implementations() -> list[str]:
    """The baseline and the others that run on this machine; flash-attention only where stages.train would use it."""
    found = [BASELINE, "eager", BY_DOCUMENT, stage_attention()]
    with contextlib.suppress(ValueError):
        check_varlen(torch.bfloat16)
        found.append(VARLEN)
    return list(dict.fromkeys(found))


def compare(shape: str, block: int, batch: int, rounds: int, seed: int) -> None:
    """Train one model, its implementation of attention by turns, and print each one's median step."""
    documents = conversations(1000, block, seed)
    blocks = PackedBlocks([(documents, np.arange(len(documents)), 1.0)], block, (rounds + WARM_UP) * batch, 0, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=4096)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seconds: dict[str, list[float]] = {name: [] for name in implementations()}
    for number in range(rounds + WARM_UP):
        items = [blocks[i] for i in range(number * batch, (number + 1) * batch)]
        stacked = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        flat = flattened([{name: row.to(device) for name, row in item.items()} for item in items])
        for name in seconds:
            model.set_attn_implementation(name)
            took = step(model, optimizer, flat if takes_bounds(model) else stacked, device)
            if number >= WARM_UP:
                seconds[name].append(took)
    where = f"{torch.get_num_threads()} threads, {machine(device.type)}, commit {commit()}"
    print(f"{shape}, {batch} blocks of {block}, fill {blocks.fill:.3f}, {where}")
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name, took in median.items():
        print(f"{name:12} {1000 * took:7.1f} ms a step, {median[BASELINE] / took:.2f} times {BASELINE}")


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, inputs: dict, device: torch.device) -> float:
    """Seconds of one training step."""
    began = time.perf_counter()
    with autocast(device):
        loss = model(**inputs, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began

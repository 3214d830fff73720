"""How the ways of computing attention on packed blocks compare, step by step in turn, so that a machine whose speed
swings is fair to all.

    python -m bench.attention                       # the toy preset's model and blocks, on the threads that there are
    python -m bench.attention --block 1024 --batch 1
"""

from __future__ import annotations

import contextlib
import statistics
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.train import SHAPES, conversations, stage_attention
from stages.packing.attention import BY_DOCUMENT, VARLEN, takes_bounds
from stages.packing.blocks import PackedBlocks, flattened
from stages.start import check_varlen
from units.runtime.precision import autocast
from units.runtime.provenance import commit, machine

BASELINE = "sdpa"
WARM_UP = 2  # rounds that no clock counts


def ways_here() -> list[str]:
    """The baseline, and every other way that this machine can go; flash-attention where stages.train would take it."""
    found = [BASELINE, "eager", BY_DOCUMENT, stage_attention()]
    with contextlib.suppress(ValueError):
        check_varlen(torch.bfloat16)
        found.append(VARLEN)
    return list(dict.fromkeys(found))


def main(shape: str = "toy", block: int = 256, batch: int = 4, rounds: int = 60, seed: int = 0) -> None:
    """Train one model for each way, a step of each in turn, and print their median steps.

    Args:
        shape: toy or 1b
        block: tokens of a block
        batch: blocks of a step
        rounds: steps of each way
        seed: of weights and conversations
    """
    documents = conversations(1000, block, seed)
    blocks = PackedBlocks([(documents, np.arange(len(documents)), 1.0)], block, (rounds + WARM_UP) * batch, 0, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ways = {}
    for way in ways_here():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=4096)).to(device)
        model.set_attn_implementation(way)
        ways[way] = model, torch.optim.AdamW(model.parameters(), fused=True)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + WARM_UP):
        items = [blocks[i] for i in range(number * batch, (number + 1) * batch)]
        stacked = {name: torch.stack([item[name] for item in items]).to(device) for name in items[0]}
        in_a_row = flattened([{name: row.to(device) for name, row in item.items()} for item in items])
        for way, (model, optimizer) in ways.items():
            inputs = in_a_row if takes_bounds(model) else stacked
            began = time.perf_counter()
            with autocast(device):
                loss = model(**inputs, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= WARM_UP:
                seconds[way].append(time.perf_counter() - began)
    print(f"{shape}, {batch} blocks of {block}, fill {blocks.fill:.3f}, {torch.get_num_threads()} threads, {machine(device.type)}, "
          f"commit {commit()}")  # fmt: skip
    middle = {way: statistics.median(times) for way, times in seconds.items()}
    for way, time_of_step in middle.items():
        print(f"{way:12} {1000 * time_of_step:7.1f} ms a step, {middle[BASELINE] / time_of_step:.2f} times {BASELINE}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

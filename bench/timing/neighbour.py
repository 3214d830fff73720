"""Training beside a busy process; the command is bench.neighbour."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.timing.attention import step
from bench.timing.train import SHAPES, conversations
from stages.callbacks.local_steps import average, learned
from stages.callbacks.threads import FastestThreads
from stages.packing.attention import BY_DOCUMENT
from stages.packing.blocks import PackedBlocks
from units.runtime.provenance import commit, machine

ROOT = Path(__file__).parents[2]
COUNTS = "while True: pass"  # a process that is always busy
WARM_UP = 10  # steps that are not timed; the first trial of auto is among them
AUTO = "auto"
LOCAL = "local"  # two processes of one thread that average what they learn every LOCAL_STEPS steps, as the toy's do
LOCAL_STEPS = 8


def compare(threads: list[int], seconds: float, block: int, batch: int) -> None:
    """Train with each number of threads, with `auto` and with `local`, alone and beside a busy process; print tokens a
    second."""
    print(f"toy, {batch} blocks of {block}, {machine('cpu')}, commit {commit()}")
    numbers = [*map(str, threads), AUTO, LOCAL]
    idle = {count: speed(count, seconds, block, batch) for count in numbers}
    with busy():
        beside = {count: speed(count, seconds, block, batch) for count in numbers}
    best = max(idle.values())
    for count in numbers:
        print(
            f"{count:>5} threads  {idle[count]:8,.0f} tokens a second idle ({idle[count] / best:4.0%} of the best)"
            f"  {beside[count]:8,.0f} beside a busy process ({beside[count] / idle[count]:4.0%} is left)"
        )


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """A process that does nothing but count, while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", COUNTS])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def speed(threads: str, seconds: float, block: int, batch: int) -> float:
    """Tokens a second of a training in processes of its own, whose OpenMP is fresh."""
    launcher = (
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"] if threads == LOCAL else []
    )
    arguments = [sys.executable, "-m", *launcher, "bench.timing.neighbour", threads, *map(str, (seconds, block, batch))]
    number = {AUTO: str(os.cpu_count()), LOCAL: "1"}.get(threads, threads)
    environment = {**os.environ, "OMP_NUM_THREADS": number}
    done = subprocess.run(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def train(threads: str, seconds: float, block: int, batch: int) -> float:
    """Train the toy's model for some seconds: tokens a second without padding, of all processes."""
    if threads == LOCAL:
        torch.distributed.init_process_group("gloo")
    chooser = FastestThreads()  # of all threads that OMP_NUM_THREADS allows
    if threads == AUTO:
        chooser.on_train_begin(None, None, None)
    torch.manual_seed(0)
    documents = conversations(1000, block, 0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPES["toy"], max_position_embeddings=4096))
    model.set_attn_implementation(BY_DOCUMENT)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    blocks = PackedBlocks([(documents, np.arange(len(documents)), 1.0)], block, 200 * batch, 0, 0)
    steps, tokens, began, ended = 0, 0, 0.0, False
    while not ended:
        items = [blocks[(steps * batch + i) % len(blocks)] for i in range(batch)]
        if threads == AUTO:
            chooser.on_step_begin(None, None, None)
        step(model, optimizer, {name: torch.stack([item[name] for item in items]) for name in items[0]}, model.device)
        if threads == AUTO:
            chooser.on_step_end(None, None, None)
        steps += 1
        if steps == WARM_UP:
            began = time.perf_counter()
        elif steps > WARM_UP:
            tokens += round(batch * block * blocks.fill)
            ended = time.perf_counter() - began >= seconds
        if threads == LOCAL:
            ended = steps % LOCAL_STEPS == 0 and _averaged(model, optimizer, ended)
    found = tokens / (time.perf_counter() - began)
    if threads != LOCAL:
        return found
    torch.distributed.destroy_process_group()
    return 2 * found


def _averaged(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, ended: bool) -> bool:
    """Average what the processes have learned; whether the time of one of them is over."""
    any_ended = torch.tensor(float(ended))
    average(iter([any_ended, *learned(model, optimizer)]))
    return bool(any_ended)


if __name__ == "__main__":
    print(train(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))

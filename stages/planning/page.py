"""A plan as text."""

from __future__ import annotations

import math
from typing import Any

from stages.config import KEPT, StageConfig
from stages.planning.cluster import Cluster
from stages.planning.plan import GIB, USABLE, Plan, make_plan, weight_bytes
from stages.planning.size import Size, check_block

GPUS_OF_A_MACHINE = 8  # the usual maximum


def print_plan(config: StageConfig, size: Size, cluster: Cluster) -> None:
    """Print what a stage needs on a cluster. Raises ValueError if its blocks are longer than the model's context."""
    check_block(config, size.positions, config.model)
    plan = make_plan(config, size, cluster)
    print(f"{config.run.name}/{config.stage} on {plan.gpus} x {cluster.gpu}")
    for name, text in rows(config, cluster, plan):
        print(f"  {name:<15} {text}")


def rows(config: StageConfig, cluster: Cluster, plan: Plan) -> list[tuple[str, str]]:
    """(name, text) of each line."""
    size, each = plan.size, config.training.get("per_device_train_batch_size", 8)
    parts = ", ".join(f"{name} {amount / GIB:.1f}" for name, amount in plan.memory.items())
    total = sum(plan.memory.values()) / GIB
    trained = "all trained" if size.learning == size.parameters else f"{size.learning:,} trained"
    found = [
        ("parameters", f"{size.parameters:,}; {trained}"),
        (
            "step",
            f"{plan.batch:,} blocks of {config.block_size:,} = {plan.tokens_per_step:,} tokens: {each} a GPU x "
            f"{plan.accumulation} passes x {plan.gpus} GPUs",
        ),
        ("whole", f"{plan.steps:,} steps, {plan.tokens:,} tokens"),
        ("memory per GPU", f"{total:.1f} GiB of {plan.room / GIB:.0f}: {parts}"),
    ]
    if plan.hours is None:
        found.append(("time", f"unknown: name the kind of GPU, --gpu A100-80G, in place of {cluster.gpu}"))
    else:
        found.append(
            ("time", f"{plan.hours:.1f} hours at {cluster.mfu:.0%} MFU, {plan.hours * plan.gpus:,.0f} GPU hours")
        )
    found += host_rows(config, plan)
    found += [("note", warning) for warning in plan.warnings]
    if absent := [source.path for source in config.data if not config.at(source.path).exists()]:
        found.append(("data", f"not in {config.run} yet: {', '.join(absent)}"))
    if plan.fits:
        return found
    found.append(("DOES NOT FIT", f"{total:.1f} GiB is more than {USABLE:.0%} of {plan.room / GIB:.0f}"))
    if plan.changes is None:
        return [*found, ("change", "nothing helps: more GPUs, larger ones, or a smaller model")]
    options = " ".join(f"--training.{name} {str(value).lower()}" for name, value in plan.changes.items())
    return [*found, ("change", f"{options}   (it fits then, and trains the same)")]


def kept_checkpoints(training: dict[str, Any]) -> int:
    """The most checkpoints on disk at a time: those that are kept, and one while it is written."""
    limit, steps, every = training.get(KEPT, 2), training["max_steps"], training.get("save_steps", 500)
    whole = math.ceil(steps / every if every >= 1 else 1 / every)  # below 1 it is a share of the steps
    return whole if limit is None else min(limit + 1, whole)


def host_rows(config: StageConfig, plan: Plan) -> list[tuple[str, str]]:
    """Needs beside the GPUs: disk for checkpoints, host memory for what is offloaded or loaded."""
    sharded = config.training.get("deepspeed")
    saved = (2 if sharded else 4) * plan.size.parameters + (12 if sharded else 8) * plan.size.learning
    kept = kept_checkpoints(config.training)
    found = [("disk", f"{saved * kept / GIB:.0f} GiB: {kept} checkpoints of {saved / GIB:.0f} GiB")]
    if sharded == "zero3_offload":
        host = 2 * plan.size.parameters + 16 * plan.size.learning
        found.append(("host memory", f"{host / GIB:.0f} GiB over all machines, for what is offloaded"))
    elif sharded != "zero3":
        whole, each = weight_bytes(config) * plan.size.parameters / GIB, min(plan.gpus, GPUS_OF_A_MACHINE)
        each_host = f": {whole * each:.0f} on a machine of {each}; zero3 loads a share on each" if each > 1 else ""
        found.append(("host memory", f"{whole:.0f} GiB for each GPU while the model is loaded{each_host}"))
    return found

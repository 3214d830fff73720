"""One stage, from its config to its folder: open the model, pack the data, train, save."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled

from stages.arguments import training_arguments
from stages.callbacks.checkpoints import STOPPED, Checkpoints, check_shared, common_checkpoint, prepare_resume
from stages.callbacks.local_steps import LocalSteps
from stages.callbacks.log import Log
from stages.callbacks.threads import FastestThreads
from stages.config import StageConfig
from stages.finished import save_finished
from stages.packing.blocks import PackedBlocks, load_blocks
from stages.packing.check import PackingCheck, set_attention
from stages.place import RESOLVED, is_finished, read_resolved
from stages.planning.size import check_block, positions_of
from stages.start import loading_arguments
from stages.system import Opened, System
from stages.trainable import choose_trainable, keep_rows
from stages.trainer import StageTrainer
from units.runtime.files.atomic import written_whole

PREPARATION = 86400.0  # seconds that processes wait while the first one prepares data: a day


def train_stage(config: StageConfig, system: System) -> Path:
    """Run one stage to its end.

    Returns: its folder.
    Raises: SystemExit, after a checkpoint, if the process is stopped by SIGTERM; ValueError if the processes do not
        share the run folder; what the system raises.
    """
    out = config.at(config.out)
    if is_finished(config, system):
        print(f"{config.stage} is done already: {out}")
        return out
    arguments = training_arguments(config)  # before the model: DeepSpeed ZeRO-3 then loads it sharded
    check_shared(out, arguments)
    checkpoint = common_checkpoint(out, arguments)
    if isinstance(config.threads, int) and config.threads and arguments.use_cpu:
        torch.set_num_threads(config.threads)
    set_seed(config.seed)
    opened = _open(config, system, arguments)
    blocks, held_out = _prepare(opened, arguments, checkpoint)
    model = choose_trainable(opened.model, config, opened.parts)
    if config.rows.words == "keep":
        _keep_words(opened, config, arguments)
    keeper = Checkpoints(config.local_steps if arguments.world_size > 1 else 1)
    checks = [PackingCheck(config.attention, _inner(opened, model))] if opened.language_model is not None else []
    threads = [FastestThreads()] if config.threads == "auto" and arguments.use_cpu else []
    averaging = [LocalSteps(config.local_steps)] if config.local_steps > 1 else []  # after keeper, which may save
    trainer = StageTrainer(
        model,
        arguments,
        opened=opened,
        train_dataset=blocks,
        eval_dataset=held_out,
        data_collator=opened.collator(),
        callbacks=[*checks, *threads, keeper, *averaging, Log(out / "log.jsonl")],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if keeper.stopped:
        trainer.accelerator.wait_for_everyone()  # the launcher kills the others when one ends
        print(
            f"{config.stage} stopped at step {trainer.state.global_step} of {arguments.max_steps}, all saved; the same "
            "command continues it",
            flush=True,
        )
        raise SystemExit(STOPPED)
    save_finished(trainer, opened, system)
    trainer.accelerator.wait_for_everyone()  # the next stage, on another machine, may look for this one at once
    return out


def _open(config: StageConfig, system: System, arguments: TrainingArguments) -> Opened:
    """The system at the start of the stage. With attention: auto, a model that cannot have the preferred attention
    keeps its own."""
    loading = loading_arguments(config, arguments)
    preferred = loading.pop("attn_implementation", None) if config.attention == "auto" else None
    opened = system.open(config, **loading)
    if opened.language_model is None:
        return opened
    check_block(config, positions_of(opened.language_model.config), config.model)
    if preferred:
        set_attention(opened.language_model, preferred)
    return opened


def _keep_words(opened: Opened, config: StageConfig, arguments: TrainingArguments) -> None:
    """Let the rows of words be as they are.

    Raises: ValueError if no rows were added, or each process holds a part of the rows.
    """
    if opened.added_tokens is None:
        raise ValueError(f"{config.stage}: rows: words: keep is for a widened LLM, and {config.model} has no units")
    if is_deepspeed_zero3_enabled() or arguments.fsdp:
        raise ValueError("rows: words: keep does not go with ZeRO-3 or FSDP, which divide rows; use zero2, or learn")
    keep_rows(opened.model, opened.added_tokens)


def _inner(opened: Opened, model: Any) -> Any:
    """The causal LLM in the trained model; None if it is the trained model itself."""
    return None if opened.language_model is opened.model else opened.language_model


def _prepare(
    opened: Opened, arguments: TrainingArguments, checkpoint: Path | None
) -> tuple[PackedBlocks, PackedBlocks]:
    """Training blocks and held-out blocks; the first process fills the cache, the others then read it."""
    passes = arguments.gradient_accumulation_steps * arguments.world_size
    count = arguments.max_steps * arguments.train_batch_size * passes
    with first_process_first(arguments):
        blocks = load_blocks(opened, count, quiet=arguments.process_index > 0)
        if checkpoint:
            prepare_resume(checkpoint, arguments)
        if arguments.process_index == 0:
            save_resolved(opened.config, checkpoint is not None)
    return blocks


@contextlib.contextmanager
def first_process_first(arguments: TrainingArguments) -> Iterator[None]:
    """The first process runs the block, then all others do.

    Preparing data, or rewriting a checkpoint, may take longer than the timeout of half an hour between processes that
    train. So they poll the store by which they found each other: it needs no connection that they do not have yet,
    unlike a group of gloo's, which the network of some clusters does not allow.

    Raises: TimeoutError if the first process takes more than a day.
    """
    if arguments.world_size == 1:
        yield
        return
    store = torch.distributed.distributed_c10d._get_default_store()
    key, end = f"prepared {arguments.output_dir}", time.monotonic() + PREPARATION
    while arguments.process_index and not store.check([key]):
        if time.monotonic() > end:
            raise TimeoutError(f"the first process has not prepared the data of {arguments.output_dir} in a day")
        time.sleep(0.5)
    try:
        yield
    finally:
        if arguments.process_index == 0:
            store.set(key, "")


def save_resolved(config: StageConfig, resuming: bool) -> None:
    """Write the config beside the checkpoints; report what differs from the config that they were made with."""
    path = config.at(config.out) / RESOLVED
    resolved = {**dataclasses.asdict(config), "run": str(config.run)}
    if resuming and path.exists():
        before = read_resolved(path.parent)
        for name in resolved.keys() & before.keys():  # a field that one release has and the other has not is no change
            if resolved[name] != before[name]:
                print(f"{name} was {before[name]} in the checkpoints, and is {resolved[name]} from here on")
    with written_whole(path) as file:
        yaml.safe_dump(resolved, file, sort_keys=False)

"""transformers' TrainingArguments of a stage: the config's `training`, with what the stage itself sets."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_liger_kernel_available

from stages.config import StageConfig
from units.runtime.precision import multiplies_bfloat16

DEEPSPEED = Path(__file__).parent / "configs" / "deepspeed"


def training_arguments(config: StageConfig) -> TrainingArguments:
    """The arguments of a stage on this machine."""
    chosen = dict(config.training)
    if hasattr(TrainingArguments, "activation_checkpointing") and "gradient_checkpointing" in chosen:
        chosen["activation_checkpointing"] = chosen.pop("gradient_checkpointing")  # its name from transformers 5.23 on
    named = DEEPSPEED / f"{chosen.get('deepspeed')}.json"
    if named.exists():
        chosen["deepspeed"] = str(named)
    if chosen.get("deepspeed"):  # it calls functions that torch has renamed, with a warning at each gradient
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if not torch.cuda.is_available():
        chosen |= _on_cpu(config, chosen)
    arguments = TrainingArguments(
        output_dir=str(config.at(config.out)),
        seed=config.seed,
        remove_unused_columns=False,
        **{**_defaults(config, chosen), **chosen},
    )
    if arguments.n_gpu > 1:
        print(
            f"one process trains on one GPU; for all {arguments.n_gpu}: torchrun --nproc_per_node {arguments.n_gpu} "
            "-m stages.train ..."
        )
        arguments._n_gpu = 1  # else the Trainer would wrap the model in DataParallel
    if is_deepspeed_zero3_enabled():
        import deepspeed

        # sharded loading needs deepspeed's ranks; on CPU transformers initialises torch's only
        deepspeed.init_distributed(timeout=arguments.ddp_timeout_delta)
    return arguments


def _on_cpu(config: StageConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """Arguments that change on a machine without a GPU."""
    changes: dict[str, Any] = {"use_cpu": True}
    if chosen.get("bf16") and half_precision(config) is None:
        print("this processor has no instructions for bfloat16 and would emulate it slowly: training in float32")
        changes["bf16"] = False
    if chosen.get("fsdp"):
        print(
            "accelerate shards by FSDP on GPUs only: on CPUs each process keeps the whole model; to shard it there: "
            "--training.fsdp null --training.deepspeed zero3"
        )
    return changes


def half_precision(config: StageConfig) -> torch.dtype | None:
    """The half precision in which a stage trains on this machine; None for float32."""
    chosen = config.training
    if chosen.get("fp16"):
        return torch.float16
    if not chosen.get("bf16"):
        return None
    only_for_speed = not chosen.get("deepspeed") and not config.lora  # both use bf16 to save memory
    emulated = not torch.cuda.is_available() and not multiplies_bfloat16("cpu")
    return None if emulated and only_for_speed else torch.bfloat16


def _defaults(config: StageConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    """Arguments for which the config may give another value."""
    on_gpu = torch.cuda.is_available()
    liger_fits = on_gpu and is_liger_kernel_available() and config.weighs_all_tokens_alike
    return {
        "report_to": "tensorboard" if importlib.util.find_spec("tensorboard") else "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "logging_steps": 20,
        "save_total_limit": 2,
        "train_sampling_strategy": "sequential",  # the order is random already; more steps continue a shorter run
        "logging_nan_inf_filter": False,  # it would log a loss of nan as 0, and wait for the GPU in each pass
        "eval_strategy": "steps",
        "eval_steps": chosen["max_steps"],  # at the end, if nowhere else
        "ddp_find_unused_parameters": False,  # all trained weights are used; the search costs time in each pass
        "dataloader_num_workers": 2 if on_gpu else 0,  # a GPU would wait for blocks
        "use_liger_kernel": config.fused_loss == "always" or (config.fused_loss == "auto" and liger_fits),
        "average_tokens_across_devices": config.local_steps == 1,  # a process that learns alone counts its own tokens
        "gradient_accumulation_steps": config.accumulation(int(os.environ.get("WORLD_SIZE", 1))),
    }

"""What a stage needs, before anything is spent: parameters, memory of each GPU by part, tokens, steps, hours.

    python -m stages.train stages/configs/13b/stage1.yaml --plan --gpus 96 --gpu A100-80G --mfu 0.4

Memory is arithmetic, not a measurement: the rules are in `memory`, and their error is about a tenth.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config import StageConfig
from stages.planning.cluster import Cluster
from stages.planning.hardware import find_gpu, train_flops
from stages.planning.size import Size
from units.runtime.files.json_files import FileError, FileReason, checked, read_json

DEEPSPEED = Path(__file__).parents[1] / "configs" / "deepspeed"
SHARDINGS = (None, "zero2", "zero3", "zero3_offload")  # each needs less memory than the one before it
USABLE = 0.94  # share of a GPU's memory; fragmentation takes the rest
ERROR = 1.1  # factor by which the memory may be underestimated
CONTEXT = 1.5 * 2**30  # bytes of CUDA's context, kernels and NCCL
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a stage needs.

    gpus: those that can share its batch. memory: bytes on each of them, by part. room: bytes that each has. hours:
    None for a GPU of unknown speed. changes: training arguments with which it fits; None if there are none, or it fits.
    """

    size: Size
    gpus: int
    accumulation: int
    batch: int
    tokens_per_step: int
    steps: int
    tokens: int
    memory: dict[str, float]
    room: float
    hours: float | None
    warnings: list[str]
    changes: dict[str, Any] | None

    @property
    def fits(self) -> bool:
        return sum(self.memory.values()) <= USABLE * self.room


def memory(config: StageConfig, size: Size, gpus: int) -> dict[str, float]:
    """Bytes on each GPU, by part.

    Sources: Rajbhandari et al. 2020 (ZeRO) for weights, gradients and Adam; Korthikanti et al. 2022 for activations,
    with attention that never writes its scores, and a gated feed-forward layer.
    """
    training = config.training
    fsdp = bool(training.get("fsdp"))
    stage, offload = (3, False) if fsdp else sharding(training.get("deepspeed"))
    half = bool(training.get("bf16") or training.get("fp16"))
    sharded = training.get("deepspeed") is not None
    tokens = training.get("per_device_train_batch_size", 8) * config.block_size
    kept = weight_bytes(config)  # the residual stream has the same type
    weights = kept * size.parameters * (config.lora.bits / 16 if config.lora else 1)
    parts: dict[str, float] = {
        "weights": weights / (gpus if stage == 3 else 1),
        "gradients": (kept if sharded else 4) * size.learning / (gpus if stage >= 2 else 1),
        "Adam": (12 if sharded and half else 8) * size.learning / (gpus if stage >= 1 else 1),
    }
    if offload:
        parts |= {"weights": 0.0, "Adam": 0.0}
    if fsdp:
        ends = 2 * size.rows * size.hidden  # embeddings are gathered for the whole pass, layers two at a time
        gathered = ends + 2 * (size.parameters - ends) / size.layers
        parts["buffers"] = (2 if half else 4) * gathered
    elif stage == 3:
        parts["buffers"] = 2.0 * min(1e9, size.parameters)  # stage3_max_live_parameters
    elif sharded:
        parts["buffers"] = 2.0 * 3 * min(2e8, size.learning)  # two reduce buckets and a gather bucket
    else:
        copies = 2 * size.parameters if half and not config.lora else 0  # autocast keeps them for the backward pass
        parts["buffers"] = copies + (4 * size.learning if gpus > 1 else 0)  # DDP's buckets
    layer = tokens * (24 * size.hidden + 8 * size.inner)
    checkpointing = training.get("gradient_checkpointing", False)
    stream = size.layers * tokens * size.hidden * kept
    parts["activations"] = stream + layer if checkpointing else size.layers * layer
    parts["logits"] = (
        0.0 if config.fused_loss == "always" else 12.0 * tokens * size.rows
    )  # in half and full precision, and both gradients
    return parts | {"context": CONTEXT}


def weight_bytes(config: StageConfig) -> int:
    """Bytes of a weight as it is loaded; the same rule as loading_arguments in stages/start.py."""
    half = config.training.get("bf16") or config.training.get("fp16")
    return 2 if half and (config.training.get("deepspeed") or config.lora) else 4


def sharding(name: str | None) -> tuple[int, bool]:
    """ZeRO stage of a DeepSpeed file, by name or path, and whether it offloads; (0, False) for none."""
    if name is None:
        return 0, False
    path = DEEPSPEED / f"{name}.json"
    path = path if path.exists() else Path(name)
    zero = read_json(path).get("zero_optimization", {})
    stage = checked(zero, f"{path}: zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise FileError(
            FileReason.INVALID_FIELD, f"{path}: zero_optimization.stage is {stage!r:.60}; it must be 0, 1, 2 or 3"
        )
    return stage, "offload_optimizer" in zero


def make_plan(config: StageConfig, size: Size, cluster: Cluster) -> Plan:
    """Plan a stage, and, if it does not fit, find the cheapest changes with which it does.

    Args:
        size: of the stage's model, from its system.

    Raises: ValueError if the GPU is not known, or if no number of the GPUs divides the batch.
    """
    gpu = find_gpu(cluster.gpu)
    gpus = config.sharing(cluster.gpus) or cluster.gpus
    each, accumulation = config.training.get("per_device_train_batch_size", 8), config.accumulation(gpus)
    batch = each * accumulation * gpus
    steps = config.training["max_steps"]
    per_step = batch * config.block_size
    # the most that attention can take, as if each block were one document: how full blocks are is not known yet
    flops = train_flops(size.multiplying, size.layers, size.hidden, config.block_size, size.updated)
    hours = None
    if gpu.tflops:
        hours = per_step * steps * flops / (gpus * gpu.tflops * 1e12 * cluster.mfu) / 3600
    plan = Plan(
        size,
        gpus,
        accumulation,
        batch,
        per_step,
        steps,
        per_step * steps,
        memory(config, size, gpus),
        gpu.gib * GIB,
        hours,
        [],
        None,
    )
    if gpus < cluster.gpus:
        plan.warnings.append(
            f"{batch} blocks do not divide among {cluster.gpus} GPUs: start this stage on {gpus} of them"
        )
    plan.warnings.extend(size.notes)
    if config.training.get("bf16") and not gpu.bf16:
        plan.warnings.append(f"{gpu.name} has no bf16: --training.bf16 false --training.fp16 true")
    if config.training.get("gradient_checkpointing"):
        stored = dataclasses.replace(config, training={**config.training, "gradient_checkpointing": False})
        without = sum(memory(stored, size, gpus).values())
        if ERROR * without <= USABLE * plan.room:  # with a margin: the advice is only for speed
            plan.warnings.append(
                f"without gradient checkpointing it would be {without / GIB:.1f} GiB, and a step a quarter shorter: "
                "--training.gradient_checkpointing false"
            )
    if not plan.fits:
        return dataclasses.replace(plan, changes=find_fit(config, size, gpus, plan.room))
    return plan


def find_fit(config: StageConfig, size: Size, gpus: int, room: float) -> dict[str, Any] | None:
    """Changes to `training` with which it fits, those that cost least speed first; None if there are none.

    The blocks of a step stay the same: with fewer blocks a pass on each GPU, there are more passes.
    """
    each = config.training.get("per_device_train_batch_size", 8)
    now = config.training.get("deepspeed")
    names = SHARDINGS[SHARDINGS.index(now) if now in SHARDINGS else 1 :]
    for name in (None,) if config.training.get("fsdp") else names:
        for checkpointing in sorted({bool(config.training.get("gradient_checkpointing")), True}):
            for share in (each >> halvings for halvings in range(each.bit_length())):
                changes = {
                    "deepspeed": name,
                    "gradient_checkpointing": checkpointing,
                    "per_device_train_batch_size": share,
                }
                if config.batch is None:
                    if each % share:
                        continue
                    passes = config.training.get("gradient_accumulation_steps", 1) * each // share
                    changes["gradient_accumulation_steps"] = passes
                elif config.batch % (share * gpus):
                    continue
                changed = {key: value for key, value in changes.items() if value != config.training.get(key)}
                tried = dataclasses.replace(config, training={**config.training, **changed})
                if sum(memory(tried, size, gpus).values()) <= USABLE * room:
                    return changed
    return None

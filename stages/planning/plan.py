"""What a stage would take, before anything is spent: parameters, memory of each GPU by part, tokens, steps, hours.

    python -m stages.train stages/configs/13b/stage1.yaml --plan --gpus 96 --gpu A100-80G --mfu 0.4

Memory is arithmetic, not a measurement: the rules stand in `memory`, and a tenth either way is within their error.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from speechgpt.vocab import new_words
from speechgpt.widen import ROW_MULTIPLE
from stages.config import StageConfig, Widening
from stages.planning.hardware import find_gpu, multiplying_parameters, train_flops
from units.codebook import Codebook

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPES = CONFIGS / "shapes.json"  # config.json of the presets' models, so that a plan needs no download
DEEPSPEED = CONFIGS / "deepspeed"
ASSUMED_UNITS = 1000  # while there is no encoder yet: the paper's
SHARDINGS = (None, "zero2", "zero3", "zero3_offload")  # each needs less memory than the one before it
USABLE = 0.94  # of a GPU's memory; the rest is lost between allocations
ERROR = 1.1  # how far the memory may be off
CONTEXT = 1.5 * 2**30  # bytes that CUDA, its kernels and NCCL take
GIB = 2**30


@dataclass
class Cluster:
    """What a plan is made for."""

    gpus: int = 8
    """For --plan: how many GPUs."""
    gpu: str = "A100-80G"
    """For --plan: their kind, such as A100-80G, or only their memory, such as 32G."""
    mfu: float = 0.4
    """For --plan: share of the GPUs' peak that training reaches (model FLOPs utilisation)."""


@dataclass(frozen=True)
class Size:
    """A model by its numbers. learning: parameters that train. multiplying: those that take part in matrix products;
    updated: those of them that train."""

    parameters: int
    learning: int
    multiplying: int
    updated: int
    layers: int
    hidden: int
    inner: int
    rows: int
    assumed_units: bool


@dataclass(frozen=True)
class Plan:
    """What a stage takes. gpus: those that can share its batch. memory: bytes on each of them by part. hours: None for a
    GPU of unknown speed."""

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


def model_shape(config: StageConfig, file: Path | None) -> tuple[PreTrainedConfig, bool]:
    """Shape of the model that a stage trains, after widening, and whether its number of units was assumed.

    Found in the run folder; else, for a stage not trained yet, through the neighbouring file that makes it; else at the hub.
    Units are counted on top of all rows, though widening cuts those that a model has beyond its tokenizer's words (Qwen2.5:
    some hundred); to know them would take the tokenizer.
    """
    start, assumed = config.at(config.model), False
    neighbours = [] if file is None else [path for path in sorted(file.parent.glob("*.yaml")) if path != file]
    files = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in neighbours}
    maker = next((path for path, given in files.items() if given.get("out") == config.model), None)
    known = json.loads(SHAPES.read_text(encoding="utf-8"))
    if (start / "config.json").exists():
        shape = AutoConfig.from_pretrained(start)
    elif maker:
        given = files[maker]
        widen = Widening(**given["widen"]) if "widen" in given else None
        return model_shape(dataclasses.replace(config, model=given["model"], widen=widen), maker)
    elif config.model in known:
        shape = AutoConfig.for_model(**known[config.model])
    else:
        shape = AutoConfig.from_pretrained(config.model)
    if config.widen:
        book = config.at(config.widen.encoder) / "codebook.json"
        assumed = not book.exists()
        units = ASSUMED_UNITS if assumed else Codebook.load(book).size
        text = shape.get_text_config()  # of models that see as well, a part of their config
        rows = text.vocab_size + len(new_words(units))
        text.vocab_size = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    return shape, assumed


def model_size(config: StageConfig, file: Path | None) -> Size:
    """A model's numbers, counted on a model without memory."""
    shape, assumed = model_shape(config, file)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    total = model.num_parameters()
    multiplying = multiplying_parameters(model)
    learning, updated = total, multiplying
    if config.lora:
        learning = updated = sum(
            config.lora.r * sum(module.weight.shape)
            for name, module in model.named_modules()
            if name.rpartition(".")[2] in config.lora.targets
        )
    elif config.trainable == "embeddings":
        matrices = {id(part.weight): part.weight.numel() for part in (model.get_input_embeddings(), model.lm_head)}
        learning, updated = sum(matrices.values()), model.lm_head.weight.numel()
    text = shape.get_text_config()
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    return Size(total, learning, multiplying, updated, text.num_hidden_layers, text.hidden_size, inner,
                text.vocab_size, assumed)  # fmt: skip


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
    kept = weight_bytes(config)  # of the residual stream as well
    weights = kept * size.parameters * (config.lora.bits / 16 if config.lora else 1)
    parts: dict[str, float] = {
        "weights": weights / (gpus if stage == 3 else 1),
        "gradients": (kept if sharded else 4) * size.learning / (gpus if stage >= 2 else 1),
        "Adam": (12 if sharded and half else 8) * size.learning / (gpus if stage >= 1 else 1),
    }
    if offload:
        parts |= {"weights": 0.0, "Adam": 0.0}
    if fsdp:
        ends = 2 * size.rows * size.hidden  # the embeddings, gathered for the whole pass; of the layers two at a time
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
    )  # half, full, and both gradients
    return parts | {"context": CONTEXT}


def weight_bytes(config: StageConfig) -> int:
    """Bytes of a weight as it is loaded; loading_arguments in stages/start.py decides the same."""
    half = config.training.get("bf16") or config.training.get("fp16")
    return 2 if half and (config.training.get("deepspeed") or config.lora) else 4


def sharding(name: str | None) -> tuple[int, bool]:
    """ZeRO stage of a DeepSpeed file, by name or path, and whether it offloads; (0, False) for none."""
    if name is None:
        return 0, False
    path = DEEPSPEED / f"{name}.json"
    zero = json.loads((path if path.exists() else Path(name)).read_text(encoding="utf-8"))["zero_optimization"]
    return zero["stage"], "offload_optimizer" in zero


def make_plan(config: StageConfig, cluster: Cluster, file: Path | None = None) -> Plan:
    """Plan a stage, and, if it does not fit, look for the cheapest changes by which it does.

    Args:
        file: the config's own, to find the stages before it.

    Raises: ValueError if the GPU is not known or the batch does not divide among any number of them.
    """
    gpu = find_gpu(cluster.gpu)
    size = model_size(config, file)
    gpus = config.sharing(cluster.gpus) or cluster.gpus
    each, accumulation = config.training.get("per_device_train_batch_size", 8), config.accumulation(gpus)
    batch = each * accumulation * gpus
    steps = config.training["max_steps"]
    per_step = batch * config.block_size
    # attention at its most, as if a block were one document: of what is packed nothing is known yet
    flops = train_flops(size.multiplying, size.layers, size.hidden, config.block_size, size.updated)
    hours = None
    if gpu.tflops:
        hours = per_step * steps * flops / (gpus * gpu.tflops * 1e12 * cluster.mfu) / 3600
    plan = Plan(size, gpus, accumulation, batch, per_step, steps, per_step * steps, memory(config, size, gpus),
                gpu.gib * GIB, hours, [], None)  # fmt: skip
    if gpus < cluster.gpus:
        plan.warnings.append(
            f"{batch} blocks do not divide among {cluster.gpus} GPUs: start this stage on {gpus} of them"
        )
    if size.assumed_units:
        plan.warnings.append(f"there is no unit encoder yet; {ASSUMED_UNITS:,} units are assumed")
    if config.training.get("bf16") and not gpu.bf16:
        plan.warnings.append(f"{gpu.name} has no bf16: --training.bf16 false --training.fp16 true")
    if config.training.get("gradient_checkpointing"):
        stored = dataclasses.replace(config, training={**config.training, "gradient_checkpointing": False})
        without = sum(memory(stored, size, gpus).values())
        if ERROR * without <= USABLE * plan.room:  # to be sure of it: the advice is only for speed
            plan.warnings.append(
                f"without gradient checkpointing it would be {without / GIB:.1f} GiB, and a step a quarter shorter: "
                "--training.gradient_checkpointing false"
            )
    if not plan.fits:
        return dataclasses.replace(plan, changes=find_fit(config, size, gpus, plan.room))
    return plan


def find_fit(config: StageConfig, size: Size, gpus: int, room: float) -> dict[str, Any] | None:
    """Changes to `training` that make it fit, those that cost least speed first; None if nothing does.

    The blocks of a step stay as many: what a smaller share of each GPU leaves over, more passes do.
    """
    each = config.training.get("per_device_train_batch_size", 8)
    now = config.training.get("deepspeed")
    names = SHARDINGS[SHARDINGS.index(now) if now in SHARDINGS else 1 :]
    for name in (None,) if config.training.get("fsdp") else names:
        for checkpointing in sorted({bool(config.training.get("gradient_checkpointing")), True}):
            for share in (each >> halvings for halvings in range(each.bit_length())):
                changes = {"deepspeed": name, "gradient_checkpointing": checkpointing,
                           "per_device_train_batch_size": share}  # fmt: skip
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

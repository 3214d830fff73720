"""What GPUs hold and how fast they multiply, and how much a model asks of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. gib: memory, GiB. tflops: dense half-precision peak with fp32 sums, 10^12 a second; None if
    unknown. bf16: whether it has it."""

    name: str
    gib: float
    tflops: float | None
    bf16: bool = True


# From the makers' data sheets; without sparsity.
GPUS = {gpu.name: gpu for gpu in (
    Gpu("B200-180G", 180, 2250), Gpu("H200-141G", 140, 989), Gpu("H100-80G", 80, 989), Gpu("A100-80G", 80, 312),
    Gpu("A100-40G", 40, 312), Gpu("L40S-48G", 45, 362), Gpu("A6000-48G", 48, 155), Gpu("V100-32G", 32, 125, False),
    Gpu("V100-16G", 16, 125, False), Gpu("RTX5090-32G", 32, 209), Gpu("RTX4090-24G", 24, 165),
    Gpu("RTX3090-24G", 24, 71), Gpu("A10-24G", 23, 125), Gpu("L4-24G", 23, 121), Gpu("T4-16G", 15, 65, False),
)}  # fmt: skip


def find_gpu(name: str) -> Gpu:
    """A GPU by its name, such as A100-80G, or any of a size: 32G.

    Raises: ValueError naming those that are known.
    """
    known = {key.lower(): gpu for key, gpu in GPUS.items()}
    if name.lower() in known:
        return known[name.lower()]
    if size := re.fullmatch(r"(\d+)G", name, re.IGNORECASE):
        return Gpu(name, float(size[1]), None)
    raise ValueError(f"gpu {name!r} is not known; it is one of {', '.join(GPUS)}, or only its memory, such as 32G")


def this_gpu(device_name: str, gib: float) -> Gpu | None:
    """The known GPU that CUDA calls `device_name`, such as "NVIDIA A100-SXM4-80GB"."""
    joined = re.sub(r"RTX (?=\d)", "RTX", device_name.upper())  # RTX 3090 is a name, the RTX of RTX A6000 a family
    words = re.sub(r"[^A-Z0-9]+", " ", joined).split()
    alike = [gpu for name, gpu in GPUS.items() if name.split("-")[0] in words]
    return min(alike, key=lambda gpu: abs(gpu.gib - gib), default=None)


def train_flops(parameters: int, layers: int, hidden: int, block: int, frozen: bool = False) -> float:
    """Floating-point operations that training needs for one token, attention within the causal triangle.

    Args:
        parameters: those that multiply: all but the rows that are only looked up.
        block: tokens of a block.
        frozen: only adapters learn, so the weights' own gradients are not computed.

    Source: Chowdhery et al. 2022 (PaLM), appendix B; the triangle halves its attention term.
    """
    return (4 if frozen else 6) * parameters + 6.0 * layers * hidden * block


def multiplying_parameters(model: Any) -> int:
    """Parameters of a model that multiply: all, without an input embedding that is not also the output's."""
    size = {id(p): getattr(p, "ds_numel", p.numel()) for p in model.parameters()}  # ZeRO-3 leaves empty stand-ins
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    return sum(size.values()) - (0 if tied else size[id(embedding.weight)])

"""Memory and speed of GPUs, and the floating-point operations of a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    gib: memory, GiB. tflops: dense half-precision peak with fp32 sums, 10^12 a second; None if unknown. bf16: whether
    it has bfloat16.
    """

    name: str
    gib: float
    tflops: float | None
    bf16: bool = True


# From the manufacturers' data sheets; without sparsity.
_KNOWN = (
    Gpu("B200-180G", 180, 2250),
    Gpu("H200-141G", 140, 989),
    Gpu("H200-NVL-141G", 140, 835),
    Gpu("H100-80G", 80, 989),
    Gpu("H100-NVL-94G", 93, 835),
    Gpu("H100-PCIE-80G", 80, 756),
    Gpu("A100-80G", 80, 312),
    Gpu("A100-40G", 40, 312),
    Gpu("L40S-48G", 45, 362),
    Gpu("A6000-48G", 48, 155),
    Gpu("V100-32G", 32, 125, False),
    Gpu("V100-16G", 16, 125, False),
    Gpu("RTX5090-32G", 32, 209),
    Gpu("RTX4090-24G", 24, 165),
    Gpu("RTX3090-24G", 24, 71),
    Gpu("A10-24G", 23, 125),
    Gpu("L4-24G", 23, 121),
    Gpu("T4-16G", 15, 65, False),
)
GPUS = {gpu.name: gpu for gpu in _KNOWN}


def find_gpu(name: str) -> Gpu:
    """A GPU by its name, such as A100-80G, or by its memory alone: 32G.

    Raises: ValueError listing the known names.
    """
    known = {key.lower(): gpu for key, gpu in GPUS.items()}
    if name.lower() in known:
        return known[name.lower()]
    if size := re.fullmatch(r"(\d+)G", name, re.IGNORECASE):
        return Gpu(name, float(size[1]), None)
    raise ValueError(f"gpu {name!r} is not known; it is one of {', '.join(GPUS)}, or only its memory, such as 32G")


def this_gpu(device_name: str, gib: float) -> Gpu | None:
    """The known GPU with CUDA's name `device_name`, such as "NVIDIA A100-SXM4-80GB"; None if there is none.

    Of several, the one with the most words in that name (an H100 PCIe is slower than an H100), then the nearest in
    memory.
    """
    joined = re.sub(r"RTX (?=\d)", "RTX", device_name.upper())  # RTX 3090 is a name, the RTX of RTX A6000 a family
    words = set(re.sub(r"[^A-Z0-9]+", " ", joined).split())
    named = {gpu: name.upper().split("-")[:-1] for name, gpu in GPUS.items()}
    alike = [gpu for gpu, parts in named.items() if words.issuperset(parts)]
    return min(alike, key=lambda gpu: (-len(named[gpu]), abs(gpu.gib - gib)), default=None)


def train_flops(parameters: int, layers: int, hidden: int, seen: float, learning: int | None = None) -> float:
    """Floating-point operations that training needs for one token, attention within the causal triangle.

    Args:
        parameters: those that take part in matrix products: all but embedding rows that are only looked up.
        seen: length of a token's document, on average over tokens.
        learning: those of `parameters` that are trained; the others need no weight gradient. None: all.

    Source: Chowdhery et al. 2022 (PaLM), appendix B; the triangle halves its attention term.
    """
    return 4.0 * parameters + 2.0 * (parameters if learning is None else learning) + 6.0 * layers * hidden * seen


def multiplying_parameters(model: Any, learning: bool = False) -> int:
    """Parameters of a model that take part in matrix products: all, without an untied input embedding.

    Args:
        learning: count only those that are trained.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is embedding.weight
    counted = {id(p): p for p in model.parameters() if p.requires_grad or not learning}
    if not tied:
        counted.pop(id(embedding.weight), None)
    return sum(map(_count, counted.values()))


def _count(weight: Any) -> int:
    """Numbers in a parameter: ZeRO-3 leaves empty placeholders, and a byte holds two weights of 4 bits."""
    if packed := getattr(weight, "quant_state", None):
        return math.prod(packed.shape)
    return getattr(weight, "ds_numel", weight.numel())

"""Devices: whether this machine has one, and bfloat16 where it multiplies it (elsewhere that takes twice as long as float32)."""

from __future__ import annotations

import torch


def check_device(device: str | torch.device) -> torch.device:
    """The device of a name, such as cpu, cuda or cuda:1, if this machine has it.

    Raises: ValueError that says which there are.
    """
    accelerator = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if accelerator else 0
    there = ["cpu"]
    if accelerator and count:
        there += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if str(device) not in there:
        raise ValueError(f"no device {str(device)!r} here; torch {torch.__version__} finds {', '.join(there)}")
    return torch.device(device)


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for bfloat16 (on a CPU: AMX, AVX512_BF16, or ARM's)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(has for instructions, has in torch.cpu.get_capabilities().items() if "bf16" in instructions)


def autocast(device: str | torch.device) -> torch.autocast:
    """The context that training computes in: bfloat16 where the device multiplies it, else float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, multiplies_bfloat16(device))

"""Devices and their precision: whether this machine has a device, and whether it has instructions for bfloat16.

A device without them emulates bfloat16, which takes twice as long as float32.
"""

from __future__ import annotations

import torch


def check_device(device: str | torch.device) -> torch.device:
    """The device with a name such as cpu, cuda or cuda:1.

    Raises: ValueError listing the devices of this machine, if it has no such device.
    """
    accelerator = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if accelerator else 0
    found = ["cpu"]
    if accelerator and count:
        found += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if str(device) not in found:
        raise ValueError(f"no device {str(device)!r} here; torch {torch.__version__} finds {', '.join(found)}")
    return torch.device(device)


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for bfloat16 (on a CPU: AMX, AVX512_BF16, or ARM's)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(has for instructions, has in torch.cpu.get_capabilities().items() if "bf16" in instructions)


def autocast(device: str | torch.device) -> torch.autocast:
    """The context for training: bfloat16 if the device has instructions for it, else float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, multiplies_bfloat16(device))

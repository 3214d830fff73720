"""bfloat16 where the processor multiplies it: elsewhere it is emulated, and takes twice as long as float32."""

from __future__ import annotations

import torch


def multiplies_bfloat16(device: str | torch.device) -> bool:
    """Whether a device has instructions for bfloat16 (on a CPU: AMX, AVX512_BF16, or ARM's)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return any(has for instructions, has in torch.cpu.get_capabilities().items() if "bf16" in instructions)


def autocast(device: str | torch.device) -> torch.autocast:
    """The context that training computes in: bfloat16 where the device multiplies it, else float32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, multiplies_bfloat16(device))

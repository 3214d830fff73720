"""The GPUs that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Cluster:
    """GPUs of one kind."""

    gpus: int = 8
    """For --plan: number of GPUs."""
    gpu: str = "A100-80G"
    """For --plan: kind of GPU, such as A100-80G, or only its memory, such as 32G."""
    mfu: float = 0.4
    """For --plan: share of the GPUs' peak that training reaches (model FLOPs utilisation)."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"gpus is {self.gpus}; it is 1 or more")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; it is a share, above 0 and at most 1")

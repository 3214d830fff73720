"""The GPUs that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from units.runtime.command import check_range
from units.runtime.settings import check_types


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
        check_types(self)
        check_range("gpus", self.gpus, 1)
        check_range("mfu", self.mfu, 0, 1, exclusive=True)

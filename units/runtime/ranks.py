"""Ranks: which process this is among those that share the work, from options, torchrun or SLURM."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """rank, world: this process among all that share the work. local_rank, local_world: among those of this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int

    def device(self, device: str) -> str:
        """The device of this process: `cuda` becomes another GPU for each process, as far as there are enough."""
        if device != "cuda" or (self.local_world == 1 and self.local_rank == 0):
            return device
        import torch

        return f"cuda:{self.local_rank % max(1, torch.cuda.device_count())}"


def this_rank(rank: int | None = None, world: int | None = None) -> Ranks:
    """The ranks that the caller gives, else those of torchrun's or SLURM's environment, else one process alone.

    SLURM_NTASKS is not read: it is also set in a batch script, where this process is alone and srun would start the
    others.

    Args:
        rank: from 0 to world - 1; None reads the environment.
        world: the number of processes; None reads the environment.

    Raises: ValueError if the rank is outside 0 .. world - 1, or a variable is not a number.
    """
    rank = _from_environment(("RANK", "SLURM_PROCID"), 0) if rank is None else rank
    world = _from_environment(("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), 1) if world is None else world
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} in a world of {world}; ranks go from 0 to {world - 1}")
    local_world = min(world, _from_environment(("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"), 1))
    return Ranks(rank, world, _from_environment(("LOCAL_RANK", "SLURM_LOCALID"), 0), local_world)


def _from_environment(names: tuple[str, ...], default: int) -> int:
    """The first of some variables that is set. SLURM's "8(x2),4" is read as 8."""
    name = next((name for name in names if name in os.environ), None)
    if name is None:
        return default
    value = re.split(r"[(,]", os.environ[name])[0]
    if not value.strip().isdecimal():
        raise ValueError(f"the environment variable {name} is {os.environ[name]!r}; it is a whole number of 0 or more")
    return int(value)

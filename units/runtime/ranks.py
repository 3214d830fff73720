"""Which process this is among those that share the work, as the caller, torchrun or SLURM say."""

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
        """The device of this process: each of several processes of a machine takes a GPU of its own where there are enough."""
        if device != "cuda" or (self.local_world == 1 and self.local_rank == 0):
            return device
        import torch

        return f"cuda:{self.local_rank % max(1, torch.cuda.device_count())}"


def this_rank(rank: int | None = None, world: int | None = None) -> Ranks:
    """What the caller says, else torchrun's variables, else those of SLURM's step; one process where nobody says anything.

    SLURM_NTASKS is not asked: it is set in a batch script too, where this process is alone and srun starts the others.

    Raises: ValueError if the rank is not one of 0 .. world - 1, or a variable is not a number.
    """
    rank = _from_environment(("RANK", "SLURM_PROCID"), 0) if rank is None else rank
    world = _from_environment(("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"), 1) if world is None else world
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of a world of {world}; ranks go from 0 to {world - 1}")
    local_world = min(world, _from_environment(("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE"), 1))
    return Ranks(rank, world, _from_environment(("LOCAL_RANK", "SLURM_LOCALID"), 0), local_world)


def _from_environment(names: tuple[str, ...], default: int) -> int:
    """The first of some variables that is set; of SLURM's "8(x2),4" the 8."""
    name = next((name for name in names if name in os.environ), None)
    if name is None:
        return default
    value = re.split(r"[(,]", os.environ[name])[0]
    if not value.strip().isdecimal():
        raise ValueError(f"the environment says {name}={os.environ[name]!r}; it is a whole number, 0 or more")
    return int(value)

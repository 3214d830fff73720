"""Which process this is, as the caller, torchrun and SLURM say."""

from __future__ import annotations

import pytest
import torch

from units.runtime.ranks import Ranks, this_rank

VARIABLES = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE SLURM_PROCID SLURM_STEP_NUM_TASKS SLURM_LOCALID \
SLURM_STEP_TASKS_PER_NODE SLURM_NTASKS".split()


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_where_no_variables_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_rank() == Ranks(0, 1, 0, 1)
    assert this_rank(1, 2) == Ranks(1, 2, 0, 1)
    monkeypatch.setenv("SLURM_NTASKS", "8")  # set in a batch script, where this process is alone
    assert this_rank() == Ranks(0, 1, 0, 1)


def test_torchrun_and_slurm_say(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_PROCID": 11, "SLURM_STEP_NUM_TASKS": 20, "SLURM_LOCALID": 3, "SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, str(value))
    assert this_rank() == Ranks(11, 20, 3, 8)
    for name, value in {"RANK": 5, "WORLD_SIZE": 16, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    assert this_rank() == Ranks(5, 16, 1, 4)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_outside_the_world_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank} .*world of {world}"):
        this_rank(rank, world)


def test_a_variable_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "eight")
    with pytest.raises(ValueError, match="WORLD_SIZE is 'eight'"):
        this_rank()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(0, 1, 0, 1).device("cuda") == "cuda"
    assert [Ranks(i, 4, i, 4).device("cuda") for i in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert Ranks(1, 4, 1, 4).device("cpu") == "cpu"
    assert Ranks(1, 4, 1, 4).device("cuda:1") == "cuda:1"

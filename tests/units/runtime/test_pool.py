"""Worker processes share jobs, and one that is killed is reported."""

from __future__ import annotations

import os
import signal

import pytest

from units.runtime.pool import Workers


def doubled(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def killed(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_process_or_one_job_needs_no_others() -> None:
    with Workers(1) as one, Workers(4) as four, Workers() as usual:
        for found in (one.run(doubled, [1, 2, 3]), four.run(doubled, [5]), usual.run(doubled, [1, 2], much=False)):
            assert {process for _, process in found} == {os.getpid()}


def test_processes_share_the_jobs_and_stay() -> None:
    with Workers(2) as pool:
        first, second = (list(pool.run(doubled, range(8))) for _ in range(2))
    assert sorted(number for number, _ in first) == sorted(number for number, _ in second) == list(range(0, 16, 2))
    processes = {process for _, process in first + second}
    assert os.getpid() not in processes and len(processes) <= 2


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_process_is_an_error() -> None:
    with Workers(2) as pool, pytest.raises(RuntimeError, match="one of 2 processes was killed"):
        list(pool.run(killed, range(4)))

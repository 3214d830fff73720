"""Threads of a training that times its own steps."""

from __future__ import annotations

import pytest
import torch

from stages.callbacks import threads as module
from stages.callbacks.threads import AGAIN, EVERY, FIRST, LONGEST, RECENT, TRIAL, FastestThreads, faster


@pytest.mark.parametrize(
    ("one", "two", "chosen"), [([2.0, 2.1, 9.0], [1.0, 1.1, 1.2], 2), ([2.0], [1.9], 1), ([2.0], [9.0], 1)]
)
def test_more_threads_must_be_clearly_faster(one: list[float], two: list[float], chosen: int) -> None:
    assert faster({1: one, 2: two}) == chosen


class Machine:
    """A machine whose steps take given seconds by the number of threads, and whose clock only they move."""

    def __init__(self, monkeypatch, seconds: dict[int, float]) -> None:
        self.seconds, self.threads, self.now = seconds, max(seconds), 0.0
        monkeypatch.setattr(torch, "get_num_threads", lambda: self.threads)
        monkeypatch.setattr(torch, "set_num_threads", lambda count: setattr(self, "threads", count))
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

    def train(self, callback: FastestThreads, steps: int) -> list[int]:
        used = []
        for _ in range(steps):
            callback.on_step_begin(None, None, None)
            used.append(self.threads)
            self.now += self.seconds[self.threads]
            callback.on_step_end(None, None, None)
        return used


def test_the_faster_number_is_found_and_found_again_when_the_machine_has_other_work(monkeypatch) -> None:
    machine = Machine(monkeypatch, {1: 1.0, 2: 0.6})
    callback = FastestThreads()
    callback.on_train_begin(None, None, None)
    used = machine.train(callback, FIRST + 2 * TRIAL + EVERY)
    assert used[:FIRST] == [1] * FIRST and used[FIRST : FIRST + 2 * TRIAL] == [1, 2] * TRIAL
    assert set(used[FIRST + 2 * TRIAL :]) == {2}
    machine.seconds = {1: 1.1, 2: 4.0}
    for wait in (AGAIN, 2 * AGAIN, 4 * AGAIN, LONGEST, LONGEST):  # one slow step is enough, and each trial waits longer
        assert machine.train(callback, 2 + wait) == [1, 2] + [1] * wait
    machine.seconds = {1: 1.0, 2: 0.5}
    used = machine.train(callback, 2 * TRIAL + EVERY + 1)
    assert used == [1, 2] * TRIAL + [2] * EVERY + [1]
    callback.on_train_end(None, None, None)
    assert machine.threads == 2


def test_all_threads_are_given_up_as_soon_as_they_are_slower(monkeypatch) -> None:
    machine = Machine(monkeypatch, {1: 1.0, 2: 0.6})
    callback = FastestThreads()
    callback.on_train_begin(None, None, None)
    machine.train(callback, FIRST + 2 * TRIAL + EVERY // 2)
    machine.seconds = {1: 1.1, 2: 4.0}
    slow = RECENT // 2 + 1  # more than half of the recent steps
    assert machine.train(callback, slow + 2 + AGAIN) == [2] * slow + [1, 2] + [1] * AGAIN


def test_one_thread_is_never_tried_against_itself(monkeypatch) -> None:
    machine = Machine(monkeypatch, {1: 1.0})
    callback = FastestThreads()
    callback.on_train_begin(None, None, None)
    assert machine.train(callback, 3 * EVERY) == [1] * (3 * EVERY)

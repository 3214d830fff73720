"""CPU threads of a training: as many as its config says, or as many as pay, found by timing its own steps."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from transformers import TrainerCallback

FIRST = 4  # steps before the first trial: the first ones allocate memory
EVERY = 100  # steps from one trial to the next
TRIAL = 3  # steps of a trial on each number of threads
PAYS = 1.15  # all threads are used if they are so many times as fast as one


class FastestThreads(TrainerCallback):
    """Trains on one thread or on all, whichever is faster at the time.

    A few steps are timed on one thread and on all by turns, and again every hundred steps, since a process that starts
    beside the training slows many threads down far more than one. All are the threads that torch has at the start of
    the training (OMP_NUM_THREADS, or the cores).
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._since_trial = EVERY - FIRST
        self._seconds: dict[int, list[float]] = {}
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        torch.set_num_threads(1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        self._since_trial += 1
        if self._all > 1 and self._since_trial > EVERY:
            torch.set_num_threads((1, self._all)[self._since_trial % 2])
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        if self._since_trial <= EVERY:
            return
        self._seconds.setdefault(torch.get_num_threads(), []).append(time.perf_counter() - self._began)
        if self._since_trial == EVERY + 2 * TRIAL:
            torch.set_num_threads(faster(self._seconds))
            self._since_trial, self._seconds = 0, {}

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        torch.set_num_threads(self._all)


def faster(seconds: dict[int, list[float]]) -> int:
    """The number of threads to go on with.

    Args:
        seconds: of each step, by the number of threads

    Returns: the larger number if its median step is clearly faster, else the smaller one.
    """
    few, many = min(seconds), max(seconds)
    pays = statistics.median(seconds[few]) > PAYS * statistics.median(seconds[many])
    return many if pays else few

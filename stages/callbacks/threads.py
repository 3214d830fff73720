"""CPU threads of a training: as many as its config says, or as many as pay, found by timing its own steps."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

import torch
from transformers import TrainerCallback

FIRST = 4  # steps before the first trial: the first ones allocate memory
EVERY = 100  # steps on all threads until the next trial
AGAIN, LONGEST = 25, 200  # steps on one thread until the next trial: the first time, and at most
TRIAL = 3  # steps of a trial on each number of threads
RECENT = 5  # steps on all threads whose median is compared with one thread's
PAYS = 1.15  # all threads are used if they are so many times as fast as one


class FastestThreads(TrainerCallback):
    """Trains on one thread or on all, whichever is faster at the time.

    A few steps are timed on one thread and on all by turns, and again later, since a process that starts beside the
    training slows many threads down far more than one; at once, if steps on all threads take longer than those on one
    thread did. A step on all threads that is slower than those on one ends the trial; the next one comes soon, as the
    step may have been a slow one by chance, and then after twice as many steps each time. All are the threads that
    torch has at the start of the training (OMP_NUM_THREADS, or the cores).
    """

    def __init__(self) -> None:
        self._all = torch.get_num_threads()
        self._next_trial = FIRST  # steps until then
        self._wait = AGAIN  # steps after the next trial that one thread wins
        self._seconds: dict[int, list[float]] = {}
        self._one = 0.0  # of a step on one thread, in the last trial
        self._recent: deque[float] = deque(maxlen=RECENT)  # of the last steps on all threads
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        torch.set_num_threads(1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        if self._all > 1 and not self._next_trial:
            timed = sum(map(len, self._seconds.values()))
            torch.set_num_threads((1, self._all)[timed % 2])
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        seconds, threads = time.perf_counter() - self._began, torch.get_num_threads()
        if self._next_trial:
            self._next_trial = 0 if threads > 1 and self._slowed(seconds) else self._next_trial - 1
            return
        if self._all == 1:
            return
        self._seconds.setdefault(threads, []).append(seconds)
        one, many = self._seconds[1], self._seconds.get(self._all, [])
        if len(many) == TRIAL or (many and many[-1] > max(one)):
            self._choose(faster(self._seconds))

    def _slowed(self, seconds: float) -> bool:
        """Whether the last steps on all threads, and this one, took longer than a step on one thread in the trial."""
        self._recent.append(seconds)
        return len(self._recent) == RECENT and statistics.median(self._recent) > self._one

    def _choose(self, threads: int) -> None:
        """End the trial."""
        torch.set_num_threads(threads)
        self._one = statistics.median(self._seconds[1])
        self._seconds = {}
        self._recent.clear()
        if threads > 1:
            self._next_trial, self._wait = EVERY, AGAIN
        else:
            self._next_trial, self._wait = self._wait, min(2 * self._wait, LONGEST)

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

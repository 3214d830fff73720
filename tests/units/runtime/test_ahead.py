"""Threads that work ahead keep the order, keep little, and stop where something fails."""

import threading
import time

import pytest

from units.runtime.ahead import one_ahead, worked_ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_order_is_that_of_the_items(workers):
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))  # so that later ones end first
        return item * item

    assert list(worked_ahead(work, iter(range(20)), workers)) == [item * item for item in range(20)]


def test_threads_stay_at_most_two_results_ahead():
    begun: list[int] = []
    results = worked_ahead(begun.append, range(1000), 3)
    for _ in range(5):
        next(results)
    time.sleep(0.05)
    assert len(begun) <= 5 + 2 * 3
    results.close()
    assert len(begun) < 20


def test_heavy_results_wait_alone_and_light_ones_together():
    begun: list[int] = []
    results = worked_ahead(begun.append, [3, 30, 3, 3, 3, 1], 4, weigh=float, room=7.0)
    ahead = []
    for taken, _ in enumerate(results, 1):
        time.sleep(0.02)
        ahead.append(begun[taken:])
    assert ahead == [[], [], [3], [3, 1], [1], []]


def test_each_thread_is_prepared_once_and_works_at_the_same_time_as_the_others():
    prepared: list[int] = []
    together = threading.Barrier(2, timeout=10)  # two items must be at work for either to end
    list(worked_ahead(lambda _: together.wait(), range(4), 2, prepare=lambda: prepared.append(threading.get_ident())))
    assert len(prepared) == len(set(prepared)) == 2


def test_an_error_comes_at_its_item_and_what_waits_is_not_begun():
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise ValueError("item 3")
        return item

    results = worked_ahead(work, range(1000), 1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(results)
    assert len(begun) < 10


def test_the_next_item_is_made_while_the_last_is_in_use():
    made: list[int] = []
    asked_again = threading.Event()

    def items():
        for item in range(4):
            if item == 1:
                asked_again.set()
            made.append(item)
            yield item

    ahead = one_ahead(items())
    assert next(ahead) == 0
    assert asked_again.wait(10), "no thread works on item 1 while item 0 is in use"
    time.sleep(0.05)
    assert made == [0, 1], "one item ahead, not more"
    assert list(ahead) == [1, 2, 3]


def test_an_error_in_making_an_item_comes_when_its_turn_has_come():
    def items():
        yield 1
        raise ValueError("no second")

    ahead = one_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="no second"):
        next(ahead)
    assert list(one_ahead(iter([]))) == []

"""Threads that draw from one model at once get what each gets alone; one that stops frees its rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_parts import talkative, tones

from speechgpt.dialogue import Message
from speechgpt.generation.gathering import Gatherer
from speechgpt.generation.generate import context_length, draws, generate
from speechgpt.generation.shared import Stopped, share, shared, stoppable
from speechgpt.inference import SpeechGPT
from speechgpt.sampling import Sampling

CALLS = 24
FORMS = ("chain", "text", "units")


@pytest.fixture(scope="module")
def alone(model_folder: Path) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(model_folder))


@pytest.fixture(scope="module")
def gpt(model_folder: Path) -> SpeechGPT:
    gpt = talkative(SpeechGPT.from_pretrained(model_folder))
    gpt.share(6)
    return gpt


def at_once(count: int, work: Callable[[int], object]) -> list:
    """Results of threads that begin together; an error is one."""
    found: list = [None] * count

    def call(number: int) -> None:
        try:
            found[number] = work(number)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            found[number] = error

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return found


def drawn(gpt: SpeechGPT, number: int) -> list[list[int]]:
    """Replies to one, two or three prompts, greedy or drawn, of any form."""
    prompts = [
        gpt.dialogue.prompt([Message("human", (tuple(range(1 + (number + i) % 9)) * (1 + i),))])
        for i in range(1 + number % 3)
    ]
    sampling = Sampling(0.0 if number % 4 == 0 else 1.0, seed=number, max_new_tokens=5 + 6 * (number % 5))
    return generate(gpt.model, gpt.dialogue, prompts, FORMS[number % len(FORMS)], sampling)  # type: ignore[arg-type]


def test_rows_that_share_a_batch_are_those_drawn_alone(gpt: SpeechGPT, alone: SpeechGPT) -> None:
    wanted = [drawn(alone, number) for number in range(CALLS)]
    assert at_once(CALLS, lambda number: drawn(gpt, number)) == wanted


def test_answers_are_those_given_alone(gpt: SpeechGPT, alone: SpeechGPT) -> None:
    def answered(one: SpeechGPT, number: int) -> tuple:
        sampling = Sampling(1.0, seed=number, max_new_tokens=100, candidates=1 + number % 3)
        found = one.answer(tones(0.3 + 0.1 * (number % 3), number), sampling)
        return found.transcript, found.text, found.units, None if found.wav is None else len(found.wav)

    wanted = [answered(alone, number) for number in range(9)]
    assert at_once(9, lambda number: answered(gpt, number)) == wanted


def test_an_error_is_its_callers_alone(gpt: SpeechGPT, alone: SpeechGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [drawn(alone, number) for number in range(8)]
    prompt = gpt.dialogue.prompt([Message("human", ((1, 2),))])

    def work(number: int) -> object:
        if number % 2:
            return drawn(gpt, number)
        return generate(gpt.model, gpt.dialogue, [prompt * 100], "text", Sampling())

    found = at_once(8, work)
    assert all(isinstance(one, ValueError) for one in found[::2])
    assert found[1::2] == wanted[1::2]


def test_an_error_of_the_model_reaches_every_caller_and_the_next_calls_go_on(gpt: SpeechGPT, alone: SpeechGPT) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = gpt.model.register_forward_pre_hook(fail)
    found = at_once(4, lambda number: drawn(gpt, number))
    hook.remove()
    assert all(isinstance(one, RuntimeError) for one in found)
    assert drawn(gpt, 5) == drawn(alone, 5)


def test_a_caller_that_has_gone_frees_its_row(model_folder: Path) -> None:
    gpt = talkative(SpeechGPT.from_pretrained(model_folder), endless=True)
    gpt.share(2)
    gpt.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    stop = threading.Event()
    prompt = gpt.dialogue.prompt([Message("human", ((1, 2),))])
    model = shared(gpt.model)
    assert model is not None
    with stoppable(stop):
        steps = draws(gpt.model, gpt.dialogue, [prompt], "units", Sampling(1.0, seed=1, max_new_tokens=200))
        next(steps)
        stop.set()
        with pytest.raises(Stopped):
            list(steps)
    began = time.monotonic()
    while model.rows and time.monotonic() - began < 30:
        time.sleep(0.01)
    assert model.rows == 0
    steps = draws(gpt.model, gpt.dialogue, [prompt], "units", Sampling(max_new_tokens=200))
    next(steps)
    steps.close()
    while model.rows and time.monotonic() - began < 60:
        time.sleep(0.01)
    assert model.rows == 0


def test_a_model_that_is_not_shared_stops_too(alone: SpeechGPT) -> None:
    stop = threading.Event()
    stop.set()
    assert shared(alone.model) is None
    with stoppable(stop), pytest.raises(Stopped):
        alone.chat("what is two", Sampling())


def test_a_cache_that_cannot_be_joined_runs_by_itself(
    gpt: SpeechGPT, alone: SpeechGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speechgpt.generation.shared import Batch

    wanted = [drawn(alone, number) for number in range(6)]
    monkeypatch.setattr(Batch, "joins", property(lambda self: False))
    assert at_once(6, lambda number: drawn(gpt, number)) == wanted


def test_a_gatherer_works_for_those_who_wait() -> None:
    calls: list[int] = []
    began = threading.Event()

    def work(items: list[int]) -> list[int]:
        calls.append(len(items))
        began.set()
        time.sleep(0.2)
        if 13 in items:
            raise ValueError("13")
        return [item * item for item in items]

    gathered = Gatherer(work)
    first = threading.Thread(target=gathered, args=([0],))
    first.start()
    assert began.wait(10)
    found = at_once(5, lambda number: gathered([number, 13 if number == 4 else 7]))
    first.join()
    assert found[:4] == [[number * number, 49] for number in range(4)]
    assert isinstance(found[4], ValueError)
    assert calls[1] == 10  # the five that waited, at once; then each alone, since one of them failed


def test_the_model_leaves_cores_to_its_callers(gpt: SpeechGPT, monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    monkeypatch.setattr(shared(gpt.model), "_cores", 4)
    hook = gpt.model.register_forward_pre_hook(lambda module, given: used.add(torch.get_num_threads()))
    try:
        drawn(gpt, 3)
        assert used == {4}
        used.clear()
        together = threading.Barrier(6)

        def late(number: int) -> list[list[int]]:
            together.wait(60)
            return drawn(gpt, 3 * number + 3)  # of one row each

        at_once(6, late)
        assert min(used) == 1
    finally:
        hook.remove()


def test_sharing_twice_is_sharing_once(gpt: SpeechGPT) -> None:
    assert share(gpt.model, context_length(gpt.model)) is shared(gpt.model)

"""One model's generation for several threads at once: rows join a batch while it runs, and leave when they end.

After `share(model)`, calls of `draws` and `embedded_draws` (speechgpt/generation/generate.py) from any thread give what
they give alone, but their rows run as one batch. A thread of its own runs the model: it takes in the prompts that wait,
draws the next token of every row, and hands the tokens to the callers. What else needs the model, such as checking
candidates, runs between two steps: `together`.

Rows of different lengths share a batch by padding on the left, as in `generate`. A model whose cache is more than keys
and values (a sliding window, a recurrent state) gets a batch for each call.
"""

from __future__ import annotations

import contextvars
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from speechgpt.generation.gathering import Job, work_together
from speechgpt.generation.grammar import Grammar
from speechgpt.generation.padding import left_padded

T = TypeVar("T")
R = TypeVar("R")
MOST_ROWS = 32  # that run at once


class Stopped(RuntimeError):
    """The caller no longer wants what it asked for (`stoppable`)."""


class Stop(Protocol):
    """Says whether a caller has gone; threading.Event is one."""

    def is_set(self) -> bool: ...


_stop: contextvars.ContextVar[Stop | None] = contextvars.ContextVar("stop", default=None)


@contextmanager
def stoppable(stop: Stop) -> Iterator[None]:
    """In this context, drawing ends with Stopped as soon as `stop` is set; its rows leave the batch."""
    token = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(token)


def check_stop() -> None:
    """Raises Stopped if the caller has gone."""
    stop = _stop.get()
    if stop is not None and stop.is_set():
        raise Stopped("the caller has gone")


@dataclass
class Draw:
    """What one call draws. Its fields are the arguments of generate's `_draws`."""

    prompts: Sequence[list[int]]
    pad: int
    ended: Callable[[list[int]], bool]
    grammar: Grammar | None
    choose: Callable[[Tensor], Tensor]
    greedy: bool
    room: list[int]
    """Tokens that each row may still draw."""
    embed: Callable[[Tensor], Tensor] | None = None
    observe: Callable[[Tensor], None] | None = None
    stop: Stop | None = field(default_factory=_stop.get)
    steps: SimpleQueue = field(default_factory=SimpleQueue)
    """Of lists of steps, each the tokens (and states) of one; None at the end; an exception."""
    kept: list[Any] = field(default_factory=list)
    """Steps that are not yet in `steps`."""
    replies: list[list[int]] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.replies = [[] for _ in self.prompts]

    @property
    def begins(self) -> list[int]:
        """The state of the grammar in which each row begins."""
        return [0] * len(self.prompts) if self.grammar is None else self.grammar.begins(len(self.prompts))

    @property
    def gone(self) -> bool:
        return self.closed or (self.stop is not None and self.stop.is_set())


@dataclass
class Row:
    """A row of a batch: row `number` of a draw. state: of the grammar."""

    draw: Draw
    number: int
    state: int = 0


class Batch:
    """Rows that run together.

    cache: keys and values of W places. mask: int64 (B, W), 0 where a row has only padding. positions, last: (B,), the
    position of the next token, and the token drawn last.
    """

    def __init__(self, rows: list[Row], cache: Any, mask: Tensor, positions: Tensor, last: Tensor) -> None:
        self.rows, self.cache, self.mask, self.positions, self.last = rows, cache, mask, positions, last

    @property
    def joins(self) -> bool:
        """Whether rows may be added to it and taken from it: its cache is only keys and values."""
        layers = getattr(self.cache, "layers", None) or []
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def keep(self, kept: list[int]) -> None:
        """Drop all other rows, and the places that were theirs alone."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            return
        chosen = torch.tensor(kept, device=self.mask.device)
        self.mask, self.positions, self.last = (one[chosen] for one in (self.mask, self.positions, self.last))
        self.cache.batch_select_indices(chosen)
        if self.joins:
            self._set_width(int(self.mask.sum(1).max()))

    def add(self, other: Batch) -> None:
        """Take in the rows of another batch; both have caches of keys and values."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        for one in (self, other):
            one._set_width(width)
        self.rows += other.rows
        for name in ("mask", "positions", "last"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])

    def _set_width(self, width: int) -> None:
        """Cut or add places on the left; cut ones are padding in every row."""
        more = width - self.mask.shape[1]
        if not more:
            return
        self.mask = self.mask[:, -more:] if more < 0 else torch.nn.functional.pad(self.mask, (more, 0))
        for layer in self.cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                resized = held[:, :, -more:] if more < 0 else torch.nn.functional.pad(held, (0, 0, more, 0))
                setattr(layer, name, resized)


class SharedModel:
    """The thread that runs a model, and what waits for it."""

    def __init__(self, model: PreTrainedModel, context: int, most_rows: int = MOST_ROWS) -> None:
        self._model, self._context, self._most_rows = weakref.ref(model), context, most_rows
        self._changed = threading.Condition()
        self._waiting: list[Draw] = []
        self._jobs: dict[object, list[Job]] = {}
        self._batches: list[Batch] = []
        self._thread: threading.Thread | None = None
        self._cores = torch.get_num_threads()  # callers may be on fewer

    @property
    def rows(self) -> int:
        """Rows that run now."""
        return sum(len(batch.rows) for batch in self._batches)

    def draw(self, asked: Draw) -> Iterator[list[int | None]]:
        """The tokens of a draw, step by step."""
        self._submit(lambda: self._waiting.append(asked))
        try:
            while (steps := asked.steps.get()) is not None:
                if isinstance(steps, BaseException):
                    raise steps
                for tokens, states in steps:
                    if asked.observe is not None:
                        asked.observe(states)
                    yield tokens
        finally:
            asked.closed = True

    def together(self, key: object, items: list[T], work: Callable[[list[T]], list[R]]) -> list[R]:
        """`work(items)` in the model's thread, at once with the items of other calls of the same key.

        If the whole fails, each call is worked on alone, so that none fails by another one's item.
        """
        job = Job(list(items), work)
        self._submit(lambda: self._jobs.setdefault(key, []).append(job))
        return job.result()

    def _submit(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._changed:
                    while not (self._waiting or self._jobs or self._batches):
                        woken = self._changed.wait(timeout=60)
                        if not woken and not (self._waiting or self._jobs):
                            self._thread = None  # the next call starts another
                            return
                    jobs, self._jobs = self._jobs, {}
                    taken = self._taken()
                torch.set_num_threads(self._threads(taken))
                for called in jobs.values():
                    work_together(called)
                self._join(taken)
                for batch in list(self._batches):
                    draws = list({id(row.draw): row.draw for row in batch.rows}.values())
                    if not self._guarded(draws, lambda batch=batch: self._step(batch)):  # type: ignore[misc]
                        batch.rows = []
                self._batches = [batch for batch in self._batches if batch.rows]

    def _threads(self, taken: Sequence[Draw]) -> int:
        """Threads that the model runs on: all, but for those that the callers of several draws are busy with.

        A core that two threads want holds up the whole step: all of them wait at its end.
        """
        callers = len(taken) + len({id(row.draw) for batch in self._batches for row in batch.rows})
        return self._cores if callers < 2 else max(1, self._cores - callers)

    def _guarded(self, draws: Sequence[Draw], work: Callable[[], None]) -> bool:
        """Do some work for draws; its error is theirs."""
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever the model raises is its callers'
            for draw in draws:
                draw.closed = True
                draw.steps.put(error)
            return False
        return True

    def _taken(self) -> list[Draw]:
        """The waiting draws for which there is room, the first ones first."""
        for draw in [one for one in self._waiting if one.gone]:
            self._waiting.remove(draw)
            draw.steps.put(Stopped("the caller has gone"))
        taken: list[Draw] = []
        room = self._most_rows - self.rows
        while self._waiting and (len(self._waiting[0].prompts) <= room or not (self.rows or taken)):
            taken.append(self._waiting.pop(0))
            room -= len(taken[-1].prompts)
        return taken

    def _join(self, draws: list[Draw]) -> None:
        """Run the prompts of draws, those of tokens alone at once, and add their rows to a batch."""
        plain = [draw for draw in draws if draw.embed is None]
        for group in ([plain] if plain else []) + [[draw] for draw in draws if draw.embed is not None]:
            self._guarded(group, lambda group=group: self._prefill(group))  # type: ignore[misc]

    def _prefill(self, draws: list[Draw]) -> None:
        model = self._held()
        rows = [Row(draw, number, state) for draw in draws for number, state in enumerate(draw.begins)]
        ids, mask = left_padded([row.draw.prompts[row.number] for row in rows], draws[0].pad, model.device)
        embed = draws[0].embed
        given = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids)}
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        batch = Batch(rows, None, mask, positions[:, -1] + 1, ids[:, -1])
        self._forward(batch, given, positions)
        into = next((one for one in self._batches if one.rows and one.joins), None)
        if batch.rows and into is not None and batch.joins:
            into.add(batch)
        elif batch.rows:
            self._batches.append(batch)

    def _step(self, batch: Batch) -> None:
        if gone := [row.draw for row in batch.rows if row.draw.gone]:
            for draw in {id(draw): draw for draw in gone}.values():
                draw.steps.put(Stopped("the caller has gone"))
            if batch.joins or len(gone) == len(batch.rows):
                batch.keep([place for place, row in enumerate(batch.rows) if not row.draw.gone])
        if not batch.rows:
            return
        batch.mask = torch.cat([batch.mask, torch.ones_like(batch.mask[:, :1])], dim=1)
        positions = batch.positions.clamp(max=self._context - 1)[:, None]
        batch.positions = batch.positions + 1
        self._forward(batch, {"input_ids": batch.last[:, None]}, positions)

    def _forward(self, batch: Batch, given: dict[str, Tensor], positions: Tensor) -> None:
        """One pass of the model, and what follows of it: a token for each row, and rows that end."""
        observed = any(row.draw.observe is not None for row in batch.rows)
        out = self._held()(
            **given,
            attention_mask=batch.mask,
            position_ids=positions,
            past_key_values=batch.cache,
            use_cache=True,
            logits_to_keep=1,
            **({"output_hidden_states": True} if observed else {}),
        )
        batch.cache = out.past_key_values
        states = out.hidden_states[-1][:, -1] if observed else None
        batch.last = self._chosen(batch, out.logits[:, -1].float())
        self._deliver(batch, states)

    def _chosen(self, batch: Batch, scores: Tensor) -> Tensor:
        """A token of each row: the likeliest, or drawn with the other rows of its draw, as it would be alone."""
        by_grammar: dict[int, list[int]] = {}
        for place, row in enumerate(batch.rows):
            if row.draw.grammar is not None:
                by_grammar.setdefault(id(row.draw.grammar), []).append(place)
        for places in by_grammar.values():
            grammar = batch.rows[places[0]].draw.grammar
            assert grammar is not None
            states = torch.tensor([batch.rows[place].state for place in places], device=scores.device)
            whole = len(places) == len(batch.rows)
            some = scores if whole else scores[places]
            some = some.masked_fill(~grammar.allowed(states), float("-inf"))
            if whole:
                scores = some
            else:
                scores[places] = some
        chosen = scores.argmax(-1)
        for places in _by_draw(batch.rows):
            draw = batch.rows[places[0]].draw
            if draw.greedy:
                continue
            every = scores.new_zeros(len(draw.prompts), scores.shape[1])  # rows that have ended take part in the draw
            numbers = [batch.rows[place].number for place in places]
            every[numbers] = scores[places]
            chosen[places] = draw.choose(every)[numbers]
        for places in by_grammar.values():
            grammar = batch.rows[places[0]].draw.grammar
            assert grammar is not None
            states = torch.tensor([batch.rows[place].state for place in places], device=scores.device)
            for place, state in zip(places, grammar.after(states, chosen[places]).tolist()):
                batch.rows[place].state = state
        return chosen

    def _deliver(self, batch: Batch, states: Tensor | None) -> None:
        """Hand out the tokens, and drop the rows that have ended."""
        tokens = batch.last.tolist()
        over: set[int] = set()
        by_draw = _by_draw(batch.rows)
        # to wake a thread costs as much as a row of a step: with many callers each is woken for several steps at once
        together = 1 + len(by_draw) // 4
        for places in by_draw:
            draw = batch.rows[places[0]].draw
            step: list[int | None] = [None] * len(draw.prompts)
            seen = None
            if states is not None and draw.observe is not None:
                seen = states.new_zeros(len(draw.prompts), states.shape[1])
                seen[[batch.rows[place].number for place in places]] = states[places]
            live = 0
            for place in places:
                number = batch.rows[place].number
                if not draw.room[number]:  # it has ended, and could not leave the batch
                    continue
                step[number] = tokens[place]
                draw.replies[number].append(tokens[place])
                draw.room[number] = 0 if draw.ended(draw.replies[number]) else draw.room[number] - 1
                if draw.room[number]:
                    live += 1
                else:
                    over.add(place)
            draw.kept.append((step, seen))
            if not live or len(draw.kept) >= together:
                draw.steps.put(draw.kept)
                draw.kept = []
            if not live:
                draw.closed = True
                draw.steps.put(None)
                over.update(places)
        if over and (batch.joins or len(over) == len(batch.rows)):
            batch.keep([place for place in range(len(batch.rows)) if place not in over])

    def _held(self) -> PreTrainedModel:
        model = self._model()
        if model is None:
            raise RuntimeError("the model is no longer in use")
        return model


def _by_draw(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows of each draw."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(id(row.draw), []).append(place)
    return list(places.values())


_SHARED: weakref.WeakKeyDictionary[PreTrainedModel, SharedModel] = weakref.WeakKeyDictionary()


def share(model: PreTrainedModel, context: int, most_rows: int = MOST_ROWS) -> SharedModel:
    """From now on, threads that draw from a model run as one batch.

    Args:
        context: tokens that the model can hold.
        most_rows: rows that run at once; others wait.
    """
    if model not in _SHARED:
        _SHARED[model] = SharedModel(model, context, most_rows)
    return _SHARED[model]


def shared(model: PreTrainedModel) -> SharedModel | None:
    """The thread that runs a model; None if it runs in its caller's."""
    return _SHARED.get(model)

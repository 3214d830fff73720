"""What a folder of conversation sets holds: counts, lengths, units used, duplicates, and what stands on two sides.

Memory grows by a few bytes for a conversation: lengths and 8-byte digests, never the conversations.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from instruct_data.build.chain import asked
from instruct_data.build.records import ConversationSet, read_conversations
from instruct_data.build.splits import SIDES
from speechgpt.dialogue import Conversation, Part, Speech
from units.audio import SAMPLE_RATE
from units.codebook import Codebook
from units.dataset.unit_set import UnitSet
from units.runtime.progress import progress


@dataclass(frozen=True)
class Leak:
    """Inputs of one kind (`sounds` or `sentences`) in two splits: how many, and one conversation of each split."""

    kind: str
    splits: tuple[str, str]
    count: int
    examples: tuple[str, str]


@dataclass
class TaskLengths:
    """Of each conversation of a task: units, words, and where they can be told tokens and seconds."""

    units: array = field(default_factory=lambda: array("I"))
    words: array = field(default_factory=lambda: array("I"))
    tokens: array = field(default_factory=lambda: array("I"))
    seconds: array = field(default_factory=lambda: array("f"))


@dataclass
class Description:
    """sets: counts by task of each. used: how often each unit occurs (K,), or None without units."""

    sets: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)
    codebook: Codebook | None = None
    used: np.ndarray | None = None
    lengths: defaultdict[str, TaskLengths] = field(default_factory=lambda: defaultdict(TaskLengths))
    duplicates: int = 0
    leaks: list[Leak] = field(default_factory=list)
    examples: dict[str, list[Conversation]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(sum(tasks.values()) for tasks in self.sets.values())


def find_sets(place: Path) -> tuple[list[tuple[str, Path]], dict[str, dict[str, int]]]:
    """The sets of a folder with their sides, and the refusals that `build.json` counts; or one set.

    Raises: FileNotFoundError if there is none.
    """
    if place.is_file():
        return [(_side(place), place)], {}
    facts = place / "build.json"
    built = json.loads(facts.read_text(encoding="utf-8")) if facts.exists() else {}
    if "sides" in built:
        named = ((side, place / f"{name}.jsonl") for name, side in built["sides"].items())
        found = [(side, path if path.exists() else path.with_name(f"{path.name}.gz")) for side, path in named]
    else:
        paths = sorted(path for ending in ("*.jsonl", "*.jsonl.gz") for path in place.glob(ending) if _is_set(path))
        found = [(_side(path), path) for path in paths]
    if not found:
        raise FileNotFoundError(f"{place} is no conversation set and holds none; instruct_data.build makes some")
    return found, built.get("refused", {})


def _is_set(path: Path) -> bool:
    return not path.name.endswith(".refused.jsonl") and not path.name.startswith(".")


def _side(path: Path) -> str:
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return next((side for side in SIDES if stem.endswith(f"_{side}")), "train")


class Durations:
    """Seconds of a sound by its units, from the unit sets that it came from."""

    def __init__(self, unit_sets: Sequence[UnitSet]) -> None:
        keys, seconds = array("Q"), array("f")
        for record in itertools.chain.from_iterable(unit_sets):
            if record.num_samples:
                keys.append(digest(record.units.ids))
                seconds.append(record.num_samples / SAMPLE_RATE)
        order = np.argsort(np.asarray(keys), kind="stable")
        self.keys, self.seconds = np.asarray(keys)[order], np.asarray(seconds)[order]

    def __call__(self, ids: tuple[int, ...]) -> float | None:
        key = np.uint64(digest(ids))
        at = int(np.searchsorted(self.keys, key))
        return float(self.seconds[at]) if at < len(self.keys) and self.keys[at] == key else None


def digest(content: object) -> int:
    """64 bits of anything whose repr says all of it."""
    return int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=8).digest(), "big")


def inputs(conversation: Conversation) -> Iterator[tuple[str, object]]:
    """What must not stand on two sides: each sound that is heard, and for tts spoken; each question, and what is read out.

    Spoken answers may: many questions have the same one. So may transcripts of asr, which nobody answers. Of a chat of
    several turns the first question counts. A question is the same typed and transcribed.
    """
    human = [message for message in conversation.messages if message.role == "human"]
    heard = [part for message in human for part in message.parts if not isinstance(part, str)]
    if conversation.task == "tts":
        heard += [part for part in conversation.messages[1].parts if not isinstance(part, str)]
    yield from (("sounds", _sound(part)) for part in heard)
    question = asked(*conversation.messages[:2]) if len(conversation.messages) > 1 else None
    if question is not None:
        kind = "tts" if conversation.task == "tts" else "asked"
        yield "sentences", (kind, question.rstrip(". "))  # the paper's wording takes the last dot


def _sound(part: Part) -> object:
    """The units of a sound, or where its recording lies if they are not known."""
    if not isinstance(part, Speech):
        return part
    return part.units if part.units is not None else (part.audio, part.start, part.duration)


def describe(
    sets: Sequence[tuple[str, Path]],
    durations: Callable[[tuple[int, ...]], float | None] | None = None,
    count_tokens: Callable[[Conversation], int] | None = None,
    examples: int = 2,
) -> Description:
    """Read sets and say what they hold.

    Args:
        sets: each with its side.
        durations: seconds of a sound; without it lengths in seconds are not told.
        count_tokens: tokens of a conversation; without it lengths in tokens are not told.
        examples: conversations of each task to keep, the first ones.
    """
    found = Description()
    whole = array("Q")
    seen: dict[str, dict[str, array]] = {kind: defaultdict(lambda: array("Q")) for kind in ("sounds", "sentences")}
    for side, path in sets:
        opened = read_conversations(path)
        _meet_codebook(found, opened)
        counts: Counter[str] = Counter()
        for conversation in progress(opened, desc=f"reading {path.name}", unit="conversations", total=len(opened)):
            counts[conversation.task] += 1
            whole.append(digest(conversation.messages))
            for kind, content in inputs(conversation):
                seen[kind][side].append(digest(content))
            _measure(found, conversation, durations, count_tokens)
            kept = found.examples.setdefault(conversation.task, [])
            if len(kept) < examples:
                kept.append(conversation)
        found.sets[path.name] = dict(counts)
    found.duplicates = len(whole) - len(np.unique(np.asarray(whole)))
    found.leaks = list(_leaks(sets, seen))
    return found


def spread(values: object) -> tuple[float, float, float, float]:
    """Mean, median, 95th percentile, greatest."""
    numbers = np.asarray(values, float)
    return float(numbers.mean()), float(np.median(numbers)), float(np.percentile(numbers, 95)), float(numbers.max())


def length_rows(lengths: dict[str, TaskLengths]) -> Iterator[tuple[str, str, list[str]]]:
    """Task, what is counted, and its spread, for all that could be told."""
    for task, found in sorted(lengths.items()):
        for name in ("tokens", "seconds", "units", "words"):
            values = getattr(found, name)
            if len(values) and max(values):
                yield task, name, [f"{number:,.1f}" for number in spread(values)]


def _meet_codebook(found: Description, opened: ConversationSet) -> None:
    if opened.codebook and found.codebook:
        found.codebook.check_same(opened.codebook, "the sets before it", str(opened.path))
    elif opened.codebook:
        found.codebook, found.used = opened.codebook, np.zeros(opened.codebook.size, np.int64)


def _measure(
    found: Description,
    conversation: Conversation,
    durations: Callable[[tuple[int, ...]], float | None] | None,
    count_tokens: Callable[[Conversation], int] | None,
) -> None:
    lengths = found.lengths[conversation.task]
    parts = [part for message in conversation.messages for part in message.parts]
    spoken = [part for part in parts if not isinstance(part, str)]
    sounds = [part.units or () if isinstance(part, Speech) else part for part in spoken]
    lengths.units.append(sum(map(len, sounds)))
    lengths.words.append(sum(len(part.split()) for part in parts if isinstance(part, str)))
    if found.used is not None:
        for sound in sounds:
            found.used += np.bincount(np.asarray(sound, np.intp), minlength=len(found.used))
    if count_tokens:
        lengths.tokens.append(count_tokens(conversation))
    if durations and sounds:
        known = [durations(sound) for sound in sounds]
        if None not in known:
            lengths.seconds.append(sum(seconds for seconds in known if seconds is not None))


def _leaks(sets: Sequence[tuple[str, Path]], seen: dict[str, dict[str, array]]) -> Iterator[Leak]:
    for kind, sides in seen.items():
        unique = {side: np.unique(np.asarray(digests)) for side, digests in sides.items()}
        for one, other in itertools.combinations(sorted(unique, key=SIDES.index), 2):
            shared = np.intersect1d(unique[one], unique[other])
            if len(shared):
                examples = tuple(_example(sets, side, kind, int(shared[0])) for side in (one, other))
                yield Leak(kind, (one, other), len(shared), (examples[0], examples[1]))


def _example(sets: Sequence[tuple[str, Path]], side: str, kind: str, wanted: int) -> str:
    """A conversation of a side that holds a leaked input; a second reading, only where something leaked."""
    for path in (path for of, path in sets if of == side):
        for conversation in read_conversations(path):
            if any(of == kind and digest(content) == wanted for of, content in inputs(conversation)):
                return f"{path.name}: {conversation.id}"
    raise AssertionError(f"no conversation of {side} holds {wanted}")

"""What conversation sets hold: counts, lengths, units used, duplicates, and leakage between splits.

Sets are streamed. Memory grows by a few bytes for each conversation: its lengths and 8-byte digests.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from instruct_data.build.chain import asked
from instruct_data.build.records import ConversationSet, read_conversations
from instruct_data.build.splits import SPLITS
from speechgpt.dialogue import Conversation, Part, Speech
from units.audio import SAMPLE_RATE
from units.codebook import Codebook
from units.dataset.unit_set import UnitSet
from units.runtime.files.json_files import checked, read_json
from units.runtime.progress import progress

MEASURES = ("tokens", "seconds", "units", "words")  # of a conversation
UTTERANCES, SENTENCES = "utterances", "sentences"  # the kinds of inputs that may leak


@dataclass(frozen=True)
class Leak:
    """Inputs that occur in two splits.

    kind: `utterances` or `sentences`. splits: the two. count: of such inputs. examples: FILE: ID of one conversation
    of each split.
    """

    kind: str
    splits: tuple[str, str]
    count: int
    examples: tuple[str, str]


@dataclass
class TaskLengths:
    """The lengths of each conversation of a task; tokens and seconds only where they are known."""

    units: array = field(default_factory=lambda: array("I"))
    words: array = field(default_factory=lambda: array("I"))
    tokens: array = field(default_factory=lambda: array("I"))
    seconds: array = field(default_factory=lambda: array("f"))


@dataclass
class Description:
    """What a list of conversation sets holds.

    sets: conversations by task, of each set. refused: refusals by reason, of each set. used: how often each unit occurs
    (K,), None where no set has units. lengths: by task. duplicates: conversations that are equal to an earlier one.
    examples: the first conversations of each task.
    """

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
        """The number of conversations."""
        return sum(sum(tasks.values()) for tasks in self.sets.values())


# --- the sets of a folder


def find_sets(place: Path) -> tuple[list[tuple[str, Path]], dict[str, dict[str, int]]]:
    """The conversation sets of a folder, each with its split, and the refusals that `build.json` counts.

    Args:
        place: a folder, or one conversation set.

    Raises:
        FileNotFoundError: if there is no set.
    """
    if place.is_file():
        return [(_split_of(place), place)], {}
    facts = place / "build.json"
    built = _read_build(facts) if facts.exists() else {}
    if built.get("sides"):
        named = ((split, place / f"{name}.jsonl") for name, split in built["sides"].items())
        found = [(split, path if path.exists() else Path(f"{path}.gz")) for split, path in named]
        for _, path in found:
            if not path.exists():
                raise FileNotFoundError(f"{facts} names {path}, which does not exist")
    else:
        paths = sorted(path for ending in ("*.jsonl", "*.jsonl.gz") for path in place.glob(ending) if _is_set(path))
        found = [(_split_of(path), path) for path in paths]
    if not found:
        raise FileNotFoundError(f"{place} is not a conversation set and holds none; instruct-build makes them")
    return found, built.get("refused", {})


def _read_build(path: Path) -> dict[str, Any]:
    """The fields of a `build.json` that are described: `sides` (set -> split) and `refused` (set -> code -> count).

    Raises: FileError naming the field if they are not so.
    """
    built = {"sides": {}, "refused": {}, **read_json(path)}
    checked(built, str(path), {"sides": dict, "refused": dict})
    checked(built["sides"], f"{path}: sides", dict.fromkeys(built["sides"], str))
    checked(built["refused"], f"{path}: refused", dict.fromkeys(built["refused"], dict))
    for name, counts in built["refused"].items():
        checked(counts, f"{path}: refused.{name}", dict.fromkeys(counts, int))
    return built


def _is_set(path: Path) -> bool:
    return not path.name.endswith(".refused.jsonl") and not path.name.startswith(".")


def _split_of(path: Path) -> str:
    """The split that the name of a set ends with, such as `asr_dev`; train if there is none."""
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return next((split for split in SPLITS if stem.endswith(f"_{split}")), "train")


# --- inputs and leakage


def digest(content: object) -> int:
    """64 bits of a value whose repr is complete."""
    return int.from_bytes(hashlib.blake2b(repr(content).encode(), digest_size=8).digest(), "big")


def inputs(conversation: Conversation) -> Iterator[tuple[str, object]]:
    """What may occur in one split only, as (kind, content).

    These are the utterances of the prompts, and for tts of the reply; the first question; and the sentence that tts
    reads out. A question counts as the same whether it is typed or transcribed. Spoken answers may occur in several
    splits, since many questions have the same answer; so may the transcripts of asr, which are no questions.
    """
    human = [message for message in conversation.messages if message.role == "human"]
    utterances = [part for message in human for part in message.parts if not isinstance(part, str)]
    if conversation.task == "tts":
        utterances += [part for part in conversation.messages[1].parts if not isinstance(part, str)]
    for part in utterances:
        yield UTTERANCES, _content(part)
    question = asked(*conversation.messages[:2]) if len(conversation.messages) > 1 else None
    if question is not None:
        kind = "tts" if conversation.task == "tts" else "asked"
        yield SENTENCES, (kind, question.rstrip(". "))  # the wording of the paper removes the last dot


def _content(part: Part) -> object:
    """The units of an utterance, or the segment of its recording if they are not known."""
    if not isinstance(part, Speech):
        return part
    return part.units if part.units is not None else (part.audio, part.start, part.duration)


class SeenInputs:
    """Digests of the inputs of each split."""

    def __init__(self) -> None:
        self.digests: dict[str, dict[str, array]] = {kind: {} for kind in (UTTERANCES, SENTENCES)}

    def add(self, split: str, conversation: Conversation) -> None:
        """Remember the inputs of a conversation."""
        for kind, content in inputs(conversation):
            self.digests[kind].setdefault(split, array("Q")).append(digest(content))

    def leaks(self, sets: Sequence[tuple[str, Path]]) -> Iterator[Leak]:
        """The inputs that occur in two splits. The sets, each with its split, are read again for examples."""
        for kind, splits in self.digests.items():
            unique = {split: np.unique(np.asarray(digests)) for split, digests in splits.items()}
            for one, other in itertools.combinations(sorted(unique, key=SPLITS.index), 2):
                shared = np.intersect1d(unique[one], unique[other])
                if len(shared):
                    first = int(shared[0])
                    examples = (_example(sets, one, kind, first), _example(sets, other, kind, first))
                    yield Leak(kind, (one, other), len(shared), examples)


def _example(sets: Sequence[tuple[str, Path]], split: str, kind: str, wanted: int) -> str:
    """FILE: ID of the first conversation of a split that has an input."""
    for path in (path for of, path in sets if of == split):
        for conversation in read_conversations(path):
            if any(of == kind and digest(content) == wanted for of, content in inputs(conversation)):
                return f"{path.name}: {conversation.id}"
    raise AssertionError(f"no conversation of {split} has the input {wanted}")


# --- lengths


class Durations:
    """Seconds of an utterance by its units, from unit sets."""

    def __init__(self, unit_sets: Sequence[UnitSet]) -> None:
        keys, seconds = array("Q"), array("f")
        for record in itertools.chain.from_iterable(unit_sets):
            if record.num_samples:
                keys.append(digest(record.units.ids))
                seconds.append(record.num_samples / SAMPLE_RATE)
        order = np.argsort(np.asarray(keys), kind="stable")
        self.keys, self.seconds = np.asarray(keys)[order], np.asarray(seconds)[order]

    def __call__(self, ids: tuple[int, ...]) -> float | None:
        """Seconds, or None if no unit set has the utterance."""
        key = np.uint64(digest(ids))
        at = int(np.searchsorted(self.keys, key))
        return float(self.seconds[at]) if at < len(self.keys) and self.keys[at] == key else None


def spread(values: object) -> tuple[float, float, float, float]:
    """Mean, median, 95th percentile and maximum."""
    numbers = np.asarray(values, float)
    return float(numbers.mean()), float(np.median(numbers)), float(np.percentile(numbers, 95)), float(numbers.max())


def length_rows(lengths: dict[str, TaskLengths]) -> Iterator[tuple[str, str, list[str]]]:
    """(task, measure, spread) of all lengths that are known."""
    for task, found in sorted(lengths.items()):
        for measure in MEASURES:
            values = getattr(found, measure)
            if len(values) and max(values):
                yield task, measure, [f"{number:,.1f}" for number in spread(values)]


# --- the description


def describe(
    sets: Sequence[tuple[str, Path]],
    durations: Callable[[tuple[int, ...]], float | None] | None = None,
    count_tokens: Callable[[Conversation], int] | None = None,
    examples: int = 2,
) -> Description:
    """Read conversation sets and describe them.

    Args:
        sets: each with its split.
        durations: seconds of an utterance by its units; without it, only speech parts have a length in seconds.
        count_tokens: tokens of a conversation; without it, there are no lengths in tokens.
        examples: how many conversations of each task are kept; they are the first ones.

    Raises:
        CodebookMismatch: if the sets have different codebooks.
    """
    found, seen, conversations = Description(), SeenInputs(), array("Q")
    for split, path in sets:
        opened = read_conversations(path)
        _check_codebook(found, opened)
        counts: Counter[str] = Counter()
        for conversation in progress(opened, desc=f"reading {path.name}", unit="conversations", total=len(opened)):
            counts[conversation.task] += 1
            conversations.append(digest(conversation.messages))
            seen.add(split, conversation)
            _measure(found, conversation, durations, count_tokens)
            kept = found.examples.setdefault(conversation.task, [])
            if len(kept) < examples:
                kept.append(conversation)
        found.sets[path.name] = dict(counts)
    found.duplicates = len(conversations) - len(np.unique(np.asarray(conversations)))
    found.leaks = list(seen.leaks(sets))
    return found


def _check_codebook(found: Description, opened: ConversationSet) -> None:
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
    """Add the lengths and the units of one conversation."""
    lengths = found.lengths[conversation.task]
    parts = [part for message in conversation.messages for part in message.parts]
    spoken = [part for part in parts if not isinstance(part, str)]
    units = [_units_of(part) for part in spoken]
    lengths.units.append(sum(map(len, units)))
    lengths.words.append(sum(len(part.split()) for part in parts if isinstance(part, str)))
    if found.used is not None:
        for ids in units:
            found.used += np.bincount(np.asarray(ids, np.intp), minlength=len(found.used))
    if count_tokens:
        lengths.tokens.append(count_tokens(conversation))
    seconds = [_seconds_of(part, durations) for part in spoken]
    known = [value for value in seconds if value is not None]
    if known and len(known) == len(spoken):
        lengths.seconds.append(sum(known))


def _units_of(part: tuple[int, ...] | Speech) -> tuple[int, ...]:
    return part.units or () if isinstance(part, Speech) else part


def _seconds_of(
    part: tuple[int, ...] | Speech, durations: Callable[[tuple[int, ...]], float | None] | None
) -> float | None:
    if isinstance(part, Speech) and part.duration is not None:
        return part.duration
    return durations(_units_of(part)) if durations else None

"""Describe conversation sets: counts, lengths, units used, duplicates and leakage, as text and as an HTML page.

    instruct-describe runs/toy/data
    instruct-describe runs/toy/data --units '[runs/toy/units/train]' --model runs/toy/model

The page is one file, describe.html beside the sets. The exit code is 1 if an input of one split (train, dev or test)
occurs in another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from units.runtime.command import check_range, command

if TYPE_CHECKING:
    from instruct_data.describe.description import Description
    from speechgpt.dialogue import Conversation

LEAKAGE = 1  # exit code
SHOWN_UNUSED = 20  # ids of unused units that are printed


def report(found: Description) -> Iterator[str]:
    """The lines that are printed."""
    from instruct_data.describe.description import length_rows

    yield f"{found.total:,} conversations, {found.duplicates:,} duplicates"
    for name, tasks in found.sets.items():
        yield f"  {name}: " + ", ".join(f"{count:,} {task}" for task, count in sorted(tasks.items()))
    for name, reasons in found.refused.items():
        yield f"  refused for {name}: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    yield f"  {'task':22} {'length in':10} {'mean':>10} {'median':>10} {'95 %':>10} {'max':>10}"
    for task, name, numbers in length_rows(found.lengths):
        yield f"  {task:22} {name:10} " + " ".join(f"{number:>10}" for number in numbers)
    if found.used is not None:
        yield _used_units(found)
    for leak in found.leaks:
        yield (
            f"LEAK: {leak.count:,} {leak.kind} occur in {leak.splits[0]} and in {leak.splits[1]}, "
            f"for example in {leak.examples[0]} and in {leak.examples[1]}"
        )
    if not found.leaks:
        yield "no utterance and no sentence occurs in two splits"


def _used_units(found: Description) -> str:
    assert found.codebook is not None and found.used is not None
    unused = [unit for unit, count in enumerate(found.used) if not count]
    shown = ", ".join(map(str, unused[:SHOWN_UNUSED])) + (" .." if len(unused) > SHOWN_UNUSED else "")
    counts = f"{found.codebook.size - len(unused)} used, {len(unused)} unused"
    return f"units of {found.codebook.name}: {counts}" + (f": {shown}" if shown else "")


@command("instruct-describe")
def main(
    data: Path, units: list[Path] | None = None, model: Path | None = None, page: Path | None = None, examples: int = 2
) -> int:
    """Describe conversation sets and find leakage between splits.

    Args:
        data: a folder that instruct-build wrote, or one conversation set
        units: the unit sets that the speech came from, for lengths in seconds
        model: a checkpoint, for lengths in tokens; with its vocoder, the examples can be played
        page: the HTML file to write; default: describe.html beside the sets
        examples: conversations of each task on the page, 0 or more
    """
    check_range("examples", examples, least=0)
    from instruct_data.describe.description import Durations, describe, find_sets
    from instruct_data.describe.page import write_page
    from units.dataset.unit_set import read_unit_set

    sets, refused = find_sets(data)
    durations = Durations([read_unit_set(folder) for folder in units]) if units else None
    found = describe(sets, durations, _token_counter(model) if model else None, examples)
    found.refused = refused
    print("\n".join(report(found)))
    if not model or not units:
        print("(lengths in tokens need --model, lengths in seconds --units)")
    vocoder = model / "vocoder" if model and (model / "vocoder").is_dir() else None
    folder = data if data.is_dir() else data.parent
    print(f"page: {write_page(page or folder / 'describe.html', data, found, vocoder)}")
    return LEAKAGE if found.leaks else 0


def _token_counter(model: Path) -> Callable[[Conversation], int]:
    """A function that counts the tokens of a conversation with the tokenizer and the template of a checkpoint."""
    from speechgpt.checkpoint import CheckpointFacts
    from speechgpt.inference import open_dialogue
    from speechgpt.language_models.whole import open_tokenizer

    dialogue = open_dialogue(open_tokenizer(model), CheckpointFacts.load(model), model)
    return lambda conversation: len(dialogue.render(conversation).ids)


if __name__ == "__main__":
    main.cli()

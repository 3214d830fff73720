"""A look at the data: what a set holds, as text and as a page that needs nothing else.

    python -m instruct_data.build.describe runs/toy/data
    python -m instruct_data.build.describe runs/toy/data --units runs/toy/units/train --model runs/toy/model

Ends with exit code 1 if something to hear or to read stands on two sides (train, dev, test).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from instruct_data.build.describe_page import write_page
from instruct_data.build.description import Description, Durations, describe, find_sets, length_rows
from units.dataset.unit_set import read_unit_set


def report(found: Description) -> Iterator[str]:
    """The lines that are printed."""
    yield f"{found.total:,} conversations, {found.duplicates:,} of them said before word for word"
    for name, tasks in found.sets.items():
        yield f"  {name}: " + ", ".join(f"{count:,} {task}" for task, count in sorted(tasks.items()))
    for name, reasons in found.refused.items():
        yield f"  left out of {name}: " + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    yield f"  {'task':22} {'length in':10} {'mean':>10} {'median':>10} {'95 %':>10} {'most':>10}"
    for task, name, numbers in length_rows(found.lengths):
        yield f"  {task:22} {name:10} " + " ".join(f"{number:>10}" for number in numbers)
    if found.codebook and found.used is not None:
        never = np.flatnonzero(found.used == 0)
        some = f": {', '.join(map(str, never[:20]))}{' ..' if len(never) > 20 else ''}" if len(never) else ""
        yield f"units of {found.codebook.name}: {found.codebook.size - len(never)} used, {len(never)} never{some}"
    for leak in found.leaks:
        yield (
            f"LEAK: {leak.count:,} {leak.kind} stand in {leak.sides[0]} and in {leak.sides[1]}, "
            f"such as that of {leak.examples[0]} and {leak.examples[1]}"
        )
    if not found.leaks:
        yield "no sound and no sentence stands on two sides"


def main(
    data: Path, units: list[Path] | None = None, model: Path | None = None, page: Path | None = None, examples: int = 2
) -> None:
    """Describe the sets of a folder, or one set.

    Args:
        data: a folder that instruct_data.build wrote, or a set
        units: unit sets that the sounds came from, for lengths in seconds
        model: a checkpoint, for lengths in tokens; where it has a vocoder, examples can be played
        page: where the page goes; describe.html beside the sets if not given
        examples: conversations of each task on the page
    """
    sets, refused = find_sets(data)
    durations = Durations([read_unit_set(folder) for folder in units]) if units else None
    count_tokens = None
    if model:
        from transformers import AutoTokenizer

        from speechgpt.dialogue import Dialogue

        dialogue = Dialogue(AutoTokenizer.from_pretrained(model))
        count_tokens = lambda conversation: len(dialogue.render(conversation).ids)  # noqa: E731
    found = describe(sets, durations, count_tokens, examples)
    found.refused = refused
    print("\n".join(report(found)))
    if not model or not units:
        print("(lengths in tokens need --model, lengths in seconds --units)")
    vocoder = model / "vocoder" if model and (model / "vocoder").is_dir() else None
    print(
        f"page: {write_page(page or (data if data.is_dir() else data.parent) / 'describe.html', data, found, vocoder)}"
    )
    if found.leaks:
        raise SystemExit(1)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

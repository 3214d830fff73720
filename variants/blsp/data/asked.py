"""Whether labels ask in the words that the finished model will be asked in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from variants.speech_in.examples import Example

BEHAVIOURS = {"transcribe": "repeat", "answer": "answer"}  # what a model is asked for: the behaviour that teaches it
MOST = 3  # instructions that a line names


class Asked:
    """The instructions of labels, by behaviour, beside those of a config."""

    def __init__(self, instructions: Mapping[str, str]) -> None:
        """
        Args:
            instructions: what the model is asked in, by what it is asked for.
        """
        self.instructions = instructions
        self.found: dict[str, set[str]] = defaultdict(set)

    def noted(self, example: Example) -> Example:
        """The example; its instruction is kept in mind."""
        if example.task in BEHAVIOURS.values():
            first = example.messages[0].parts[0]
            self.found[example.task].add(first if isinstance(first, str) else "")
        return example

    def other(self) -> Iterator[str]:
        """One line for each behaviour whose labels never ask in the words of the config."""
        for task, behaviour in BEHAVIOURS.items():
            found, said = self.found.get(behaviour, set()), self.instructions[task]
            if found and said not in found:
                named = ", ".join(repr(one) for one in sorted(found)[:MOST])
                yield (
                    f"its labels of {behaviour} ask {named}, and instructions.{task} is {said!r}: the model would be "
                    f"asked in words that it did not learn; set instructions: {{{task}: ..}} to what the labels ask"
                )

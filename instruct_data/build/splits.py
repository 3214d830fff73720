"""Which side an utterance stands on: train, dev or test, by hash, so that no order, worker or later addition moves it.

A question has one side, typed or spoken (`SetSplits` in spoken.py): else training would be asked what the test asks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

SIDES = ("train", "dev", "test")


@dataclass(frozen=True)
class Splits:
    """How utterances are divided."""

    dev: float = 0.0
    """Share of the development side."""
    test: float = 0.0
    """Share of the test side."""
    by: str = "text"
    """What is hashed: `text`, so that a sentence is in one split for every speaker, or `id`. Questions go by text."""
    held_out_speakers: list[str] = field(default_factory=list)
    """Speakers whose every utterance stands on the test side."""
    named: bool = True
    """Whether questions of the text set that say `"split": "dev"` or `"test"` stand there."""

    def __post_init__(self) -> None:
        if not (self.dev >= 0 and self.test >= 0 and self.dev + self.test < 1):
            raise ValueError(
                f"--splits.dev is {self.dev} and --splits.test is {self.test}; "
                "each must be at least 0, and their sum less than 1"
            )
        if self.by not in ("id", "text"):
            raise ValueError(f"--splits.by is {self.by!r}; it must be id or text")

    @property
    def sides(self) -> list[str]:
        """The sides that something can stand on."""
        used = {"train": True, "dev": self.dev > 0, "test": self.test > 0 or bool(self.held_out_speakers)}
        return [side for side in SIDES if used[side]]

    def side(self, utterance_id: str, text: str, speaker: str | None = None) -> str:
        """The side of an utterance; typed questions are utterances without an id, and their text decides."""
        if speaker in self.held_out_speakers:
            return "test"
        at = drawn(utterance_id if self.by == "id" and utterance_id else text)
        return "test" if at < self.test else "dev" if at < self.test + self.dev else "train"


def drawn(*key: object) -> float:
    """A number in [0, 1) that the key alone decides."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def copies(weight: float, *key: object) -> int:
    """How often a record of a source of this weight stands in the set: 0.3 keeps three in ten, 2 takes each twice."""
    whole = int(weight)
    return whole + (weight > whole and drawn("weight", *key) < weight - whole)

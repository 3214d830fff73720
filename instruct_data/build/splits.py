"""Which split an utterance is in: train, dev or test, by hash, so that no order, worker or later addition moves it.

A question is in one split, typed or spoken (`SetSplits` in spoken.py); otherwise training would contain test questions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from units.runtime.settings import check_types

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Splits:
    """How utterances are divided."""

    dev: float = 0.0
    """Share of the development split."""
    test: float = 0.0
    """Share of the test split."""
    by: str = "text"
    """What is hashed: `text`, so that a sentence is in one split for every speaker, or `id`. Questions go by text."""
    held_out_speakers: list[str] = field(default_factory=list)
    """Speakers all of whose utterances are in the test split."""
    named: bool = True
    """Whether questions of the text set with `"split": "dev"` or `"test"` are in that split."""

    def __post_init__(self) -> None:
        check_types(self, "splits.")
        if not (self.dev >= 0 and self.test >= 0 and self.dev + self.test < 1):
            raise ValueError(
                f"--splits.dev is {self.dev} and --splits.test is {self.test}; "
                "each must be at least 0, and their sum less than 1"
            )
        if self.by not in ("id", "text"):
            raise ValueError(f"--splits.by is {self.by!r}; it must be id or text")

    @property
    def possible(self) -> list[str]:
        """The splits that can have utterances in them."""
        used = {"train": True, "dev": self.dev > 0, "test": self.test > 0 or bool(self.held_out_speakers)}
        return [split for split in SPLITS if used[split]]

    def split_of(self, utterance_id: str, text: str, speaker: str | None = None) -> str:
        """The split of an utterance. A typed question is an utterance without an id; its text decides."""
        if speaker in self.held_out_speakers:
            return "test"
        at = drawn(utterance_id if self.by == "id" and utterance_id else text)
        return "test" if at < self.test else "dev" if at < self.test + self.dev else "train"


def drawn(*key: object) -> float:
    """A number in [0, 1) that the key alone decides."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def copies(weight: float, *key: object) -> int:
    """How often a record of a source of this weight is in the set: 0.3 keeps three in ten, 2 uses each twice."""
    whole = int(weight)
    return whole + (weight > whole and drawn("weight", *key) < weight - whole)

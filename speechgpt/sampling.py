"""Sampling: how the tokens of a reply are drawn. Without torch, so that commands list these options fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from units.runtime.settings import check_types

MOST_SEED = 2**32 - 1  # candidates add to it; torch takes 64 bits
MOST_CANDIDATES = 100
LOOP = 24  # tokens at the end of a reply that show that it only repeats itself
MOST_LOOPED = 6  # tokens of what it repeats, at most


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are drawn."""

    temperature: float = 0.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Draw from this many of the most likely tokens; 0 draws from all."""
    top_p: float = 1.0
    """Draw from the most likely tokens whose probabilities add up to this; 1 draws from all."""
    max_new_tokens: int = 1024
    """The longest reply, in tokens."""
    seed: int | None = None
    """Makes random draws repeatable."""
    candidates: int = 3
    """Speak a reply up to this many times, until the model understands it (self-verification); 1 turns that off."""
    end_loops: bool = False
    """End a reply whose last 24 tokens say one phrase, of at most 6 tokens, over and over; transcripts always do."""

    def __post_init__(self) -> None:
        check_types(self)
        cold = self.temperature == 0
        for name, value, allowed, fits in (
            ("temperature", self.temperature, "0, or 0.001 to 1000", cold or 0.001 <= self.temperature <= 1000),
            ("top_k", self.top_k, "0 or more", self.top_k >= 0),
            ("top_p", self.top_p, "above 0 and at most 1", 0 < self.top_p <= 1),
            ("max_new_tokens", self.max_new_tokens, "1 or more", self.max_new_tokens >= 1),
            ("seed", self.seed, f"0 to {MOST_SEED}", self.seed is None or 0 <= self.seed <= MOST_SEED),
            ("candidates", self.candidates, f"1 to {MOST_CANDIDATES}", 1 <= self.candidates <= MOST_CANDIDATES),
        ):
            if not fits:
                raise ValueError(f"{name} is {value}; allowed: {allowed}")

    @property
    def of_transcripts(self) -> Sampling:
        """The same for a transcript, in which a model that mishears may repeat a word until its context is full."""
        return replace(self, end_loops=True)


def loops(ids: Sequence[int]) -> bool:
    """Whether the last LOOP tokens are one phrase of at most MOST_LOOPED tokens over and over."""
    last = list(ids[-LOOP:])
    return len(last) == LOOP and any(last[:-size] == last[size:] for size in range(1, MOST_LOOPED + 1))

"""Settings of preference pairs: how candidates are drawn, scored and chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from units.runtime.command import check_range
from units.runtime.settings import check_types


@dataclass(frozen=True)
class Pairing:
    """How candidates of a spoken reply are drawn, scored and chosen."""

    candidates: int = 4
    """How often each reply is spoken."""
    temperature: float = 1.0
    """Of the draws; each candidate is drawn at random, so it is above 0."""
    top_p: float = 1.0
    """Draw from the most likely units whose probabilities add up to this; 1 draws from all."""
    recorded: bool = False
    """The set's own reply is a candidate too, behind those that are drawn: it is chosen where none of them is as well
    understood (as in self-play fine-tuning: Chen et al. 2024, arXiv 2401.01335)."""
    longest: int = 512
    """The longest candidate, in tokens; one that is not at its end there is left out."""
    hearing: bool = True
    """Score by the word error rate of the model's own transcript of a candidate."""
    asr: str | None = None
    """Score by an evaluation ASR too: `whisper:FOLDER_OR_HUB_ID`, `faster-whisper:FOLDER_OR_NAME` or `pocketsphinx`.
    The model folder then needs a vocoder. Report no figures by the same ASR: the model learns to please it."""
    grammar: Path | None = None
    """JSGF grammar of pocketsphinx."""
    dnsmos: float = 0.0
    """Weight of the sound: a candidate for which DNSMOS estimates an opinion of 1, the worst, counts as if so many more
    of its words were wrong as one of 5, the best. Needs a vocoder, and `pip install '.[signal]'`."""
    worst_chosen: float = 0.0
    """The highest word error rate of a chosen reply; 0 chooses only those that are understood word for word."""
    margin: float = 0.1
    """The least difference between the two replies of a pair, in word error rate, with `dnsmos` in both."""
    tasks: list[str] | None = None
    """Use only these tasks of the conversation set, such as chain and tts."""
    limit: int = 0
    """Use only so many of its spoken replies, spread evenly over the set; 0 uses all."""
    seed: int = 0
    """Of the draws."""
    batch: int = 64
    """Candidates that are drawn at once."""
    shard_size: int = 64
    """Replies of a shard: what a killed run loses at most, and what a worker does at a time."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("candidates", self.candidates, 2, 100)
        check_range("temperature", self.temperature, 0.001, 1000)
        check_range("top_p", self.top_p, 0, 1, exclusive=True)
        for name in ("longest", "batch", "shard_size"):
            check_range(name, getattr(self, name), 1)
        check_range("limit", self.limit, 0)
        check_range("seed", self.seed, 0, 2**31)
        check_range("dnsmos", self.dnsmos, 0)
        check_range("worst_chosen", self.worst_chosen, 0)
        check_range("margin", self.margin, 0, exclusive=True)
        if not self.hearing and self.asr is None:
            raise ValueError("hearing is off and no asr is given: nothing tells candidates apart; give one of the two")

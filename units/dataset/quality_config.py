"""Settings of units-quality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from units.runtime.command import check_range
from units.runtime.settings import check_types


@dataclass(frozen=True)
class QualityConfig:
    """What is measured, and what is drawn."""

    alignments: Path | None = None
    """a .tsv of id, start, end, label, or a folder of TextGrids"""
    tier: str = "phones"
    """the tier of the TextGrids"""
    pairs: int = 500
    """of each kind of pair, how many pairs of utterances are compared at most"""
    seed: int = 0
    """decides which"""
    encoder: Path | None = None
    """the unit encoder of the set: its recordings are encoded again, clean and perturbed"""
    perturbed: int = 100
    """how many recordings are perturbed, at most"""
    abx: Path | None = None
    """a folder for phones and units as fastabx reads them; it gives the ABX error where it is installed"""
    wav: Path | None = None
    """the audio of an utterance of the set, for a picture"""
    picture: Path | None = None
    """the .png to draw: its spectrogram, the units under it, and the labels under them"""
    utterance: str | None = None
    """its id, if the path of the wav does not end in it"""
    begin: float = 0.0
    """seconds into the wav at which the picture begins"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("pairs", self.pairs, 0)
        check_range("perturbed", self.perturbed, 1)
        check_range("begin", self.begin, 0)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if self.abx and not self.alignments:
            raise ValueError("--abx compares phones: it needs --alignments")
        if (self.wav is None) != (self.picture is None):
            raise ValueError("a picture needs both --wav AUDIO and --picture OUT.png")

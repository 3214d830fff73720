"""Settings of instruct-build. This file imports nothing heavy, so that --help is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from instruct_data.build.splits import Splits
from units.runtime.command import check_range
from units.runtime.settings import check_types

INSTRUCTIONS = Path(__file__).parents[1] / "instructions"
TASKS = {  # kind of chain -> task of its conversations
    "speech_to_speech": "chain",
    "speech_to_text": "chain_speech_to_text",
    "text_to_speech": "chain_text_to_speech",
    "text_to_text": "chain_text_to_text",
}
WORDINGS = ("released", "paper")
SpeechForm = Literal["units", "audio", "both"]


@dataclass(frozen=True)
class UnitSource:
    """A unit set and how much of it is used."""

    path: Path
    """its folder"""
    weight: float = 1.0
    """how often each utterance is used in the cross-modal set: 0.5 draws half of them, 2 uses each of them twice"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("weight", self.weight, 0)


@dataclass(frozen=True)
class ChainConfig:
    """The chain-of-modality conversations."""

    kinds: dict[str, float] = field(default_factory=lambda: {"speech_to_speech": 1.0})
    """share of each kind: speech_to_speech, speech_to_text, text_to_speech, text_to_text"""
    wording: str = "released"
    """released: the bare question; paper: the paper's instruction around it"""
    halves: bool = False
    """also build halves of chains: a transcript of every utterance that asks nothing, and the answer to every question
    of the text set behind its transcript, which is given"""

    def __post_init__(self) -> None:
        check_types(self, "chain.")
        if unknown := self.kinds.keys() - TASKS.keys():
            raise ValueError(f"--chain.kinds has unknown kinds {sorted(unknown)}; it must be among {', '.join(TASKS)}")
        if self.wording not in WORDINGS:
            raise ValueError(f"--chain.wording is {self.wording!r}; it must be one of {', '.join(WORDINGS)}")
        for kind, share in self.kinds.items():
            check_range(f"chain.kinds.{kind}", share, 0)
        if not self.shares:
            raise ValueError(f"--chain.kinds is {self.kinds}; at least one kind needs a share above 0")

    @property
    def shares(self) -> tuple[tuple[str, float], ...]:
        """The kinds that are built, with their shares."""
        return tuple((kind, float(share)) for kind, share in self.kinds.items() if share > 0)


@dataclass(frozen=True)
class BuildConfig:
    """What is built, and how."""

    seed: int = 0
    """decides the task descriptions and every other random choice"""
    least_of_a_family: int = 1
    """chats of a smaller family of questions are repeated until there are about as many"""
    most_of_a_family: int | None = None
    """chats drawn from a larger family of questions, so that it does not dominate; all of them if not given"""
    splits: Splits = Splits()
    """which utterances are in the development and test splits"""
    tts_of: Literal["voice", "all"] = "voice"
    """speakers of the TTS conversations: the answer voice, or all"""
    chat_ratio: float = 0.0
    """text chats in the cross-modal set, for each other conversation in it"""
    chain: ChainConfig = ChainConfig()
    """the chain-of-modality conversations"""
    speech: SpeechForm = "units"
    """what the human says aloud: units, the audio file and segment (for systems that read audio), or both"""
    instructions: Path = INSTRUCTIONS
    """folder of the task descriptions; for another language, write asr.txt, tts.txt and repeat.txt"""
    compress: bool = True
    """gzip the sets"""
    workers: int | None = None
    """worker processes; one for each core if not given"""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("least_of_a_family", "most_of_a_family", "workers"):
            check_range(name, getattr(self, name), 1)
        check_range("chat_ratio", self.chat_ratio, 0)
        check_range("seed", self.seed, 0)

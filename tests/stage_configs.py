"""The configs of the stages, as the command line reads them."""

from __future__ import annotations

from pathlib import Path

from stages import train as trainer
from stages.config import StageConfig
from stages.train import main

CONFIGS = Path(trainer.__file__).parent / "configs"


def parsed(monkeypatch, *arguments: str) -> StageConfig:
    """What the command line makes of its arguments."""
    found: list[StageConfig] = []
    monkeypatch.setattr(trainer, "train", found.append)
    main(list(arguments))
    return found[0]

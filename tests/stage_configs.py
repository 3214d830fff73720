"""The configs of the stages, as the command line reads them."""

from __future__ import annotations

from pathlib import Path

from stages import train as command
from stages.config import StageConfig

CONFIGS = Path(command.__file__).parent / "configs"


def parsed(monkeypatch, *arguments: str) -> StageConfig:
    """The config that the command line makes of its arguments."""
    found: list[StageConfig] = []
    monkeypatch.setattr(command, "train", lambda config, system: found.append(config))
    command.main(list(arguments))
    return found[0]

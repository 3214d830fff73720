"""Where the networks that judge sound come from, for the command line: without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SignalModels:
    """Networks that come with no package of this one's extras."""

    utmos: str | None = None
    """UTMOS: module:function, which returns a callable from a wav to its score, or an ONNX file (docs/evaluation.md)"""
    speaker: Path | None = None
    """a copy of Resemblyzer's pretrained.pt; default: that of the installed package"""

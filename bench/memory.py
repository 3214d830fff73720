"""How much memory this process has held, for benches that measure a program in a process of its own."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts in


def peak_memory() -> int:
    """Most bytes this process ever held. On Linux getrusage would count its parent's, from before it was another program."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def peak_memory_of_children() -> int:
    """Most bytes that one of the processes held which this one has started and seen end."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * UNIT

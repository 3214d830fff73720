"""Seconds and peak memory of a command, run in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNIT = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts in
PROGRAM = """
import runpy, sys, time
from bench.memory import peak_memory, peak_memory_of_children
sys.argv = sys.argv[1:]
began = time.monotonic()
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("USAGE", time.monotonic() - began, max(peak_memory(), peak_memory_of_children()))
"""


@dataclass(frozen=True)
class Usage:
    """seconds: wall-clock time. bytes: peak memory of the largest process."""

    seconds: float
    bytes: float

    @property
    def mib(self) -> float:
        """Peak memory in MiB."""
        return self.bytes / 2**20


def measured(module: str, *arguments: object) -> Usage:
    """Run `python -m MODULE ARGUMENTS` in a process of its own, and measure it.

    Raises: subprocess.CalledProcessError if it fails.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    _, seconds, size = done.stdout.splitlines()[-1].split()
    return Usage(float(seconds), float(size))


def peak_memory() -> int:
    """The most bytes that this process has held.

    On Linux getrusage would also count the parent process, from before this one became another program.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def peak_memory_of_children() -> int:
    """The most bytes that one child process of this process held, among those that have ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * UNIT

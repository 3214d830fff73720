"""Run every check and figure that needs a GPU, most important first, within a number of minutes.

    python -m bench.gpu runs/gpu                    # on a GPU; bench/gpu.sh does the same
    python -m bench.gpu runs/gpu-tiny --tiny        # tiny sizes, a CPU will do: tries every part

Each part is a process of its own. Its output is OUT/PART.log, and its line in OUT/results.jsonl is written as it
ends. A part that fails does not stop the others; a part that is done is not run again, so an interrupted run goes on
where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from units.runtime.command import command

ROOT = Path(__file__).parents[1]
SHORTEST = 5.0  # seconds: with less left, no part is begun


@dataclass(frozen=True)
class GpuPart:
    """One part.

    arguments: of python. tiny: the same with tiny sizes, for a machine without a GPU. seconds: most that it may take.
    """

    name: str
    arguments: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: float


def _bench(name: str, options: str, tiny: str, seconds: float) -> GpuPart:
    module, *settings = options.split()
    return GpuPart(name, ("-m", f"bench.{module}", *settings), ("-m", f"bench.{module}", *tiny.split()), seconds)


TINY_TRAINING = "--steps 5 --units 10000 --block 640 --batch 2"
PARTS = (
    GpuPart(
        "tests",
        ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:randomly", "-p", "no:cacheprovider"),
        ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:randomly", "-p", "no:cacheprovider", "tests/stages"),
        120,
    ),
    _bench("attention_exact", "attention_exact", "--width 64 --layers 1 --block 64", 90),
    _bench("train", "train --shape 1b --block 2048 --batch 8 --steps 20 --units 1000000", TINY_TRAINING, 160),
    _bench(
        "train_varlen",
        "train --shape 1b --block 2048 --batch 8 --steps 20 --units 1000000 --attention varlen --upstream false",
        TINY_TRAINING + " --upstream false",
        90,
    ),
    _bench(
        "train_compiled",
        "train --shape 1b --block 2048 --batch 8 --steps 20 --units 1000000 --attention varlen --upstream false"
        " --compile true",
        TINY_TRAINING + " --upstream false",
        150,
    ),
    _bench("attention", "attention --shape 1b --block 2048 --batch 4 --rounds 10", "--rounds 2", 90),
    _bench(
        "vocoder",
        "vocoder --device cuda --utterances 32 --rounds 3",
        "--channels 32 --rounds 1 --seconds 1 --utterances 2",
        90,
    ),
    _bench(
        "generation",
        "generation --device cuda --shape 1b --rows [1,16,64] --tokens 128",
        "--tokens 8 --rows [1,2] --rounds 1",
        90,
    ),
    _bench("units", "units --device cuda --seconds 3600 --rounds 2", "--seconds 4 --rounds 1", 200),
    GpuPart(
        "suite",
        ("-m", "pytest", "-q", "-n", "12", "-m", "not slow", "-p", "no:cacheprovider", "tests"),
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/whole/test_floors.py"),
        240,
    ),
)


@command("python -m bench.gpu")
def main(out: Path, tiny: bool = False, minutes: float = 9.0, only: list[str] | None = None) -> None:
    """Run the parts that are not done yet.

    Args:
        out: folder of the results
        tiny: tiny sizes, on a CPU too
        minutes: no part runs longer than this after the start; above 0
        only: names of the parts to run; default: all
    """
    if not minutes > 0:
        raise ValueError(f"minutes is {minutes}; allowed: above 0")
    names = [part.name for part in PARTS]
    unknown = [name for name in only or () if name not in names]
    if unknown:
        raise ValueError(f"{unknown[0]} is no part; allowed: {', '.join(names)}")
    ends = time.monotonic() + 60 * minutes
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in PARTS:
        if only and part.name not in only:
            continue
        if part.name in done(out):
            print(f"{part.name}: done already", flush=True)
            continue
        left = ends - time.monotonic()
        if left < SHORTEST:
            print(f"{part.name}: no time left; run again to go on", flush=True)
            continue
        result = run(part, out, tiny, min(left, part.seconds))
        if result["exit_code"] != 0:
            failed.append(part.name)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; see {out}")


def run(part: GpuPart, out: Path, tiny: bool, seconds: float) -> dict[str, Any]:
    """Run one part, print the end of its output, and write its line of results."""
    print(f"== {part.name}", flush=True)
    log, began = out / f"{part.name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                [sys.executable, *(part.tiny if tiny else part.arguments)],
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                timeout=seconds,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            ).returncode
            ended = f"exit code {code}"
        except subprocess.TimeoutExpired:
            code, ended = 124, f"stopped after {seconds:.0f} seconds"
    if tiny and part.name == "tests" and code == 5:  # pytest's code for: no test was chosen
        code = 0
    result = {"part": part.name, "exit_code": code, "seconds": round(time.monotonic() - began, 1)}
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({**result, "arguments": part.tiny if tiny else part.arguments}) + "\n")
    print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]))
    print(f"-- {part.name}: {ended}, {result['seconds']} seconds", flush=True)
    return result


def done(out: Path) -> set[str]:
    """Names of the parts that have ended well."""
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return {row["part"] for row in rows if row["exit_code"] == 0}


if __name__ == "__main__":
    main.cli()

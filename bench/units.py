"""Measure how fast audio becomes units, beside other implementations, in one run on one machine.

    python -m bench.units                                  # HuBERT base, random weights, layer 9, two minutes of audio
    python -m bench.units --device cuda --seconds 3600
    python -m bench.units --memory_only                    # peak memory: an hour in one file, 10,000 short files

Baselines: (a) one file at a time through plain transformers with all hidden states kept and scikit-learn's predict,
the usual way; (b) fairseq's own code, one file at a time, where fairseq is installed. Every line prints audio seconds
per second, the ratio to each baseline, the share of the machine's measured matrix-product peak, and the share of
frames whose unit is the one that (a) gives. Rounds of all ways alternate, and each way's best round counts. The last
lines are units-extract as users run it: flac files are decoded, and a unit set is written.
"""

from __future__ import annotations

from typing import Literal

from units.runtime.command import command

BATCH_SECONDS = {"cpu": 40.0, "cuda": 400.0}


@command("python -m bench.units", positional=False)
def main(
    device: Literal["cpu", "cuda"] = "cpu",
    seconds: float = 120.0,
    rounds: int = 2,
    batch_seconds: float | None = None,
    memory_only: bool = False,
) -> None:
    """Time every way from audio to units.

    Args:
        device: cpu or cuda
        seconds: of audio in all, above 0
        rounds: passes of each way, of which the best counts; 1 or more
        batch_seconds: audio in one batch of ours; default: 40 on a CPU, 400 on a GPU
        memory_only: measure the memory of units-extract instead
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; allowed: above 0")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; allowed: 1 or more")
    from bench.timing.units import compare, memory

    if memory_only:
        memory()
    else:
        compare(device, seconds, rounds, batch_seconds or BATCH_SECONDS[device])


if __name__ == "__main__":
    main.cli()

"""Measure how fast the toy's second stage trains on an idle machine, and beside a process that is always busy.

    python -m bench.neighbour --seconds 10          # a quick run
    python -m bench.neighbour                       # two minutes

A laptop has other work to do, and so has a demo whose steps run side by side. OpenMP's threads wait for each other
after every operation, so a thread that must share its core holds all others back. Each number of threads trains in a
process of its own, alone and beside one that only counts; prints tokens a second and the share that is left. `auto`
is one thread, or all while they are clearly faster; `local` is the toy's setting: two processes of one thread each,
which average what they learn every eight steps.
"""

from __future__ import annotations

from units.runtime.command import command


@command("python -m bench.neighbour", positional=False)
def main(threads: list[int] = [1, 2], seconds: float = 30.0, block: int = 288, batch: int = 2) -> None:  # noqa: B006
    """Train with each number of threads, idle and beside a busy process.

    Args:
        threads: numbers of CPU threads, each 1 or more
        seconds: of each training that is timed, above 0
        block: tokens of a block, 16 or more
        batch: blocks of a step, 1 or more
    """
    for name, value, least in [("block", block, 16), ("batch", batch, 1), *(("threads", one, 1) for one in threads)]:
        if value < least:
            raise ValueError(f"{name} is {value}; allowed: {least} or more")
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; allowed: above 0")
    from bench.timing.neighbour import compare

    compare(threads, seconds, block, batch)


if __name__ == "__main__":
    main.cli()

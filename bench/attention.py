"""Compare the implementations of attention on packed blocks.

    python -m bench.attention --rounds 5            # a quick run
    python -m bench.attention                       # the toy preset's model and blocks
    python -m bench.attention --block 1024 --batch 1

Steps of all implementations alternate, so that changes of the machine's speed affect all of them alike.
"""

from __future__ import annotations

from typing import Literal

from units.runtime.command import command


@command("python -m bench.attention", positional=False)
def main(
    shape: Literal["toy", "1b"] = "toy", block: int = 256, batch: int = 4, rounds: int = 60, seed: int = 0
) -> None:
    """Train one model, its implementation of attention by turns, and print each one's median step.

    Args:
        shape: toy or 1b
        block: tokens of a block, 16 or more
        batch: blocks of a step, 1 or more
        rounds: timed steps of each implementation, 1 or more
        seed: of weights and conversations
    """
    for name, value, least in (("block", block, 16), ("batch", batch, 1), ("rounds", rounds, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; allowed: {least} or more")
    from bench.timing.attention import compare

    compare(shape, block, batch, rounds, seed)


if __name__ == "__main__":
    main.cli()

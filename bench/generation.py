"""Measure how many tokens a second the reply loop draws, beside transformers' own generate.

    python -m bench.generation --tokens 8 --rows '[1,2]' --rounds 1        # a few seconds
    python -m bench.generation                                             # the toy's shape on a CPU
    python -m bench.generation --device cuda --shape 1b --rows '[1,16,64]'

Both draw greedily from the same random weights and prompts, without an end: every row gets as many tokens. Ours is
drawn under the reply grammar, as speechgpt-cli draws. Rounds of both alternate; a figure is the median.
"""

from __future__ import annotations

from typing import Literal

from units.runtime.command import command


@command("python -m bench.generation", positional=False)
def main(
    shape: Literal["toy", "1b"] = "toy",
    device: Literal["cpu", "cuda"] = "cpu",
    rows: list[int] = [1, 8],  # noqa: B006
    tokens: int = 64,
    prompt: int = 200,
    rounds: int = 3,
    seed: int = 0,
) -> None:
    """Time both ways at every number of rows.

    Args:
        shape: toy or 1b
        device: cpu or cuda
        rows: numbers of prompts that are answered at once, each 1 or more
        tokens: drawn for each row, 2 or more
        prompt: tokens of a prompt, 1 or more
        rounds: passes of each way, 1 or more
        seed: of weights and prompts
    """
    checked = [("tokens", tokens, 2), ("prompt", prompt, 1), ("rounds", rounds, 1), *(("rows", row, 1) for row in rows)]
    for name, value, least in checked:
        if value < least:
            raise ValueError(f"{name} is {value}; allowed: {least} or more")
    from bench.timing.generation import compare

    compare(shape, device, rows, tokens, prompt, rounds, seed)


if __name__ == "__main__":
    main.cli()

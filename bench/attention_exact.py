"""Compare every implementation of attention with eager attention in float64: scores, and gradients of all weights.

    python -m bench.attention_exact --width 64 --layers 1 --block 64      # a few seconds
    python -m bench.attention_exact                                       # those of a GPU too, where there is one

A library's kernel can be right forward and wrong backward on packed rows. Prints, for each implementation, the
relative error of the logits and of the gradients, ||found - exact|| / ||exact||, beside that of eager attention in the
same precision. An implementation whose error is more than three times eager's is marked, and ends the run with an
error.
"""

from __future__ import annotations

from units.runtime.command import command

MOST = 3.0  # times the error of eager attention in the same precision


@command("python -m bench.attention_exact", positional=False)
def main(width: int = 512, layers: int = 2, block: int = 1024, window: int = 0, seed: int = 0) -> None:
    """Compare scores and gradients.

    Args:
        width: of the model; heads are 64 wide, two for each key and value; a multiple of 64, 64 or more
        layers: of the model, 1 or more
        block: tokens of a block, 16 or more
        window: of sliding attention, in tokens; 0: none
        seed: of weights and conversations
    """
    for name, value, least in (
        ("width", width, 64),
        ("layers", layers, 1),
        ("block", block, 16),
        ("window", window, 0),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; allowed: {least} or more")
    if width % 64:
        raise ValueError(f"width is {width}; allowed: a multiple of 64")
    from bench.timing.attention_errors import compare

    wrong = compare(width, layers, block, window, seed, MOST)
    if wrong:
        raise ValueError(f"further from float64 than {MOST} times eager: {', '.join(wrong)}")


if __name__ == "__main__":
    main.cli()

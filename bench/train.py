"""Measure how fast stages train beside upstream's way, how full blocks are, and how fast data starts and feeds.

    python -m bench.train --steps 6 --units 1000000          # a minute: a quick run
    python -m bench.train                                    # the figures, on two cores or one GPU
    python -m bench.train --shape smol --batch 2 --steps 8 --units 1000000              # a real small LLM, two cores
    python -m bench.train --shape 1b --block 2048 --batch 8  # a GPU: MFU, and memory with and without the fused loss
    python -m bench.train --shape 1b --block 2048 --batch 1 --checkpointing             # a GPU of 24 GB

Upstream's way (SpeechGPT's stage-2 script): conversations in random order, each batch padded to its longest,
transformers' Trainer and its attention, whole logits. Ours: the same conversations packed into blocks, with the
attention and the loss that stages.train uses on this machine (flash-attention and liger-kernel where they are
installed). Both train the same model from the same weights on as many rows per step; a row is a conversation there
and a block here. Only tokens that are not padding are counted.
"""

from __future__ import annotations

from bench.options import TrainOptions
from units.runtime.command import command


@command("python -m bench.train", flat=True)
def main(options: TrainOptions = TrainOptions()) -> None:
    """Train in both ways, and print the figures.

    Args:
        options: what is trained, and what is written
    """
    import json

    from bench.timing.train import compare
    from units.runtime.files.atomic import written_whole

    figures = compare(options)
    for name, value in figures.items():
        print(f"{name:28} {value:,.4g}" if isinstance(value, float) else f"{name:28} {value}")
    if options.out:
        with written_whole(options.out) as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main.cli()

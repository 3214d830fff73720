"""Compare how the new rows of a widened LLM are initialised, and whether the embeddings should learn first.

    python -m bench.widening runs/widening --units runs/smol/units/train        # a real LLM, of make real-models
    python -m bench.widening runs/widening --inits '[mean, "mean:0.3"]' --warm_ups '[0, 30]' --steps '[30, 100, 300]'

Each setting is one run of unit pre-training from the same LLM on the same blocks, at a constant learning rate. Its
figures are a line of OUT/runs.jsonl as soon as it ends: held-out loss a unit after each number of steps, and the loss a
token of plain texts, which is what the LLM keeps. Runs that have a line are not run again, so an interrupted command
goes on; the table of all lines is printed at the end.
"""

from __future__ import annotations

from pathlib import Path

from bench.options import WideningOptions
from units.runtime.command import command


@command("python -m bench.widening", flat=True)
def main(out: Path, options: WideningOptions = WideningOptions()) -> None:
    """Widen and train in every way that is asked for, and print the table.

    Args:
        out: folder of the results
        options: what is widened, by what it learns, and how long
    """
    from bench.timing.widening import compare, table

    print(table(compare(out, options)))


if __name__ == "__main__":
    main.cli()

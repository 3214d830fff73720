"""Measure how fast a stage of BLSP trains beside upstream's way, and how large a checkpoint is.

    python -m bench.listening variants/blsp/configs/toy/stage2.yaml --run runs/toy --steps 30

Upstream's way (github.com/cwang621/blsp): a batch of examples in random order, each in three parts, what comes before
the speech, the speech, and what comes after; each part is padded to the longest of its kind, with no positions, and the
logits of all places are computed; a checkpoint holds encoder, LLM and adapter. Ours: the same examples packed into
blocks, logits where the loss counts, and a checkpoint of what learns. Both ways train the same adapter from the same
weights on as many examples a step. Only tokens and places that are not padding are counted. Times are of this process's
CPU on a CPU, so that other work does not count, and of the clock on a GPU.
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command


@command("python -m bench.listening")
def main(
    stage: Path,
    run: Path = Path("runs/toy"),
    steps: int = 30,
    live: bool = True,
    device: str = "cpu",
    out: Path | None = None,
) -> None:
    """Train in both ways, and print the figures.

    Args:
        stage: the config (.yaml) of a stage of kind speech
        run: the run folder, with the stage's start and labels
        steps: of each way; the first three are not timed
        live: also train with recordings that are encoded in each step
        device: cpu, cuda, or cuda:N
        out: json file for the figures
    """
    import json

    from bench.timing.listening import compare
    from units.runtime.files.atomic import written_whole

    figures = compare(stage, run, steps, live, device)
    for name, value in figures.items():
        print(f"{name:40} {value:,.4g}" if isinstance(value, float) else f"{name:40} {value}")
    if out:
        with written_whole(out) as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main.cli()

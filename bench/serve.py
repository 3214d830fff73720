"""Measure the server: answers a second and the first sound, for several clients at once, beside one answer at a time.

    python -m bench.serve --model runs/toy/model --questions runs/toy/corpus/test.jsonl
    python -m bench.serve --model runs/toy/model --questions runs/toy/corpus/test.jsonl --clients '[1,4,16,64]'

Each client asks one question after the other, aloud, with a streamed answer in sound, as the OpenAI client asks. The
baseline is the same server with a model that is not shared, so it answers one request at a time, as release 0.1.0 did.
Both run in this process, in turn, for each number of clients. Every answer is compared with the one that its question
gets alone.
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command


@command("python -m bench.serve", positional=False)
def main(
    model: Path,
    questions: Path,
    clients: list[int] = [1, 4, 16],  # noqa: B006
    asked: int = 32,
    candidates: int = 1,
    device: str = "cpu",
    rows: int = 16,
) -> None:
    """Time both ways at every number of clients.

    Args:
        model: model folder
        questions: a manifest; its first utterances are asked
        clients: numbers of clients at once
        asked: questions in all, at least two for each client
        candidates: of self-verification; 1 is without
        device: cpu or cuda
        rows: answers that the server makes at once
    """
    for name, value in (
        ("asked", asked),
        ("candidates", candidates),
        ("rows", rows),
        *(("clients", n) for n in clients),
    ):
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 or more")
    from bench.timing.serve import compare

    compare(model, questions, clients, asked, candidates, device, rows)


if __name__ == "__main__":
    main.cli()

"""What an adapter hears, word for word: read off by the head of a stage of kind ctc. No LLM runs.

    python -m variants.blsp.hear runs/smol/blsp_heard test.jsonl heard.jsonl

The source is a manifest, or any other that units-extract takes. A line out has `id`, `audio`, `response`, and where the
text is known `reference`; with texts, the word error rate is printed. Recordings that cannot be used are listed in
OUT.refused.jsonl, and the exit code is 3.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from units.runtime.command import command

if TYPE_CHECKING:
    from variants.speech_in.hearing.hear import Hearer


@command("blsp-hear")
def main(model: Path, source: Path, out: Path, device: str = "cpu", batch: int = 16) -> int | None:
    """Write down what an adapter hears in recordings.

    Args:
        model: the folder of a stage of kind ctc
        source: a manifest, or another source of recordings
        out: the JSON lines to write
        device: cpu, cuda, or cuda:N
        batch: recordings at once
    """
    from variants.blsp.data.examples import utterances_of
    from variants.speech_in.hearing.hear import write_heard

    utterances = utterances_of(source)
    return write_heard(open_hearer(model, device), utterances, out, batch)


def open_hearer(folder: Path, device: str = "cpu") -> Hearer:
    """The adapter of a stage of kind ctc. Raises: as Hearer."""
    from variants.blsp.adapter import SpeechAdapter
    from variants.blsp.records import BlspFacts, read_adapter
    from variants.speech_in.hearing.hear import Hearer

    facts = BlspFacts.load(folder)
    return Hearer(folder, facts, SpeechAdapter, read_adapter(folder), device)


if __name__ == "__main__":
    main.cli()

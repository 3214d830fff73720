"""What an adaptor hears, word for word: read off by the head of a stage of kind hearing. No LLM runs.

    python -m variants.llama_omni.hear runs/smol/omni_heard test.jsonl heard.jsonl

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


@command("llama-omni-hear")
def main(model: Path, source: Path, out: Path, device: str = "cpu", batch: int = 16) -> int | None:
    """Write down what an adaptor hears in recordings.

    Args:
        model: the folder of a stage of kind hearing
        source: a manifest, or another source of recordings
        out: the JSON lines to write
        device: cpu, cuda, or cuda:N
        batch: recordings at once
    """
    from variants.speech_in.hearing.hear import write_heard
    from variants.speech_in.hearing.transcripts import utterances_of

    utterances = utterances_of(source)
    return write_heard(open_hearer(model, device), utterances, out, batch)


def open_hearer(folder: Path, device: str = "cpu") -> Hearer:
    """The adaptor of a stage of kind hearing. Raises: as Hearer."""
    from variants.llama_omni.network.adaptor import SpeechAdaptor
    from variants.llama_omni.records import ADAPTOR_FILE, OmniFacts
    from variants.speech_in.facts import read_part
    from variants.speech_in.hearing.hear import Hearer

    facts = OmniFacts.load(folder)
    return Hearer(folder, facts, SpeechAdaptor, read_part(folder, ADAPTOR_FILE, "adapter."), device)


if __name__ == "__main__":
    main.cli()

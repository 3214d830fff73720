"""Build the instruction sets of a run from its unit set and its text pairs.

    python -m instruct_data.build --units runs/toy/units/train --pairs runs/toy/corpus/chats.jsonl --voice flite:slt --out runs/toy/data

Writes `text.jsonl.gz` (text chats, and the same with the question said back first), `cross_modal.jsonl.gz` (ASR of every voice, TTS of the answer voice),
`chain.jsonl.gz`, and last `build.json` with the counts of everything kept and refused.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

from instruct_data.chain_of_modality import chain_conversations
from instruct_data.cross_modal import asr_conversations, tts_conversations
from instruct_data.records import write_conversations
from instruct_data.text_sets import balance_families, chat_conversations, read_pairs, repeat_conversations
from units.manifest import written_whole
from units.unit_set import UnitRecord, read_unit_set


def main(
    units: Path,
    pairs: Path,
    voice: str,
    out: Path,
    seed: int = 0,
    least_of_a_family: int = 1,
    most_of_a_family: int | None = None,
) -> None:
    """Build the instruction sets.

    Args:
        units: unit set of the training utterances, with text and speaker
        pairs: jsonl of text questions and answers; they become text chats too
        voice: the speaker that answers
        out: folder for the sets
        seed: decides the task descriptions
        least_of_a_family: text chats of one family of questions: a smaller family is repeated about as often
        most_of_a_family: text chats of one family of questions, so that a large one does not drown the others; all of
            them if not given
    """
    source = read_unit_set(units)
    records: list[UnitRecord] = list(source)
    spoken = [record for record in records if record.speaker == voice]
    if not spoken:
        raise SystemExit(
            f"{units} has no utterance of the voice {voice!r}; it has {sorted({str(r.speaker) for r in records})}"
        )
    text = read_pairs(pairs)
    chats = balance_families(text, least_of_a_family, most_of_a_family, seed)
    refused: Counter = Counter()
    sets = {
        "text": (itertools.chain(chat_conversations(chats), repeat_conversations(chats, seed)), None),
        "cross_modal": (itertools.chain(asr_conversations(records, seed), tts_conversations(spoken, seed)), source.codebook),
        "chain": (
            chain_conversations((r for r in records if r.speaker != voice), text, spoken, refused), source.codebook,
        ),
    }  # fmt: skip
    counts = {
        name: write_conversations(out / f"{name}.jsonl.gz", conversations, codebook, seed)
        for name, (conversations, codebook) in sets.items()
    }
    with written_whole(out / "build.json") as file:
        json.dump(
            {"counts": counts, "refused": {"chain": dict(refused)}, "codebook": source.codebook.name}, file, indent=1
        )
    print(f"conversations: {counts}; left out of chain: {dict(refused)}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

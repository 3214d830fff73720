"""The `instruct-build` command: conversation sets from unit sets and, if there is one, a text set.

    instruct-build --units units/librispeech --tts_of all --out data           # an ASR corpus is enough for stage 2
    instruct-build --units units/train --pairs chats.jsonl --voice flite:slt --out data
    instruct-build --config build.yaml --splits.dev 0.01 --chat_ratio 0.1

It writes these sets to the folder `out`:

    cross_modal.jsonl.gz   ASR of every speaker, TTS of the answer voice or of all, and text chats if asked for
    text.jsonl.gz          text chats, and the same with the question repeated before the answer (needs --pairs)
    chain.jsonl.gz         chain of modality (needs --pairs and --voice)
    chain_halves.jsonl.gz  transcripts alone, and answers behind transcripts (needs --pairs and --chain.halves true)
    .._dev, .._test        the same for the other splits
    ..refused.jsonl        the inputs that a set leaves out
    build.json             the counts of all sets and of their refusals; its presence means that the build is complete

Everything streams. A killed build continues with the parts that it has.

This file is the command, so that --help does not wait for pyarrow; `instruct_data/build/set_builder.py` does the work.
"""

from __future__ import annotations

from pathlib import Path

from instruct_data.build.config import BuildConfig, UnitSource
from units.runtime.command import command


@command("instruct-build", positional=False, flat=True)
def main(
    units: Path | list[UnitSource],
    pairs: Path | None = None,
    voice: str = "",
    out: Path = Path("data"),
    config: BuildConfig = BuildConfig(),
) -> None:
    """Build the conversation sets of a training run from unit sets and a text set.

    Args:
        units: unit set with text and speakers; or a yaml list of several: [{path: FOLDER, weight: 0.5}, ..]
        pairs: text set (.jsonl or .jsonl.gz) of questions and answers; without it only the cross-modal set is built
        voice: the speaker that answers; without it no spoken answers are built
        out: folder for the sets
        config: what is built
    """
    from instruct_data.build.set_builder import build_sets

    build_sets(units if isinstance(units, list) else [UnitSource(units)], pairs, voice, out, config)


if __name__ == "__main__":
    main.cli()

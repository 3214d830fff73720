"""The `units-extract` command: audio files or whole corpora to units.

    units-extract a.wav                                    # prints <sosp><12><7>..<eosp>
    units-extract folder/of/audio units/mine               # a unit set, with the encoder that comes with the package
    units-extract train.jsonl units/train --device cuda --encoder hubert_base_ls960.pt \\
        --kmeans hubert_base_ls960_L9_km500.bin
    find . -name '*.flac' | units-extract - units/all
    units-extract train.jsonl features/train --features --encoder openai/whisper-small   # states: a feature set
    torchrun --nproc_per_node 8 -m units.dataset.extract train.jsonl units/train --device cuda

A killed run continues at the first missing shard. Exit codes: 0 if everything is in the set, or other ranks are still
working, which is reported; 3 if some inputs are in refused.jsonl instead; 2 for a mistake in the call.

This file is the command, so that --help does not wait for torch; `units/dataset/extraction.py` is the run that it
starts.
"""

from __future__ import annotations

from pathlib import Path

from units.dataset.extract_config import EncoderConfig, WorkConfig
from units.runtime.command import command


@command("units-extract", optional=("out",), flat=("encoder", "work"))
def main(
    source: str, out: Path | None = None, encoder: EncoderConfig = EncoderConfig(), work: WorkConfig = WorkConfig()
) -> int:
    """Turn audio into discrete units.

    Args:
        source: an audio file, a folder, a manifest (.jsonl), fairseq's .tsv, a glob in quotes, or - for paths on stdin
        out: folder for the unit set; without it the units of one file are printed
        encoder: which units
        work: how the work is done
    """
    from units.dataset import extraction

    if out is None:
        return extraction.print_units(source, encoder, work)
    return extraction.run(source, out, encoder, work)


if __name__ == "__main__":
    main.cli()

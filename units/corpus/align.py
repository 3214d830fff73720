"""Align words with their sound: the times of every word of a manifest's texts, by a forced aligner.

    units-align train.jsonl words.tsv

The aligner is pocketsphinx (extra `eval`) with its model of English and the CMU dictionary; it aligns some forty times
as fast as the sound is long. The table is what units/corpus/alignments.py reads: for interleaving in stage 1, and for
units-quality. An utterance without text, with a word that the dictionary does not have, or that does not fit its text,
is left out, counted and listed in OUT.refused.jsonl. A killed run continues with the parts that are missing.
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import SOME_REFUSED, check_range, command


@command("units-align")
def main(manifest: list[Path], out: Path, workers: int | None = None) -> int | None:
    """Align the words of manifests with their sound.

    Args:
        manifest: a manifest with texts, or a list of manifests: '[a.jsonl, b.jsonl]'
        out: the table, tab-separated: id, start, end (seconds), label
        workers: processes; one for each core if not given
    """
    from units.corpus.aligning import align

    check_range("workers", workers, 1)
    done = align(manifest, out, workers)
    print(f"{out}: {done.utterances} utterances, {done.words} words; {done.refused}")
    return SOME_REFUSED if done.refused.counts else None


if __name__ == "__main__":
    main.cli()

"""Utterances that alternate between units and text at word boundaries.

Source: Spirit LM (Nguyen et al. 2024, arXiv 2402.05755, section 3.1): to predict what comes next, the model must relate
units and text. It needs word alignments (units/corpus/alignments.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from stages.config import Interleaving
from units.codebook import reduce
from units.corpus.alignments import SILENCE, Segment
from units.dataset.unit_set import UnitRecord

INTERLEAVING_VERSION = 1  # for caches of tokens: raise it when the same utterance is cut into other parts
SLACK = 0.1  # seconds by which a word may end after the last frame
UNSPOKEN = (SILENCE, "<eps>", "<unk>", "spn")  # labels of intervals without a known word

Stretch = str | tuple[int, ...]  # of an utterance: words as text, or units


def interleaved(record: UnitRecord, segments: Sequence[Segment], how: Interleaving, seed: int) -> list[Stretch]:
    """Cut an utterance at word boundaries into parts, alternating between text and units.

    A boundary is the middle between two words. The seed and the utterance's id decide the parts.

    Args:
        segments: its words in order of time; silence and unknown words belong to the units around them.

    Raises: ValueError if the words end after the audio, or the units have no durations.
    """
    words = [segment for segment in segments if segment.label not in UNSPOKEN]
    frames = record.units.frames()
    rate = record.units.codebook.frame_rate
    if words and words[-1].end > len(frames) / rate + SLACK:
        raise ValueError(
            f"{record.id}: its last word ends at {words[-1].end:.2f} s, but its units at {len(frames) / rate:.2f} s; "
            "are these the alignments of other recordings?"
        )
    between = [round((one.end + two.start) / 2 * rate) for one, two in zip(words, words[1:])]
    cuts = [0, *between, len(frames)]
    draw = np.random.default_rng([seed, *hashlib.blake2b(record.id.encode(), digest_size=16).digest()])
    parts: list[Stretch] = []
    for written, start, end in turns(len(words), how, draw):
        if written:
            parts.append(" ".join(word.label for word in words[start:end]))
        else:
            parts.append(reduce(frames[cuts[start] : cuts[end]])[0])
    return [part for part in parts if part]


def turns(words: int, how: Interleaving, draw: np.random.Generator) -> Iterator[tuple[bool, int, int]]:
    """(whether written, first word, word after the last) of each part; lengths are Poisson, of at least one word."""
    written = bool(draw.random() < how.text_share)
    start = 0
    while start < words:
        mean = 2 * how.span * (how.text_share if written else 1 - how.text_share)
        end = min(words, start + 1 + int(draw.poisson(max(0.0, mean - 1))))
        yield written, start, end
        written, start = not written, end

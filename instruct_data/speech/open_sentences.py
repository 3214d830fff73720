"""Sentences of ordinary English words, without end: text for a codec that serves any speech, free of any book's rights.

Words are drawn by a trigram model (instruct_data/text/english_words.py): some words by their frequency, of which the
model chooses one. So common words and their neighbours occur as in English, though the sentences mean nothing. RARE of
the words are drawn evenly from the CMU dictionary, so that every sound of English occurs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from instruct_data.text.english_words import EnglishWords

RARE = 0.15  # of the words
LENGTHS = (5, 13)  # words of a sentence


def open_sentences(count: int, seed: int = 0) -> Iterator[str]:
    """`count` sentences in lower case; the same seed gives the same sentences."""
    english = EnglishWords()
    draw = random.Random(f"open sentences {seed}")
    for _ in range(count):
        words: list[str] = []
        for _ in range(draw.randint(*LENGTHS)):
            words.append(draw.choice(english.words) if draw.random() < RARE else english.following(words, draw))
        yield " ".join(words)

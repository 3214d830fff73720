"""Words of English, how often each occurs, and which follow each other.

All is in the trigram model of English that comes with pocketsphinx (extra `eval`, BSD licence), and in its copy of the
CMU dictionary.
"""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path

from units.runtime.extras import required

PROPOSALS = 24  # words that compete for a place
LOG_BASE = math.log(1.0001)  # of the scores of pocketsphinx's language models
UNKNOWN = -(2**28)  # its score of a word that it does not have
ONE_LETTER = {"a", "i", "o"}


class EnglishWords:
    """The words of the CMU dictionary that the language model has, and the model.

    words: in alphabetical order.
    chances: of each word, whatever is before it.
    """

    def __init__(self) -> None:
        pocketsphinx = required("pocketsphinx", "eval")
        folder = Path(pocketsphinx.get_model_path()) / "en-us"
        self._model = pocketsphinx.NGramModel.readfile(str(folder / "en-us.lm.bin"))
        listed = {line.split()[0] for line in (folder / "cmudict-en-us.dict").read_text(encoding="utf-8").splitlines()}
        plain = sorted(word for word in listed if word.isascii() and word.isalpha())
        scored = [(word, self._model.prob([word])) for word in plain if len(word) > 1 or word in ONE_LETTER]
        known = [(word, score) for word, score in scored if score > UNKNOWN]
        self.words = [word for word, _ in known]
        self.chances = {word: math.exp(score * LOG_BASE) for word, score in known}
        self._sums = list(itertools.accumulate(self.chances.values()))

    def following(self, words: list[str], draw: random.Random) -> str:
        """A word to follow `words`."""
        proposals = draw.choices(self.words, cum_weights=self._sums, k=PROPOSALS)
        before = list(reversed(words[-2:]))  # the nearest first
        return draw.choices(proposals, [self._gain(word, before) for word in proposals])[0]

    def _gain(self, word: str, before: list[str]) -> float:
        """How much likelier the words before make a word."""
        return math.exp(self._model.prob([word, *before]) * LOG_BASE) / self.chances[word]

"""UnitVocab: which token ids are units and special tokens, read from any tokenizer, ours or published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from units.notation import EOSP, SOSP, is_unit_word, unit_word

HUMAN, SPEECHGPT, EOH, EOA, TQ, TA, UA = "[Human]", "[SpeechGPT]", "<eoh>", "<eoa>", "[tq]", "[ta]", "[ua]"
SPECIAL_TOKENS = (SOSP, EOSP, HUMAN, SPEECHGPT, EOH, EOA, TQ, TA, UA)


class VocabularyError(ValueError):
    """A tokenizer whose units or special tokens are missing or misplaced."""


def new_words(size: int) -> list[str]:
    """The words that widening adds, in order: `<0>` .. `<size-1>`, then the special tokens."""
    return [unit_word(unit) for unit in range(size)] + list(SPECIAL_TOKENS)


def unused_word(token: int) -> str:
    """The word of an id that a text LLM's tokenizer leaves out, in a widened one. Its space keeps it out of texts."""
    return f"<unused {token}>"


@dataclass(frozen=True)
class UnitVocab:
    """Maps units to token ids: unit u is token `first_unit_id + u`.

    size: number of units K. special_ids: token id of each special token that the tokenizer has (published ones lack
    some).
    """

    first_unit_id: int
    size: int
    special_ids: Mapping[str, int]

    @classmethod
    def from_words(cls, ids: Mapping[str, int]) -> UnitVocab:
        """Read from a tokenizer's table of words and ids (`tokenizer.get_vocab()`).

        Raises:
            VocabularyError: there are no units, their ids are not one contiguous block in order, or a unit or a special
                token shares its id with another word.
        """
        size = 0
        while unit_word(size) in ids:
            size += 1
        if not size:
            raise VocabularyError(
                "this tokenizer has no units (<0>, <1>, ...): widen the model first, with stage 1 or speechgpt.widen"
            )
        _check_contiguous(ids, size)
        missing = [token for token in (SOSP, EOSP) if token not in ids]
        if missing:
            raise VocabularyError(
                f"this tokenizer has units but lacks {' and '.join(missing)}; it was not widened whole"
            )
        vocab = cls(ids[unit_word(0)], size, {token: ids[token] for token in SPECIAL_TOKENS if token in ids})
        vocab._check_unshared(ids)
        return vocab

    def special_id(self, token: str) -> int:
        """Token id of a special token. Raises VocabularyError naming it if the tokenizer lacks it."""
        if token not in self.special_ids:
            raise VocabularyError(f"this tokenizer has no {token}; it has {', '.join(self.special_ids)}")
        return self.special_ids[token]

    def _check_unshared(self, ids: Mapping[str, int]) -> None:
        """Raise VocabularyError if another word has the id of a unit or a special token."""
        owners = {self.first_unit_id + unit: unit_word(unit) for unit in range(self.size)}
        for token, id in self.special_ids.items():
            if owners.setdefault(id, token) != token:
                raise VocabularyError(f"{token} and {owners[id]} are both token {id} of this tokenizer")
        for word, id in ids.items():
            if owners.get(id, word) != word:
                raise VocabularyError(
                    f"{owners[id]} and the word {word!r} are both token {id} of this tokenizer, so text would become "
                    "units. Widen the text LLM again."
                )

    def encode(self, units: Sequence[int]) -> list[int]:
        """Token ids of `<sosp>units<eosp>`. Raises ValueError for a unit outside [0, K)."""
        for unit in units:
            if not 0 <= unit < self.size:
                raise ValueError(f"unit {unit} is out of range; this vocabulary has units 0 to {self.size - 1}")
        return [self.special_id(SOSP), *(self.first_unit_id + unit for unit in units), self.special_id(EOSP)]

    def decode(self, ids: Sequence[int]) -> list[int]:
        """Units of a token sequence, other tokens left out; inverse of encode."""
        return [token - self.first_unit_id for token in ids if self.is_unit(token)]

    def is_unit(self, tokens: Any) -> Any:
        """Whether a token id is a unit: a bool; for a tensor or an array of ids, one for each."""
        return (tokens >= self.first_unit_id) & (tokens < self.first_unit_id + self.size)


def _check_contiguous(ids: Mapping[str, int], size: int) -> None:
    """Raise VocabularyError unless the units are one block of ids, in order and without gaps."""
    beyond = min((word for word in ids if is_unit_word(word) and int(word[1:-1]) > size), default=None)
    if beyond:
        raise VocabularyError(
            f"the tokenizer has {beyond} but not {unit_word(size)}: units are one block without gaps. "
            "Was the tokenizer cut short?"
        )
    first = ids[unit_word(0)]
    for unit in range(size):
        if ids[unit_word(unit)] != first + unit:
            raise VocabularyError(
                f"{unit_word(unit)} is token {ids[unit_word(unit)]}, but {unit_word(0)} is {first}, so it must be "
                f"{first + unit}: units are one block in order. Was the tokenizer edited by hand?"
            )

"""Text as token ids, in which nothing that a user typed becomes a unit or a special token."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from speechgpt.vocab import UnitVocab, VocabularyError
from units.notation import unit_word

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextError(ValueError):
    """A text that is not Unicode: it holds half of a surrogate pair, as a byte that is not UTF-8 leaves one."""


class TextEncoder:
    """Encodes text with a widened tokenizer: `<7>` and `[ta]` become the tokens of their characters.

    There are three ways in which a tokenizer finds a unit or a special token in a text, and each is closed:

    - as an added word that is special: `split_special_tokens` leaves it out;
    - as an added word that is not special, as in the tokenizers that SpeechGPT published: a copy of the tokenizer is
      used in which it is special;
    - as a word of the base vocabulary: its token is replaced by those of its characters.

    tokenizer: the tokenizer, or the copy.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: UnitVocab) -> None:
        own = {*map(unit_word, range(vocab.size)), *vocab.special_ids}
        units = range(vocab.first_unit_id, vocab.first_unit_id + vocab.size)
        added = tokenizer.added_tokens_decoder.items()
        # one character may well be text: some tokenizers end a document with a newline
        special = [token for token, word in added if word.special and len(word.content.strip()) > 1]
        self._reserved = frozenset({*units, *vocab.special_ids.values(), *special} - {tokenizer.unk_token_id})
        self.tokenizer = _with_special(tokenizer, own)
        self._spelled: dict[int, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without the tokenizer's start and end.

        Raises:
            TextError: the text is not Unicode.
            VocabularyError: the text spells a unit or a special token, and the tokenizer has no other way to write it.
        """
        check_unicode(text)
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        if self._reserved.isdisjoint(ids):
            return ids
        return [one for token in ids for one in ([token] if token not in self._reserved else self._characters(token))]

    def _characters(self, token: int) -> list[int]:
        """Ids of the characters of a word; of its bytes, or of an unknown word, where the tokenizer has no others."""
        if token not in self._spelled:
            word, table = self.tokenizer.convert_ids_to_tokens(token), self.tokenizer.get_vocab()
            for pieces in (list(word), [f"<0x{byte:02X}>" for byte in word.encode()], [self.tokenizer.unk_token]):
                ids = [table.get(piece, token) for piece in pieces]
                if self._reserved.isdisjoint(ids):
                    break
            else:
                raise VocabularyError(f"this tokenizer cannot write the text {word!r} without the token of that name")
            self._spelled[token] = ids
        return self._spelled[token]


def check_unicode(text: str) -> None:
    """Raise TextError, with the place, for a text that cannot be written as UTF-8."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = ascii(text[max(0, error.start - 20) : error.end + 20])
        raise TextError(
            f"this text is not Unicode: character {error.start + 1} is {ascii(text[error.start])}, in {shown}. "
            "Was it UTF-8?"
        ) from None


def _with_special(tokenizer: PreTrainedTokenizerBase, words: Collection[str]) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy in which all added words of a collection are special."""
    ordinary = any(word.content in words and not word.special for word in tokenizer.added_tokens_decoder.values())
    if not ordinary or not tokenizer.is_fast:  # tokenizers in Python leave all added words out
        return tokenizer
    from tokenizers import Tokenizer

    changed = copy.deepcopy(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for word in state["added_tokens"]:
        if word["content"] in words:
            word |= {"special": True, "normalized": False}
    changed._tokenizer = Tokenizer.from_str(json.dumps(state))
    return changed

"""Units as text, `<sosp><12><7><eosp>`, as in SpeechGPT's released data. Only this module knows the notation."""

from __future__ import annotations

import re
from collections.abc import Sequence

SOSP = "<sosp>"
EOSP = "<eosp>"
_UNIT_WORD = re.compile(r"<(0|[1-9][0-9]*)>")
_SPELLED = re.compile(rf"{SOSP}((?:{_UNIT_WORD.pattern})*){EOSP}")


def unit_word(unit: int) -> str:
    """Unit 12 is the word `<12>`."""
    return f"<{unit}>"


def is_unit_word(word: str) -> bool:
    """Whether a word is `<12>` or the like."""
    return _UNIT_WORD.fullmatch(word) is not None


def spell(ids: Sequence[int]) -> str:
    """Spell ids.

    Example: [12, 7] -> "<sosp><12><7><eosp>"
    """
    return SOSP + "".join(map(unit_word, ids)) + EOSP


def read(text: str, size: int | None = None) -> list[int]:
    """Read spelled units; inverse of spell.

    Args:
        text: exactly one spelled sequence, spaces around it allowed.
        size: K; larger ids are refused.

    Raises: ValueError if the text is not `<sosp>..<eosp>` or a unit is out of range.
    """
    match = _SPELLED.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not spelled units: {text[:60]!r}; the form is {SOSP}<12><7>{EOSP}")
    ids = [int(word) for word in _UNIT_WORD.findall(match[1])]
    if size is not None and ids and max(ids) >= size:
        raise ValueError(f"unit <{max(ids)}> is out of range; this codebook has <0> to <{size - 1}>")
    return ids

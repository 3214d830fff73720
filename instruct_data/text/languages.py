"""Which language a text is written in, by py3langid (extra `data`). Languages are ISO 639-1 codes, such as `en`."""

from __future__ import annotations

import functools
import re
from typing import Any

from instruct_data.text.extras import required
from instruct_data.text.speakability import word_count

CERTAIN = 0.9  # probability of another language, above which a text is refused
LIKELY = 0.5  # probability of a language, above which numbers are written out in it
SHORTEST_TEXT = 5  # words; a shorter text may be of any language


@functools.cache
def _identifier() -> Any:
    langid = required("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def is_foreign(text: str, language: str) -> bool:
    """Whether a text is certainly of another language than this one. Short texts never are."""
    if word_count(text) < SHORTEST_TEXT:
        return False
    found, probability = _identifier().classify(text)
    return found != language and probability > CERTAIN


def likely_language(text: str) -> str | None:
    """The language that a text probably has; None if that is uncertain.

    English needs no certainty: a text whose most likely language is English usually is English.
    """
    found, probability = _identifier().classify(text)
    return found if probability > LIKELY or (found == "en" and any(map(str.isalpha, text))) else None


def language_code(spelling: str) -> str:
    """The ISO 639-1 code of another spelling of it (EN, en-US, en_GB).

    Raises:
        ValueError: if the language is unknown; the message lists the known ones.
    """
    code, known = re.split("[-_]", spelling.strip().lower())[0], sorted(set(_identifier().nb_classes))
    if code not in known:
        raise ValueError(f"unknown language {spelling!r}; there are {' '.join(known)}")
    return code

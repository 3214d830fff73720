"""Reason codes for inputs that instruct-build leaves out of a conversation set."""

from __future__ import annotations

from units.runtime.refusals import Reason


class BuildReason(Reason):
    """Why an utterance or a chat is left out of a set."""

    NO_TEXT = "no_text"
    """The utterance has no transcript."""
    NO_WORD = "no_word"
    """The transcript has no letter and no digit, such as `...` or an emoji."""
    NO_UNITS = "no_units"
    """The utterance has no units."""
    NO_AUDIO = "no_audio"
    """The unit set does not say where the utterance's audio lies."""
    NO_QUESTION = "not_a_question"
    """The utterance is not the first question of a chat of the text set."""
    NO_SPOKEN_QUESTION = "no_spoken_question"
    """A spoken question is needed, and there is none."""
    NO_SPOKEN_ANSWER = "no_spoken_answer"
    """The answer voice does not speak the answer."""
    NO_COMMON_SPEAKER = "no_common_speaker"
    """No speaker asks all questions of the chat."""
    HELD_OUT_SPEAKER = "held_out_speaker"
    """A held-out speaker says a text that another split has too; building it would be a leak."""
    SEVERAL_SPLITS = "several_splits"
    """The turns of the chat are in different splits."""

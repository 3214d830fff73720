"""Why a record of a released file is refused."""

from __future__ import annotations

from units.runtime.refusals import Reason, RefusedError


class ReleasedReason(Reason):
    """Reasons of instruct-speech-instruct and instruct-stage1-text."""

    EMPTY_LINE = "empty_line"
    NOT_UTF8 = "not_utf8"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    """`prefix` or `plain_text` is missing"""
    WRONG_TYPE = "wrong_type"
    """`prefix` or `plain_text` is not text"""
    UNKNOWN_FIELD = "unknown_field"
    LONE_SURROGATE = "lone_surrogate"
    """half of a surrogate pair"""
    NO_TURN = "no_turn"
    """`plain_text` is empty"""
    TURN_SYNTAX = "turn_syntax"
    """a turn is not [Human]: ...<eoh> [SpeechGPT]: ...<eoa>"""
    CUT_SHORT = "cut_short"
    """the last reply has no end"""
    EMPTY_MESSAGE = "empty_message"
    """a prompt or a reply is empty"""
    NO_WORD = "no_word"
    """a prompt of text, a transcript or an answer without a letter or a digit"""
    REPLY_SYNTAX = "reply_syntax"
    """a reply has text and units, but not as transcript; [ta] answer; [ua] units"""
    UNIT_SPELLING = "unit_spelling"
    """units are not <sosp><12><7><eosp>, or one of the two tokens is missing"""
    NO_UNITS = "no_units"
    """no units between <sosp> and <eosp>"""
    UNIT_RANGE = "unit_range"
    """a unit that the codebook does not have"""
    STRAY_TOKEN = "stray_token"
    """a special token or a unit within text"""
    SPEECH_WITHOUT_UNITS = "speech_without_units"
    """a conversation with speech whose units are not known"""
    NOT_EXPRESSIBLE = "not_expressible"
    """a conversation that the released form cannot hold without loss"""


class ReleasedError(RefusedError):
    """A record that cannot be read from or written to a released file."""

"""Reason codes for text chats that are left out: by the readers, the filters, rewriting and speaking."""

from __future__ import annotations

from units.runtime.refusals import Reason


class TextReason(Reason):
    """Why a row, a chat, a line or a text is left out."""

    # reading
    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    NOT_AN_OBJECT = "not_an_object"
    """JSON, but not an object."""
    DAMAGED_ARRAY = "damaged_array"
    """A JSON array is not valid from this element on; the rest of the file is lost."""
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    """A field holds another type than its format has there."""
    UNKNOWN_ROLE = "unknown_role"
    ROLES_DO_NOT_ALTERNATE = "roles_do_not_alternate"
    """Two messages of the same speaker follow each other."""
    NO_PARENT = "no_parent"
    """A message of a tree whose parent, or a parent above it, is not in the file, or not beside it; or a circle."""
    SAME_ID = "same_id"
    """A message of a tree with the id of another one."""
    NO_TURN = "no_turn"
    """No question with an answer."""
    NO_WORD = "no_word"
    """A question or an answer without a letter or a digit, such as `...` or an emoji."""
    LONE_SURROGATE = "lone_surrogate"
    """Half of a surrogate pair, which JSON can spell but UTF-8 cannot hold."""

    # filters: left out on purpose
    EMPTY = "empty"
    CODE = "code"
    URL = "url"
    TABLE = "table"
    LIST = "list"
    UNSPEAKABLE = "unspeakable"
    LONG_QUESTION = "long_question"
    LONG_ANSWER = "long_answer"
    LANGUAGE = "language"
    DUPLICATE = "duplicate"
    SHORT_TEXT = "short_text"

    # rewriting
    SERVER_ERROR = "server_error"
    UNREACHABLE = "server_unreachable"
    NO_COMPLETION = "no_completion"
    """The server's reply is not a chat completion."""
    NO_FIELD = "no_field"
    """The model's text holds no JSON object with the wanted field."""
    OUT_OF_TOKENS = "out_of_tokens"
    """The model used up its tokens before it wrote the wanted field."""

    # speaking
    UNKNOWN_VOICE = "unknown_voice"
    ENGINE_MISSING = "engine_missing"
    ENGINE_FAILED = "engine_failed"
    NOT_PLAIN_TEXT = "not_plain_text"
    """A text with a NUL, or with half of a surrogate pair."""
    SILENT = "silent"
    """The engine spoke, but the audio holds no speech."""
    LONGER_THAN_CONTEXT = "longer_than_context"
    """A text that does not fit into the context of the model that speaks it."""
    NO_END = "no_end"
    """The model reached its token limit before the end of its reply."""
    NO_UNITS = "no_units"
    """The model's reply holds no units."""


FILTERED = frozenset(
    {
        TextReason.EMPTY,
        TextReason.NO_WORD,
        TextReason.CODE,
        TextReason.URL,
        TextReason.TABLE,
        TextReason.LIST,
        TextReason.UNSPEAKABLE,
        TextReason.LONG_QUESTION,
        TextReason.LONG_ANSWER,
        TextReason.LANGUAGE,
        TextReason.DUPLICATE,
        TextReason.SHORT_TEXT,
    }
)
"""Reasons of filters. Leaving out inputs for these is what the user asked for, so the commands then exit with 0."""

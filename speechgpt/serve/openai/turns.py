"""Messages of a chat completion as a question and the turns before it; spoken turns are kept under their audio id."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from speechgpt.answers import SpeechModel
from speechgpt.dialogue import Message
from speechgpt.serve.errors import ApiError
from speechgpt.serve.openai.asked import shown
from speechgpt.serve.sounds import check_kind, decoded, read_samples, read_sound

KEPT_TURNS, KEPT_SECONDS = 1000, 3600  # spoken answers that later requests may name by their audio id
MOST_MESSAGES = 1000


@dataclass(frozen=True)
class Asked:
    """The last message of a chat: a sound (T,) or a text."""

    sound: np.ndarray | None
    text: str


class SpokenTurns:
    """Question and reply of spoken answers, by audio id. An id that is too old, or one of many, is forgotten."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, tuple[float, tuple[Message, ...]]] = OrderedDict()

    def keep(self, turn: tuple[Message, ...], audio_id: str = "") -> tuple[str, int]:
        """Keep a turn -> its id, and when it is forgotten, in seconds since 1970."""
        audio_id = audio_id or new_id("audio")
        expires = int(time.time()) + KEPT_SECONDS
        self._turns[audio_id] = (expires, turn)
        while len(self._turns) > KEPT_TURNS:
            self._turns.popitem(last=False)
        return audio_id, expires

    def find(self, audio_id: object) -> tuple[Message, ...]:
        """Raises ApiError for an id that is not known."""
        expires, turn = self._turns.get(audio_id if isinstance(audio_id, str) else "", (0, ()))
        if expires < time.time():
            raise ApiError(
                404, f"there is no audio {shown(audio_id)}; an id is known for {KEPT_SECONDS} s", "audio_not_found"
            )
        return turn


def new_id(kind: str) -> str:
    """An id as OpenAI's API has them."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def question_and_history(
    messages: object, model: SpeechModel, turns: SpokenTurns
) -> tuple[Asked, tuple[Message, ...], list[np.ndarray]]:
    """The last message, and those before it.

    Returns: the question; the history, in which a sound that is still to be encoded is an empty human message; and
        these sounds in order (`with_sounds` puts them in).

    Raises:
        ApiError: messages are malformed, or hold what the model cannot take.
    """
    if not isinstance(messages, list) or not 0 < len(messages) <= MOST_MESSAGES:
        raise ApiError(
            400, f"messages is {shown(messages)}; it must be a list of 1 to {MOST_MESSAGES}", param="messages"
        )
    said = [_said(message, f"messages[{number}]", model) for number, message in enumerate(messages)]
    said = [one for one in said if one is not None]
    if not said or said[-1][0] != "user":
        raise ApiError(400, "the last message must be from the role user", param="messages")
    for number, (role, _) in enumerate(said):
        if role != ("user", "assistant")[number % 2]:
            raise ApiError(400, "messages from user and assistant must alternate, the user first", param="messages")
    history: list[Message] = []
    sounds: list[np.ndarray] = []
    for (_, asked), (_, replied) in zip(said[:-1:2], said[1::2]):
        if "audio" in replied:  # the turn is kept whole, so the question need not be encoded again
            history += turns.find(replied["audio"])
            continue
        if asked["sound"] is None:
            history.append(Message("human", (asked["text"],)))
        else:
            if not hasattr(model, "heard"):
                raise ApiError(400, "this model takes earlier spoken turns by their audio id alone", "not_supported")
            sounds.append(asked["sound"])
            history.append(_PLACE)
        history.append(Message("assistant", (replied["text"],)))
    last = said[-1][1]
    return Asked(last["sound"], last["text"]), tuple(history), sounds


_PLACE = Message("human", ("",))  # where a sound will stand


def with_sounds(model: Any, history: Sequence[Message], sounds: Sequence[np.ndarray]) -> tuple[Message, ...]:
    """A history with its sounds, encoded by the model."""
    left = iter(sounds)
    return tuple(model.heard(next(left)) if message is _PLACE else message for message in history)


def _said(message: object, at: str, model: SpeechModel) -> tuple[str, dict[str, Any]] | None:
    """The role of a message, and its text, sound or audio id; None for a system message without text."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{at} is {shown(message)}; it must be an object", param=at)
    role, content = message.get("role"), message.get("content")
    if role in ("system", "developer"):
        if _text_of(content, at):
            raise ApiError(
                400, f"{at}: the system text of this model is built in; leave the message out",
                "not_supported", at,
            )  # fmt: skip
        return None
    if role == "assistant":
        audio = message.get("audio")
        if audio is not None:
            if not isinstance(audio, dict):
                raise ApiError(400, f"{at}.audio is {shown(audio)}; it must be an object with an id", param=at)
            return role, {"audio": audio.get("id")}
        text = _text_of(content, at)
        if not text:
            raise ApiError(400, f"{at} has neither content nor audio", param=at)
        return role, {"text": text}
    if role != "user":
        raise ApiError(400, f"{at}.role is {shown(role)}; allowed: user, assistant", param=at)
    sound = _sound_of(content, at, model)
    text = _text_of(content, at)
    if (sound is None) == (not text):
        what = "a text and a sound; this model answers one of them" if text else "neither text nor sound"
        raise ApiError(400, f"{at} has {what}", "not_supported" if text else None, at)
    return role, {"text": text, "sound": sound}


def _text_of(content: object, at: str) -> str:
    if isinstance(content, str):
        texts: list[object] = [content]
    elif content is None:
        texts = []
    elif isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else part
            if kind not in ("text", "input_audio", "refusal"):
                raise ApiError(
                    400, f"{at} has a part of the type {shown(kind)}; allowed: text, input_audio", "not_supported", at
                )
        texts = [part.get("text") for part in content if part["type"] == "text"]
    else:
        raise ApiError(400, f"{at}.content is {shown(content)}; it must be a text or a list of parts", param=at)
    joined = []
    for text in texts:
        if not isinstance(text, str):
            raise ApiError(400, f"{at} has a text part whose text is {shown(text)}", param=at)
        joined.append(text.strip())
    whole = "\n".join(filter(None, joined))
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{at} is not Unicode: it holds half of a surrogate pair", param=at) from None
    return whole


def _sound_of(content: object, at: str, model: SpeechModel) -> np.ndarray | None:
    """The sound of a message's only sound part; None if it has none."""
    if not isinstance(content, list):
        return None
    parts = [part for part in content if isinstance(part, dict) and part.get("type") == "input_audio"]
    if not parts:
        return None
    if len(parts) > 1:
        raise ApiError(400, f"{at} has {len(parts)} sounds; one is allowed", param=at)
    given = parts[0].get("input_audio")
    if not isinstance(given, dict):
        raise ApiError(400, f"{at} has a part input_audio without data and format", param=at)
    kind = check_kind(given.get("format", "wav"), f"{at}.input_audio.format")
    data = decoded(given.get("data"), f"{at}.input_audio.data")
    if kind in ("pcm", "pcm16"):
        return read_samples(data, model.sample_rate)
    return read_sound(data, f"the sound of {at}")

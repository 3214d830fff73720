"""OpenAI's realtime API: a conversation over one WebSocket, with 16-bit samples at 24 kHz in both directions.

Event names are those of the API's general release. `turn_detection` is `server_vad`, by energy, or null; then the
client commits what it has appended. An error is an `error` event, and the session goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from speechgpt.answers import Answer, NotSupported
from speechgpt.dialogue import Message
from speechgpt.serve import gate
from speechgpt.serve.errors import ApiError, as_api_error
from speechgpt.serve.openai.asked import json_object, sampling_of, shown
from speechgpt.serve.openai.reply import Reply
from speechgpt.serve.openai.turns import new_id
from speechgpt.serve.openai.voice_activity import Turns, VoiceActivity
from speechgpt.serve.service import Service
from speechgpt.serve.sounds import OPENAI_RATE, decoded, resampled

LONGEST_QUESTION = 120  # seconds of sound that a session keeps
MOST_SESSIONS = 256
PCM = {"type": "audio/pcm", "rate": OPENAI_RATE}
SYSTEM_TEXT = "the system text of this model is built in"


async def realtime(socket: WebSocket) -> None:
    """One session."""
    service: Service = socket.app.state.service
    if service.sessions >= MOST_SESSIONS:
        await socket.close(1013, "too many sessions")
        return
    offered = socket.scope.get("subprotocols") or []
    await socket.accept("realtime" if "realtime" in offered else None)
    service.sessions += 1
    session = Session(socket, service)
    try:
        await session.run()
    except (WebSocketDisconnect, gate.Gone):
        pass
    finally:
        service.sessions -= 1
        await session.stop_reply("client_cancelled")
        with suppress(RuntimeError, OSError):
            await socket.close()


class Session:
    """One conversation.

    history: the turns so far. question: what the next response answers: an item with a wav (T,) at 24 kHz, or a text.
    """

    def __init__(self, socket: WebSocket, service: Service) -> None:
        self._socket, self.service = socket, service
        able = service.model.capabilities
        self.modality = "audio" if "say" in able or "stream" in able else "text"
        self.turns: Turns | None = Turns()
        self.transcribes: dict[str, Any] | None = None
        self.voice: Any = "default"
        self.history: list[Message] = []
        self.question: tuple[str, np.ndarray | str] | None = None
        self.id, self.conversation = new_id("sess"), new_id("conv")
        self._activity = VoiceActivity(self.turns)
        self._heard: list[np.ndarray] = []  # the last samples that were appended
        self._first = self._count = 0  # samples: where these begin, and how many came in all
        self._item = ""  # of speech that goes on
        self._last_item: str | None = None
        self._reply: Reply | None = None
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Handle events until the client leaves."""
        await self.send("session.created", session=self._settings())
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            event_id = None
            try:
                event = json_object(message.get("text") or message.get("bytes") or "")
                event_id = event.get("event_id")
                await self._handle(event)
            except (WebSocketDisconnect, gate.Gone):
                raise
            except Exception as error:  # noqa: BLE001 - the client receives the error, and the session goes on
                await self.send_error(error, event_id)

    async def send(self, kind: str, **content: Any) -> None:
        """Send an event. Raises Gone if the client takes no byte for CLIENT_TIMEOUT."""
        text = json.dumps({"type": kind, "event_id": new_id("event"), **content})
        async with self._sending:
            try:
                await asyncio.wait_for(self._socket.send_text(text), gate.CLIENT_TIMEOUT)
            except (asyncio.TimeoutError, RuntimeError, OSError) as error:
                raise gate.Gone("the client takes no event") from error

    async def send_error(self, error: BaseException, event_id: Any = None) -> ApiError:
        """Tell the client of an error; the session goes on."""
        told = as_api_error(error)
        await self.send("error", error={**told.body()["error"], "event_id": event_id})
        return told

    async def _handle(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "session.update":
            self._update(event.get("session"))
            await self.send("session.updated", session=self._settings())
        elif kind == "input_audio_buffer.append":
            await self._append(decoded(event.get("audio"), "audio"))
        elif kind == "input_audio_buffer.commit":
            await self._commit(self._count)
        elif kind == "input_audio_buffer.clear":
            self._forget(self._count)
            self._activity = VoiceActivity(self.turns or Turns())
            self._item = ""
            await self.send("input_audio_buffer.cleared")
        elif kind == "conversation.item.create":
            await self._create(event.get("item"))
        elif kind == "response.create":
            await self.respond(event.get("response"))
        elif kind == "response.cancel":
            if self._reply is None:
                raise ApiError(400, "there is no response to cancel", "response_cancel_not_active")
            await self.stop_reply("client_cancelled")
        else:
            raise ApiError(
                400,
                f"type is {shown(kind)}; allowed: session.update, input_audio_buffer.append, .commit, .clear, "
                "conversation.item.create, response.create, response.cancel",
                "unknown_event",
                "type",
            )

    # --- settings

    def _settings(self) -> dict[str, Any]:
        detection = None if self.turns is None else {"type": "server_vad", **asdict(self.turns)}
        heard = {"format": PCM, "turn_detection": detection, "transcription": self.transcribes}
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": self.service.model_id,
            "output_modalities": [self.modality],
            "instructions": "",
            "tools": [],
            "audio": {"input": heard, "output": {"format": PCM, "voice": self.voice, "speed": 1.0}},
        }

    def _update(self, wanted: Any) -> None:
        """Change what is named; nothing, if one field is refused. Raises ApiError."""
        session = _object_of(wanted, "session")
        if session.get("type") not in (None, "realtime"):
            raise ApiError(400, f"session.type is {shown(session['type'])}; allowed: realtime", param="session.type")
        modality = self._modality(session, "session")
        heard = _object_of(_object_of(session.get("audio"), "session.audio").get("input"), "session.audio.input")
        spoken = _object_of(_object_of(session.get("audio"), "session.audio").get("output"), "session.audio.output")
        for name, side in (("input", heard), ("output", spoken)):
            given = side.get("format")
            if given is not None and (not isinstance(given, dict) or {**PCM, **given} != PCM):
                raise ApiError(400, f"session.audio.{name}.format is {shown(given)}; allowed: {PCM}", "not_supported")
        if spoken.get("speed") not in (None, 1, 1.0):
            raise ApiError(400, f"speed is {shown(spoken['speed'])}; allowed: 1", "not_supported", "speed")
        turns = _turns(heard["turn_detection"]) if "turn_detection" in heard else self.turns
        transcribes = heard.get("transcription", self.transcribes)
        if transcribes is not None and not isinstance(transcribes, dict):
            raise ApiError(400, f"transcription is {shown(transcribes)}; it must be an object or null")
        if turns != self.turns:
            self.turns, self._activity = turns, VoiceActivity(turns or Turns())
        self.modality, self.transcribes = modality, transcribes
        self.voice = spoken.get("voice", self.voice)

    def _modality(self, given: Mapping[str, Any], at: str) -> str:
        """text or audio. Raises ApiError, also for instructions and tools."""
        if given.get("instructions"):
            raise ApiError(400, f"{at}.instructions: {SYSTEM_TEXT}; leave them out", "not_supported")
        if given.get("tools"):
            raise ApiError(400, f"{at}.tools: this model calls no tools", "not_supported")
        modalities = given.get("output_modalities")
        if modalities is None:
            return self.modality
        if modalities not in (["text"], ["audio"], ["audio", "text"], ["text", "audio"]):
            raise ApiError(400, f"{at}.output_modalities is {shown(modalities)}; allowed: ['text'] or ['audio']")
        return "audio" if "audio" in modalities else "text"

    # --- sound that comes in

    async def _append(self, data: bytes) -> None:
        wav = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
        if self._count - self._first + len(wav) > LONGEST_QUESTION * OPENAI_RATE:
            raise ApiError(
                413, f"more than {LONGEST_QUESTION} s of sound without a commit; commit or clear it", "buffer_full"
            )
        self._heard.append(wav)
        self._count += len(wav)
        if self.turns is None:
            return
        for boundary in self._activity.push(wav):
            at = boundary.at_ms * OPENAI_RATE // 1000
            if boundary.kind == "begin":
                self._forget(at)
                self._item = new_id("item")
                await self.send("input_audio_buffer.speech_started", audio_start_ms=boundary.at_ms, item_id=self._item)
                if self.turns.interrupt_response:
                    await self.stop_reply("turn_detected")
            else:
                await self.send("input_audio_buffer.speech_stopped", audio_end_ms=boundary.at_ms, item_id=self._item)
                await self._commit(at)
                if self.turns.create_response and self._reply is None:
                    await self.respond(None)
        if not self._activity.speaking:  # nobody speaks: only what may be before speech is kept
            self._forget(self._count - (self.turns.prefix_padding_ms + 200) * OPENAI_RATE // 1000)

    def _forget(self, until: int) -> None:
        """Drop samples before a place, counted from the first that came."""
        if until <= self._first:
            return
        rest = np.concatenate([*self._heard, np.zeros(0, np.float32)])[until - self._first :]
        self._heard, self._first = [rest], min(until, self._count)

    async def _commit(self, until: int) -> None:
        """Make an item of the samples up to a place."""
        wav = np.concatenate([*self._heard, np.zeros(0, np.float32)])[: max(0, until - self._first)]
        if not len(wav):
            raise ApiError(400, "the input audio buffer is empty", "input_audio_buffer_commit_empty")
        self._forget(until)
        item, self._item = self._item or new_id("item"), ""
        await self.send("input_audio_buffer.committed", item_id=item, previous_item_id=self._last_item)
        content = [{"type": "input_audio", "transcript": None}]
        await self._add_item({"id": item, "type": "message", "role": "user", "content": content})
        self.question = (item, wav)

    # --- items

    async def _add_item(self, item: dict[str, Any]) -> None:
        item = {"object": "realtime.item", "status": "completed", **item}
        previous, self._last_item = self._last_item, item["id"]
        for kind in ("conversation.item.added", "conversation.item.done"):
            await self.send(kind, item=item, previous_item_id=previous)

    async def _create(self, given: Any) -> None:
        item = _object_of(given, "item")
        role, content = item.get("role"), item.get("content")
        if item.get("type") != "message" or role not in ("user", "assistant"):
            reason = SYSTEM_TEXT if role == "system" else "allowed: a message from user or assistant"
            raise ApiError(400, f"an item {shown(item.get('type'))} from {shown(role)}: {reason}", "not_supported")
        if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
            raise ApiError(400, "item.content must be a list of one part", param="item.content")
        part = content[0]
        said: np.ndarray | str
        if part.get("type") == "input_audio" and role == "user":
            data = decoded(part.get("audio"), "item.content[0].audio")
            said = np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768
        else:
            text = part.get("text", part.get("transcript"))
            if not isinstance(text, str) or not text.strip():
                raise ApiError(400, "item.content[0] has neither text nor audio", param="item.content")
            said = text.strip()
        item_id = item.get("id") if isinstance(item.get("id"), str) else new_id("item")
        if role == "assistant":
            await self._replied(str(said))
        await self._add_item({"id": item_id, "type": "message", "role": role, "content": [_without_sound(part)]})
        if role == "user":
            self.question = (str(item_id), said)

    async def _replied(self, text: str) -> None:
        """Make a turn of the history of the last question and a reply that the client brings."""
        if self.question is None:
            raise ApiError(400, "an assistant's item follows one of the user", param="item")
        asked = self.question[1]
        if isinstance(asked, str):
            message = Message("human", (asked,))
        else:
            heard = getattr(self.service.model, "heard", None)
            if heard is None:
                raise ApiError(400, "this model takes no earlier spoken turns", "not_supported")
            message = await self.service.work.run(lambda: heard(self.at_model_rate(asked)))
        self.question = None
        self.history += [message, Message("assistant", (text,))]

    def at_model_rate(self, wav: np.ndarray) -> np.ndarray:
        """Samples (T,) at 24 kHz as the model takes them."""
        return resampled(wav, OPENAI_RATE, self.service.model.sample_rate)

    # --- responses

    async def respond(self, given: Any) -> None:
        """Begin to answer the question. Raises ApiError."""
        wanted = _object_of(given, "response")
        modality = self._modality(wanted, "response")
        conversation = wanted.get("conversation")
        if conversation not in (None, "auto", "none"):
            raise ApiError(400, f"conversation is {shown(conversation)}; allowed: auto, none", param="conversation")
        sampling = sampling_of({"candidates": wanted.get("candidates")}, self.service.sampling)
        if self._reply is not None:
            raise ApiError(400, "a response is in progress", "conversation_already_has_active_response")
        if self.question is None:
            raise ApiError(400, "there is nothing to answer: add an item, or commit sound", "nothing_to_answer")
        item, asked = self.question
        able = self.service.model.capabilities
        if isinstance(asked, str):
            needed = ["chat", *(["say"] if modality == "audio" else [])]
        else:
            needed = ["stream" if "stream" in able else "answer"]
        for capability in needed:
            if capability not in able:
                raise NotSupported(self.service.model, capability)  # type: ignore[arg-type]
        self.question = None
        self._reply = Reply(self, item, asked, modality == "audio", sampling, kept=conversation != "none")
        self._reply.begin()

    async def stop_reply(self, reason: str) -> None:
        """Cancel the response that is in progress, if there is one, and wait until it has stopped."""
        if self._reply is not None:
            await self._reply.cancel(reason)

    def left(self, reply: Reply) -> None:
        """A response was cancelled, perhaps before it began."""
        if self._reply is reply:
            self._reply = None

    def replied(self, answer: Answer | None) -> None:
        """A response has ended; None if it has no answer that later ones are given."""
        self._reply = None
        if answer is not None:
            self.history += answer.turn


def _object_of(value: Any, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(400, f"{name} is {shown(value)}; it must be an object", param=name)
    return value


def _turns(given: Any) -> Turns | None:
    """`turn_detection` of a session. Raises ApiError."""
    if given is None:
        return None
    detection = _object_of(given, "turn_detection")
    if detection.get("type", "server_vad") != "server_vad":
        raise ApiError(400, f"turn_detection.type is {shown(detection['type'])}; allowed: server_vad", "not_supported")
    ranges = {"threshold": (0.0, 1.0), "prefix_padding_ms": (0, 5000), "silence_duration_ms": (100, 10_000)}
    found: dict[str, Any] = {}
    for name in (one.name for one in fields(Turns)):
        value = detection.get(name)
        if value is None:
            continue
        if name in ranges:
            least, most = ranges[name]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
                raise ApiError(400, f"{name} is {shown(value)}; allowed: {least} to {most}", param=name)
        elif not isinstance(value, bool):
            raise ApiError(400, f"{name} is {shown(value)}; allowed: true, false", param=name)
        found[name] = int(value) if name.endswith("_ms") else value
    return Turns(**found)


def _without_sound(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part as items show it: what was sent is not sent back."""
    return {name: value for name, value in part.items() if name in ("type", "text", "transcript")}

"""One response of a realtime session: the events that it sends while the model answers."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from speechgpt.answers import Answer, Piece, answer_pieces
from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from speechgpt.serve.errors import as_api_error
from speechgpt.serve.gate import Gone
from speechgpt.serve.openai.turns import new_id
from speechgpt.serve.service import Service
from speechgpt.serve.sounds import OPENAI_RATE, SampleStream

BYTES_AT_ONCE = 24_000  # of sound in one event: half a second


class Session(Protocol):
    """What a response needs of its session (speechgpt/serve/openai/realtime.py).

    history: the turns before. transcribes: settings of the question's transcript; None if it is not wanted.
    voice: the name of one, as the client sent it.
    """

    service: Service
    history: list[Message]
    transcribes: dict[str, Any] | None
    voice: Any
    conversation: str

    async def send(self, kind: str, **content: Any) -> None:
        """Send an event."""

    async def send_error(self, error: BaseException, event_id: Any = None) -> Any:
        """Send an error event."""

    def at_model_rate(self, wav: np.ndarray) -> np.ndarray:
        """Samples (T,) at 24 kHz as the model takes them."""
        ...

    def replied(self, answer: Answer | None) -> None:
        """The response has ended."""

    def left(self, reply: Any) -> None:
        """The response was cancelled, perhaps before it began."""


class Reply:
    """A response to one question."""

    def __init__(
        self, session: Session, asked_item: str, asked: np.ndarray | str, aloud: bool, sampling: Sampling, kept: bool
    ) -> None:
        """
        Args:
            asked_item: id of the question's item.
            asked: its wav (T,) at 24 kHz, or its text.
            aloud: whether sound is wanted.
            sampling: how its tokens are drawn.
            kept: whether later responses are given this turn.
        """
        self._session, self._asked_item, self._asked, self._aloud = session, asked_item, asked, aloud
        self._sampling, self._kept = sampling, kept
        self.id, self._item = new_id("resp"), new_id("item")
        self._text = ""
        self._reason = ""
        self._began = False
        self._task: asyncio.Task[None] | None = None
        self._place = {"response_id": self.id, "item_id": self._item, "output_index": 0, "content_index": 0}

    def begin(self) -> None:
        """Answer in a task of its own."""
        self._task = asyncio.create_task(self._run())

    async def cancel(self, reason: str) -> None:
        """Stop, and tell the client. reason: in OpenAI's words."""
        self._reason = reason
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._task])
        self._session.left(self)
        if not self._began:  # asyncio cancels such a task without running any of it
            with suppress(Gone):
                await self._open()
                await self._close("cancelled", {"type": "cancelled", "reason": reason})

    def _pieces(self) -> Iterator[Piece]:
        """The answer, piece by piece. Runs in a thread."""
        service, history = self._session.service, tuple(self._session.history)
        model = service.in_voice(self._session.voice)
        if not isinstance(self._asked, str):
            yield from answer_pieces(model, self._session.at_model_rate(self._asked), self._sampling, history)
            return
        text = model.chat(self._asked, self._sampling, history)
        turn = (Message("human", (self._asked,)), Message("assistant", (text,))) if text else ()
        yield Piece(text=text)
        said = model.say(text, self._sampling) if self._aloud and text else None
        finished = said is None or said.finished
        wav = None if said is None else said.wav
        yield Piece(wav=wav, answer=Answer(None, text, None, wav, finished=finished, turn=turn))

    async def _run(self) -> None:
        self._began = True
        answer: Answer | None = None
        status, details = "completed", None
        try:
            await self._open()
            answer = await self._stream()
            if not answer.finished:
                status, details = "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}
        except asyncio.CancelledError:
            status, details = "cancelled", {"type": "cancelled", "reason": self._reason or "client_cancelled"}
            answer = None
        except Gone:
            self._session.replied(None)
            return
        except Exception as error:  # noqa: BLE001 - the client receives the error, and the session goes on
            told = as_api_error(error)
            status, details = "failed", {"type": "failed", "error": {"type": told.kind, "code": told.code or "error"}}
            with suppress(Gone):
                await self._session.send_error(told)
        self._session.replied(answer if self._kept else None)
        with suppress(Gone):
            await self._close(status, details)

    async def _stream(self) -> Answer:
        service = self._session.service
        stream, timer = SampleStream(service.model.sample_rate), service.metrics.timer()
        answer = None
        async with service.work.stream(self._pieces) as pieces:
            async for piece in pieces:
                seconds = 0 if piece.wav is None else len(piece.wav) / service.model.sample_rate
                timer.gained(bool(piece.text or piece.transcript), seconds)
                answer = piece.answer or answer
                await self._send_texts(piece)
                if piece.wav is not None and self._aloud:
                    await self._send_sound(stream.push(piece.wav))
        if answer is None:
            answer = Answer(None, None, None, None, finished=False)
        if self._aloud and answer.wav is not None:
            await self._send_sound(stream.push(answer.wav[:0], last=True))
        timer.ended()
        if not isinstance(self._asked, str):
            await self._send_transcript(answer)
        return answer

    async def _send_texts(self, piece: Piece) -> None:
        if piece.transcript and self._session.transcribes is not None:
            await self._session.send(
                "conversation.item.input_audio_transcription.delta",
                item_id=self._asked_item,
                content_index=0,
                delta=piece.transcript,
            )
        if piece.text:
            self._text += piece.text
            kind = "output_audio_transcript" if self._aloud else "output_text"
            await self._session.send(f"response.{kind}.delta", delta=piece.text, **self._place)

    async def _send_sound(self, data: bytes) -> None:
        for start in range(0, len(data), BYTES_AT_ONCE):
            delta = base64.b64encode(data[start : start + BYTES_AT_ONCE]).decode()
            await self._session.send("response.output_audio.delta", delta=delta, **self._place)

    async def _send_transcript(self, answer: Answer) -> None:
        """What was understood of the question, if the client asked for it."""
        session = self._session
        if session.transcribes is None or isinstance(self._asked, str):
            return
        heard, wav, service = answer.transcript, self._asked, session.service
        if heard is None and "transcribe" in service.model.capabilities:
            heard = await service.work.run(lambda: service.model.transcribe(session.at_model_rate(wav), self._sampling))
        if heard is not None:
            await session.send(
                "conversation.item.input_audio_transcription.completed",
                item_id=self._asked_item,
                content_index=0,
                transcript=heard,
                usage={"type": "duration", "seconds": len(wav) / OPENAI_RATE},
            )

    # --- the frame of events around an answer

    def _part(self) -> dict[str, Any]:
        if self._aloud:
            return {"type": "output_audio", "transcript": self._text}
        return {"type": "output_text", "text": self._text}

    def _as_item(self, status: str) -> dict[str, Any]:
        content = [] if status == "in_progress" else [self._part()]
        return {
            "id": self._item, "object": "realtime.item", "type": "message", "status": status, "role": "assistant",
            "content": content,
        }  # fmt: skip

    def _as_response(self, status: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        output = [] if status == "in_progress" else [self._as_item(self._item_status(status))]
        return {
            "id": self.id, "object": "realtime.response", "status": status, "status_details": details,
            "output": output, "conversation_id": self._session.conversation if self._kept else None,
            "output_modalities": ["audio" if self._aloud else "text"], "usage": None,
        }  # fmt: skip

    def _item_status(self, status: str) -> str:
        return "completed" if status == "completed" else "incomplete"

    async def _open(self) -> None:
        send, item = self._session.send, self._as_item("in_progress")
        await send("response.created", response=self._as_response("in_progress"))
        await send("response.output_item.added", response_id=self.id, output_index=0, item=item)
        await send("conversation.item.added", item=item, previous_item_id=self._asked_item)
        part = {"type": "audio" if self._aloud else "text"}
        await send("response.content_part.added", part=part, **self._place)

    async def _close(self, status: str, details: dict[str, Any] | None) -> None:
        send, item = self._session.send, self._as_item(self._item_status(status))
        if self._aloud:
            await send("response.output_audio.done", **self._place)
            await send("response.output_audio_transcript.done", transcript=self._text, **self._place)
        else:
            await send("response.output_text.done", text=self._text, **self._place)
        part = {"type": "audio", "transcript": self._text} if self._aloud else {"type": "text", "text": self._text}
        await send("response.content_part.done", part=part, **self._place)
        await send("response.output_item.done", response_id=self.id, output_index=0, item=item)
        await send("conversation.item.done", item=item, previous_item_id=self._asked_item)
        await send("response.done", response=self._as_response(status, details))

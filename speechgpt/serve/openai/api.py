"""OpenAI's API: models, transcriptions, speech, and chat completions with sound in and out.

Any name of a model or of a voice is accepted, since clients send the names that they know: a server has one model, and
an unknown voice is the model's first. What else a model cannot do is a 4xx that says so.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from speechgpt.answers import Answer, NotSupported, Piece, answer_pieces
from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from speechgpt.serve.errors import ApiError, as_api_error
from speechgpt.serve.gate import body_of, header, unless_gone
from speechgpt.serve.openai.asked import flag, json_object, refuse_fields, sampling_of, shown, text_field
from speechgpt.serve.openai.turns import Asked, new_id, question_and_history, with_sounds
from speechgpt.serve.service import Service
from speechgpt.serve.sounds import RAW, SampleStream, check_kind, read_sound, written
from speechgpt.serve.streamed import Pieces, Streamed

TEXT_FORMATS = ("json", "text", "verbose_json")
NO_CHAT_OPTION: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "tools": ([],), "functions": ([],), "stop": ([], ""), "logprobs": (False,), "top_logprobs": (0,),
    "response_format": ({"type": "text"},), "logit_bias": ({},), "presence_penalty": (0,), "frequency_penalty": (0,),
    "web_search_options": (),
}  # fmt: skip


def listed_models(service: Service) -> dict[str, Any]:
    """The one model that is served."""
    model = {"id": service.model_id, "object": "model", "created": service.begun, "owned_by": "speechgpt"}
    return {
        "object": "list",
        "data": [{**model, "capabilities": sorted(service.model.capabilities), "voices": list(service.voices)}],
    }


# --- transcriptions


async def transcriptions(request: Request) -> Response:
    """Multipart `file` -> {"text"}."""
    service = request.app.state.service
    fields, sound = await _form(request)
    kind = fields.get("response_format", "json")
    if kind not in TEXT_FORMATS:
        raise ApiError(
            400, f"response_format is {shown(kind)}; allowed: {', '.join(TEXT_FORMATS)}", param="response_format"
        )
    refuse_fields(
        fields, {"prompt": ("",), "stream": ("false",), "include[]": (), "timestamp_granularities[]": ("segment",)}
    )
    sampling = service.sampling
    if fields.get("temperature"):
        try:
            sampling = sampling_of({"temperature": float(fields["temperature"])}, sampling)
        except ValueError as error:
            raise ApiError(400, f"temperature: {error}", param="temperature") from error
    seconds = 0.0

    def ask() -> str:
        nonlocal seconds
        wav = read_sound(sound, "the file")
        seconds = len(wav) / service.model.sample_rate
        return service.model.transcribe(wav, sampling)

    text = await unless_gone(request, service.work.run(ask))
    if kind == "text":
        return PlainTextResponse(text + "\n")
    usage = {"type": "duration", "seconds": round(seconds)}
    if kind == "json":
        return JSONResponse({"text": text, "usage": usage})
    verbose = {"task": "transcribe", "language": fields.get("language", ""), "duration": seconds, "text": text}
    return JSONResponse({**verbose, "segments": [], "usage": usage})


async def _form(request: Request) -> tuple[dict[str, str], bytes]:
    """The fields of a form, and the bytes of its `file`. Raises ApiError."""
    from python_multipart.exceptions import FormParserError
    from starlette.datastructures import UploadFile
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException

    kind = header(request.scope, "content-type")
    if not kind.startswith("multipart/form-data"):
        raise ApiError(400, f"the Content-Type is {kind!r}; a transcription is sent as multipart/form-data")
    body = await body_of(request)
    sent = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(sent, {"type": "http.disconnect"})

    try:
        async with Request(request.scope, receive).form(max_files=1, max_fields=50) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "the form has no file; send the sound as the field `file`", param="file")
            sound = await file.read()
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
    except (FormParserError, MultiPartException, HTTPException, ValueError, KeyError, AssertionError) as error:
        if isinstance(error, ApiError):
            raise
        reason = getattr(error, "detail", None) or str(error) or type(error).__name__
        raise ApiError(400, f"the form is malformed ({reason})") from error
    if not sound:
        raise ApiError(400, "the file is empty", param="file")
    return fields, sound


# --- speech


async def speech(request: Request) -> Response:
    """{"input", "response_format"} -> the bytes of a sound."""
    service = request.app.state.service
    fields = json_object(await body_of(request))
    text = text_field(fields, "input")
    kind = check_kind(fields.get("response_format") or "mp3", "response_format")
    refuse_fields(fields, {"instructions": ("",), "speed": (1,), "stream_format": ("audio",)})
    sampling = sampling_of(fields, service.sampling)

    def ask() -> tuple[bytes, str]:
        answer = service.in_voice(fields.get("voice")).say(text, sampling)
        if answer.wav is None:
            raise ApiError(422, "the model gave no speech for this text", "no_speech")
        return written(answer.wav, service.model.sample_rate, kind)

    content, media = await unless_gone(request, service.work.run(ask))
    return Response(content, media_type=media)


# --- chat completions


class ChatRequest:
    """A chat completion that was asked for."""

    def __init__(self, fields: Mapping[str, Any], service: Service) -> None:
        """Raises: ApiError."""
        self.service = service
        refuse_fields(fields, NO_CHAT_OPTION)
        self.streamed = flag(fields, "stream")
        self.usage = flag(_object(fields, "stream_options"), "include_usage")
        modalities = fields.get("modalities") or ["text"]
        if not isinstance(modalities, list) or not all(one in ("text", "audio") for one in modalities):
            raise ApiError(400, f"modalities is {shown(modalities)}; allowed: text, audio", param="modalities")
        self.aloud = "audio" in modalities
        output = _object(fields, "audio")
        self.voice = output.get("voice")
        wanted = output.get("format") or ("pcm16" if self.streamed else "wav")
        self.format = check_kind(wanted, "audio.format")
        if self.aloud and self.streamed and self.format not in RAW:
            raise ApiError(400, f"audio.format is {self.format!r}; a stream has pcm16", param="audio.format")
        self.sampling: Sampling = sampling_of(fields, service.sampling)
        self.asked: Asked
        self.asked, self._history, self._sounds = question_and_history(
            fields.get("messages"), service.model, service.turns
        )
        able = service.model.capabilities
        if self.asked.sound is None:
            needed = ["chat", *(["say"] if self.aloud else [])]
        else:
            needed = ["stream" if "stream" in able and "answer" not in able else "answer"]
        for capability in needed:
            if capability not in able:
                raise NotSupported(service.model, capability)  # type: ignore[arg-type]
        self.id, self.created = new_id("chatcmpl"), int(time.time())

    def pieces(self) -> Iterator[Piece]:
        """The answer, piece by piece. Runs in a thread."""
        model, asked = self.service.in_voice(self.voice), self.asked
        history = with_sounds(model, self._history, self._sounds)
        if asked.sound is not None:
            yield from answer_pieces(model, asked.sound, self.sampling, history)
            return
        text = model.chat(asked.text, self.sampling, history)
        turn = (Message("human", (asked.text,)), Message("assistant", (text,))) if text else ()
        if not self.aloud or not text:
            yield Piece(text=text, answer=Answer(None, text, None, None, turn=turn))
            return
        yield Piece(text=text)
        said = model.say(text, self.sampling)
        yield Piece(wav=said.wav, answer=Answer(None, text, said.units, said.wav, said.candidate, said.finished, turn))

    def reason(self, answer: Answer) -> str:
        """Why the answer ended, in OpenAI's words."""
        return "stop" if answer.finished else "length"

    def whole(self, answer: Answer) -> dict[str, Any]:
        """The completion as one object."""
        text = answer.text or ""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.aloud and answer.wav is not None:
            audio_id, expires = self.service.turns.keep(answer.turn)
            data, _ = written(answer.wav, self.service.model.sample_rate, self.format)
            sound = {"id": audio_id, "data": base64.b64encode(data).decode(), "transcript": text}
            message |= {"content": None, "audio": {**sound, "expires_at": expires}}
        if answer.transcript is not None:
            message["input_transcript"] = answer.transcript
        choice = {"index": 0, "message": message, "finish_reason": self.reason(answer), "logprobs": None}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage(answer)}

    def chunk(self, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        """One event of a stream."""
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def last_chunk(self, answer: Answer) -> dict[str, Any]:
        """The event with the usage, for clients that ask for it."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(answer)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.service.model_id}

    def _usage(self, answer: Answer) -> dict[str, int]:
        """Tokens are not counted by the protocol of models; the units of the speech are."""
        units = len(answer.units or ())
        return {"prompt_tokens": 0, "completion_tokens": units, "total_tokens": units}


def _object(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ApiError(400, f"{name} is {shown(value)}; it must be an object", param=name)
    return value


async def chat_completions(request: Request) -> Response:
    """Messages -> a completion, whole or as server-sent events."""
    service = request.app.state.service
    body = await body_of(request)
    asked = await asyncio.to_thread(lambda: ChatRequest(json_object(body), service))  # it may hold minutes of sound
    timer = service.metrics.timer()
    rate = service.model.sample_rate
    if not asked.streamed:

        def ask() -> Answer:
            answer = None
            for piece in asked.pieces():
                timer.gained(bool(piece.text or piece.transcript), 0 if piece.wav is None else len(piece.wav) / rate)
                answer = piece.answer
            if answer is None:
                raise ApiError(422, "the model gave no answer", "no_answer")
            return answer

        answer = await unless_gone(request, service.work.run(ask))
        timer.ended()
        return JSONResponse(asked.whole(answer))

    pieces = await unless_gone(request, Pieces.begin(service.work, asked.pieces))
    return Streamed(pieces, _events(asked, pieces, timer), "text/event-stream")


async def _events(asked: ChatRequest, pieces: Pieces[Piece], timer: Any) -> AsyncIterator[bytes]:
    """A completion as server-sent events: text as it is written, sound as 16-bit samples at 24 kHz in base64."""
    service, stream = asked.service, SampleStream(asked.service.model.sample_rate)
    audio_id = new_id("audio")
    yield _event(asked.chunk({"role": "assistant", "content": None if asked.aloud else ""}))
    answer: Answer | None = None
    try:
        async for piece in pieces:
            seconds = 0 if piece.wav is None else len(piece.wav) / service.model.sample_rate
            timer.gained(bool(piece.text or piece.transcript), seconds)
            answer = piece.answer or answer
            if piece.transcript:
                yield _event(asked.chunk({"input_transcript": piece.transcript}))
            if piece.text and asked.aloud:
                yield _event(asked.chunk({"audio": {"id": audio_id, "transcript": piece.text}}))
            elif piece.text:
                yield _event(asked.chunk({"content": piece.text}))
            if piece.wav is not None and asked.aloud:
                for data in _cut(stream.push(piece.wav)):
                    yield _event(asked.chunk({"audio": {"id": audio_id, "data": data}}))
    except Exception as error:  # noqa: BLE001 - the client receives the error
        yield _event(as_api_error(error).body())
        return
    timer.ended()
    if answer is None:
        answer = Answer(None, None, None, None, finished=False)
    if asked.aloud and answer.wav is not None:
        for data in _cut(stream.push(answer.wav[:0], last=True)):
            yield _event(asked.chunk({"audio": {"id": audio_id, "data": data}}))
        _, expires = service.turns.keep(answer.turn, audio_id)
        yield _event(asked.chunk({"audio": {"id": audio_id, "expires_at": expires}}))
    yield _event(asked.chunk({}, asked.reason(answer)))
    if asked.usage:
        yield _event(asked.last_chunk(answer))
    yield b"data: [DONE]\n\n"


SAMPLES_AT_ONCE = 24_000  # bytes of sound in one event: half a second


def _cut(data: bytes) -> Iterator[str]:
    """Samples in base64, in pieces that a client's buffers hold."""
    for start in range(0, len(data), SAMPLES_AT_ONCE):
        yield base64.b64encode(data[start : start + SAMPLES_AT_ONCE]).decode()


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"

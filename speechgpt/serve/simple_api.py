"""Simple routes, for curl: an audio file or a text in the body, lines of JSON or a wav in the reply."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from speechgpt.answers import Piece, answer_pieces
from speechgpt.sampling import MOST_CANDIDATES, Sampling
from speechgpt.serve.errors import ApiError, as_api_error
from speechgpt.serve.gate import body_of, unless_gone
from speechgpt.serve.sounds import read_sound, samples, written
from speechgpt.serve.streamed import Pieces, Streamed


async def facts(request: Request) -> Response:
    """Name and capabilities of the model."""
    model = request.app.state.service.model
    return JSONResponse(
        {"name": model.name, "capabilities": sorted(model.capabilities), "sample_rate": model.sample_rate}
    )


async def answer(request: Request) -> Response:
    """An audio file -> a line of JSON for each piece of the answer."""
    service = request.app.state.service
    sampling = _sampling(request, service.sampling)
    body = await body_of(request)
    begun = Pieces.begin(service.work, lambda: answer_pieces(service.model, read_sound(body), sampling))
    pieces = await unless_gone(request, begun)
    timer, rate = service.metrics.timer(), service.model.sample_rate

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                timer.gained(bool(piece.text or piece.transcript), 0 if piece.wav is None else len(piece.wav) / rate)
                yield _line(_as_json(piece))
            timer.ended()
        except Exception as error:  # noqa: BLE001 - the client receives the error
            yield _line({"error": str(as_api_error(error))})

    return Streamed(pieces, lines(), "application/x-ndjson")


async def transcribe(request: Request) -> Response:
    """An audio file -> {"text"}."""
    service = request.app.state.service
    body = await body_of(request)
    text = await unless_gone(
        request, service.work.run(lambda: service.model.transcribe(read_sound(body), service.sampling))
    )
    return JSONResponse({"text": text})


async def chat(request: Request) -> Response:
    """A question -> {"text"}."""
    service = request.app.state.service
    question = _text(await body_of(request))
    text = await unless_gone(request, service.work.run(lambda: service.model.chat(question, service.sampling)))
    return JSONResponse({"text": text})


async def say(request: Request) -> Response:
    """A text -> a wav."""
    service = request.app.state.service
    text = _text(await body_of(request))

    def ask() -> bytes:
        found = service.model.say(text, service.sampling)
        if found.wav is None:
            raise ApiError(400, "the model gave no speech")
        return written(found.wav, service.model.sample_rate, "wav")[0]

    return Response(await unless_gone(request, service.work.run(ask)), media_type="audio/wav")


def _sampling(request: Request, default: Sampling) -> Sampling:
    """The server's sampling, with the candidates of the request. Raises ApiError for another option."""
    query = request.scope["query_string"].decode("latin-1")
    try:
        options = parse_qs(query, keep_blank_values=True, max_num_fields=10, errors="strict")
    except ValueError as error:
        raise ApiError(400, f"the options of the path are malformed ({error})") from error
    values = options.pop("candidates", None)
    if options:
        raise ApiError(400, f"there is no option {', '.join(map(repr, options))}; allowed: candidates")
    if values is None:
        return default
    if len(values) > 1 or not re.fullmatch("-?[0-9]{1,9}", values[0]):
        raise ApiError(400, f"candidates is {', '.join(values)!r}; allowed: a number, 1 to {MOST_CANDIDATES}")
    return replace(default, candidates=int(values[0]))


def _text(body: bytes) -> str:
    try:
        text = body.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ApiError(400, "the request's body is not UTF-8 text") from error
    if not text:
        raise ApiError(400, "the request's body is an empty text")
    return text


def _as_json(piece: Piece) -> dict[str, Any]:
    """A piece as JSON can hold it, without its empty parts."""
    record: dict[str, Any] = {"transcript": piece.transcript, "text": piece.text}
    if piece.wav is not None:
        record["wav"] = base64.b64encode(samples(piece.wav)).decode()
    if piece.answer is not None:
        candidate = piece.answer.candidate
        record |= {"finished": piece.answer.finished, "understood": candidate and candidate.understood}
    return {name: value for name, value in record.items() if value != ""}


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"

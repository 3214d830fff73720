"""The stock `openai` client with another base URL: transcription, speech, chat with sound in and out, realtime."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
from echo_system import ANSWERED, Echo
from serving import SAMPLING, ask, audio
from text_only_system import LoudnessModel
from tiny_parts import talkative, tones

from speechgpt.dialogue import Message
from speechgpt.inference import SpeechGPT
from speechgpt.serve.application import Server, Serving
from speechgpt.serve.openai.reply import Reply
from speechgpt.serve.openai.voice_activity import Turns, VoiceActivity
from speechgpt.serve.sounds import OPENAI_RATE, SampleStream, resampled
from units.audio import SAMPLE_RATE

KEY = "secret"
QUESTION = tones(0.4)


@pytest.fixture(scope="module")
def gpt(model_folder: Path) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(model_folder))


@pytest.fixture(scope="module")
def server(gpt: SpeechGPT) -> Iterator[Server]:
    serving = Serving(port=0, key=KEY, origins=("https://friend.example",))
    with Server(gpt, SAMPLING, serving).background() as server:
        yield server


def client_of(server: Server, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{server.address[1]}/v1", api_key=key, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return client_of(server)


def spoken(wav: np.ndarray = QUESTION, kind: str = "wav") -> dict:
    """A user's message with a sound."""
    data = base64.b64encode(audio(wav, kind.upper())).decode()
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": kind}}]}


def heard_of(gpt: SpeechGPT, wav: np.ndarray = QUESTION) -> np.ndarray:
    """A wav as it is read from a file of 16 bits."""
    return soundfile.read(io.BytesIO(audio(wav)), dtype="float32")[0]


ALOUD = {"model": "gpt-audio", "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}


# --- models, transcription, speech


def test_models_are_listed(client: openai.OpenAI, gpt: SpeechGPT) -> None:
    (model,) = client.models.list()
    assert model.id == gpt.name.replace(" ", "-") == client.models.retrieve(model.id).id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another")


@pytest.mark.parametrize("kind", ["json", "text", "verbose_json"])
def test_a_sound_is_transcribed(client: openai.OpenAI, gpt: SpeechGPT, kind: str) -> None:
    wanted = gpt.transcribe(heard_of(gpt), SAMPLING)
    found = client.audio.transcriptions.create(model="whisper-1", file=("q.wav", audio(QUESTION)), response_format=kind)
    assert (found.strip() if isinstance(found, str) else found.text) == wanted
    if kind == "verbose_json":
        assert found.duration == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "pcm"])
def test_a_text_is_read_aloud(client: openai.OpenAI, gpt: SpeechGPT, kind: str) -> None:
    wanted = gpt.say("what is two", SAMPLING).wav
    content = client.audio.speech.create(
        model="tts-1", voice="alloy", input="what is two", response_format=kind
    ).content
    if kind == "pcm":
        wav = np.frombuffer(content, "<i2") / 32767
        np.testing.assert_allclose(wav, resampled(wanted, SAMPLE_RATE, OPENAI_RATE).clip(-1, 1), atol=1e-3)
        return
    wav, rate = soundfile.read(io.BytesIO(content))
    assert len(wav) / rate == pytest.approx(len(wanted) / SAMPLE_RATE, abs=0.1)
    if kind in ("wav", "flac"):
        np.testing.assert_allclose(wav, np.clip(wanted, -1, 1), atol=1e-4)


# --- chat


def test_a_spoken_question_is_answered_aloud(client: openai.OpenAI, gpt: SpeechGPT) -> None:
    whole = gpt.answer(heard_of(gpt), SAMPLING)
    choice = client.chat.completions.create(messages=[spoken()], **ALOUD).choices[0]
    assert choice.message.audio.transcript == whole.text and choice.finish_reason == "stop"
    wav, rate = soundfile.read(io.BytesIO(base64.b64decode(choice.message.audio.data)))
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(wav, np.clip(whole.wav, -1, 1), atol=1e-4)
    assert choice.message.input_transcript == whole.transcript
    silent = client.chat.completions.create(model="any", messages=[spoken(kind="flac")]).choices[0].message
    assert silent.content == whole.text and silent.audio is None


def test_a_streamed_answer_is_the_whole_one(client: openai.OpenAI, gpt: SpeechGPT) -> None:
    whole = gpt.answer(heard_of(gpt), SAMPLING)
    settings = {**ALOUD, "audio": {"voice": "alloy", "format": "pcm16"}}
    text, samples, ids, reasons = "", b"", set(), []
    for chunk in client.chat.completions.create(messages=[spoken()], stream=True, **settings):
        delta = chunk.choices[0].delta
        reasons.append(chunk.choices[0].finish_reason)
        part = dict(delta.audio or {}) if hasattr(delta, "audio") else {}
        text += part.get("transcript") or ""
        samples += base64.b64decode(part.get("data") or "")
        ids |= {part["id"]} if part.get("id") else set()
    assert text == whole.text and len(ids) == 1
    assert reasons[-1] == "stop" and not any(reasons[:-1])
    wanted = resampled(whole.wav, SAMPLE_RATE, OPENAI_RATE)
    found = np.frombuffer(samples, "<i2") / 32767
    assert len(found) == pytest.approx(len(wanted), abs=2)
    np.testing.assert_allclose(found[: len(wanted)], wanted.clip(-1, 1)[: len(found)], atol=2e-3)


def test_text_is_answered_in_text_and_aloud(client: openai.OpenAI, gpt: SpeechGPT) -> None:
    messages = [{"role": "user", "content": "what is two"}]
    wanted = gpt.chat("what is two", SAMPLING)
    assert client.chat.completions.create(model="any", messages=messages).choices[0].message.content == wanted
    pieces = client.chat.completions.create(
        model="any", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == wanted
    aloud = client.chat.completions.create(messages=messages, **ALOUD).choices[0].message
    assert aloud.audio.transcript == wanted if wanted else True


def test_several_turns_with_spoken_history(client: openai.OpenAI, gpt: SpeechGPT) -> None:
    first = gpt.answer(heard_of(gpt), SAMPLING)
    begun = client.chat.completions.create(messages=[spoken()], **ALOUD).choices[0].message
    later = [spoken(), {"role": "assistant", "audio": {"id": begun.audio.id}}, spoken(tones(0.3, 5))]
    wanted = gpt.answer(heard_of(gpt, tones(0.3, 5)), SAMPLING, first.turn)
    assert client.chat.completions.create(messages=later, **ALOUD).choices[0].message.audio.transcript == wanted.text
    later[1] = {"role": "assistant", "content": "that makes four"}
    history = (gpt.heard(heard_of(gpt)), Message("assistant", ("that makes four",)))
    wanted = gpt.answer(heard_of(gpt, tones(0.3, 5)), SAMPLING, history)
    found = client.chat.completions.create(model="any", messages=later).choices[0].message
    assert found.content == (wanted.text or "")


def test_a_request_may_set_its_sampling(client: openai.OpenAI, gpt: SpeechGPT) -> None:
    found = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "what"}], temperature=0, max_completion_tokens=4, seed=1
    )
    wanted = gpt.chat("what", replace(SAMPLING, temperature=0.0, max_new_tokens=4, seed=1))
    assert found.choices[0].message.content == wanted


# --- what is refused

GOOD = {"model": "m", "messages": [{"role": "user", "content": "what"}]}


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "system", "content": "be kind"}, GOOD["messages"][0]]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0]",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0]"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, None),
        ({"max_tokens": 0}, None),
        ({"seed": 1.5}, "seed"),
        ({"stream": 1}, "stream"),
        ({"modalities": ["video"]}, "modalities"),
        ({"audio": {"format": "aac"}}, "audio.format"),
        ({"stream": True, "modalities": ["audio"], "audio": {"format": "wav"}}, "audio.format"),
    ],
)
def test_what_is_not_supported_is_an_error_of_openais_form(server: Server, changes: dict, param: str | None) -> None:
    body = json.dumps(GOOD | changes).encode()
    status, kind, content = ask(server, "POST", "/v1/chat/completions", body, Authorization=f"Bearer {KEY}")
    error = json.loads(content)["error"]
    assert (status, kind) == (400, "application/json")
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert error["param"] == param and error["message"]


@pytest.mark.parametrize(
    "sound",
    [{"data": "data:audio/wav;base64,AAAA"}, {"data": ""}, {}, {"data": "AAAA"}, {"data": "AAAA", "format": "x"}],
)
def test_sounds_that_are_none_are_bad_requests(client: openai.OpenAI, sound: dict) -> None:
    message = {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="m", messages=[message])


@pytest.mark.parametrize(
    "settings",
    [{"response_format": "aac"}, {"speed": 2.0}, {"instructions": "whisper"}, {"input": " "}, {"input": "\ud83d"}],
)
def test_speech_that_is_not_supported_is_refused(server: Server, settings: dict) -> None:
    body = json.dumps({"model": "m", "voice": "v", "input": "what"} | settings).encode()
    status, _, content = ask(server, "POST", "/v1/audio/speech", body, Authorization=f"Bearer {KEY}")
    assert status == 400 and json.loads(content)["error"]["param"] in settings


def test_transcriptions_that_are_not_supported_are_refused(client: openai.OpenAI) -> None:
    for settings in ({"response_format": "srt"}, {"prompt": "names"}, {"stream": True}):
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(model="m", file=("q.wav", audio(QUESTION)), **settings)
    for content in (b"", b"no audio", audio(np.zeros(SAMPLE_RATE))):
        with pytest.raises(openai.BadRequestError):
            client.audio.transcriptions.create(model="m", file=("q.wav", content))


def test_a_model_that_cannot_speak_says_so() -> None:
    with Server(LoudnessModel(Path("tiny"), 0.1, "cpu"), SAMPLING, Serving(port=0)).background() as server:
        client = client_of(server, "any")
        messages = [{"role": "user", "content": "what"}]
        assert client.chat.completions.create(model="m", messages=messages).choices[0].message.content
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(messages=messages, **ALOUD)
        assert refused.value.code == "not_supported"
        with pytest.raises(openai.NotFoundError):
            client.audio.speech.create(model="m", voice="v", input="what")


# --- who may ask


def test_a_key_is_needed(server: Server) -> None:
    for key in ("wrong", KEY + "x", "sécret"):
        status, _, content = ask(server, "GET", "/v1/models", Authorization=f"Bearer {key}".encode().decode("latin-1"))
        assert status == 401 and json.loads(content)["error"]["code"] == "invalid_api_key"
    assert ask(server, "GET", "/v1/models")[0] == ask(server, "POST", "/chat", b"x")[0] == 401
    assert ask(server, "GET", "/metrics")[0] == 401
    assert ask(server, "GET", "/health")[0] == ask(server, "GET", "/")[0] == 200


def test_pages_of_named_sites_may_ask(server: Server) -> None:
    friend, foe = {"Origin": "https://friend.example"}, {"Origin": "https://foe.example"}
    allowed = {"Authorization": f"Bearer {KEY}"}
    assert ask(server, "OPTIONS", "/v1/chat/completions", **friend)[0] == 204
    assert ask(server, "OPTIONS", "/v1/chat/completions", **foe)[0] == 403
    assert ask(server, "POST", "/chat", b"what", **allowed, **friend)[0] == 200
    assert ask(server, "POST", "/chat", b"what", **allowed, **foe)[0] == 403


def test_figures_are_kept(server: Server, client: openai.OpenAI) -> None:
    client.chat.completions.create(messages=[spoken()], **ALOUD)
    text = ask(server, "GET", "/metrics", Authorization=f"Bearer {KEY}")[2].decode()
    assert 'speechgpt_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert "speechgpt_first_audio_seconds_count" in text and "speechgpt_queued 0.0" in text
    assert float(text.split("speechgpt_real_time_factor_count ")[1].split()[0]) >= 1


# --- realtime


async def events_until(connection, last: str) -> list:
    """Events up to the first of a type; an error event fails the test, unless it is what is waited for."""
    found = []
    async with asyncio.timeout(120):
        async for event in connection:
            found.append(event)
            if event.type == last:
                return found
            assert event.type != "error", event
    raise AssertionError(f"the connection ended before {last}")


def in_session(server: Server, work) -> None:
    async def run() -> None:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.address[1]}/v1", api_key=KEY)
        async with client.realtime.connect(model="gpt-realtime") as connection:
            assert (await events_until(connection, "session.created"))[-1].session.type == "realtime"
            await work(connection)

    asyncio.run(run())


def pcm(wav: np.ndarray) -> str:
    """A wav at 16 kHz as base64 of 16-bit samples at 24 kHz."""
    return base64.b64encode((resampled(wav, SAMPLE_RATE, OPENAI_RATE) * 32767).astype("<i2").tobytes()).decode()


def test_a_realtime_session_commits_and_answers(server: Server, gpt: SpeechGPT) -> None:
    async def work(connection) -> None:
        heard = {"turn_detection": None, "transcription": {"model": "any"}}
        await connection.session.update(session={"type": "realtime", "audio": {"input": heard}})
        session = (await events_until(connection, "session.updated"))[-1].session
        assert session.audio.input.turn_detection is None
        for turn in range(2):
            await connection.input_audio_buffer.append(audio=pcm(tones(0.5, turn)))
            await connection.input_audio_buffer.commit()
            await connection.response.create()
            events = await events_until(connection, "response.done")
            kinds = [event.type for event in events]
            done = events[-1].response
            assert done.status in ("completed", "incomplete")
            said = "".join(event.delta for event in events if event.type == "response.output_audio_transcript.delta")
            assert done.output[0].content[0].transcript == said
            assert "input_audio_buffer.committed" in kinds and "conversation.item.added" in kinds
            completed = [e for e in events if e.type == "conversation.item.input_audio_transcription.completed"]
            pieces = [e.delta for e in events if e.type == "conversation.item.input_audio_transcription.delta"]
            assert completed[0].transcript == "".join(pieces)
            sounds = [base64.b64decode(event.delta) for event in events if event.type == "response.output_audio.delta"]
            assert sum(map(len, sounds)) % 2 == 0
            assert kinds.index("response.created") < kinds.index("response.output_item.added")
            assert kinds[-2:] == ["conversation.item.done", "response.done"]

    in_session(server, work)


def test_a_response_outside_the_conversation_is_forgotten(server: Server, gpt: SpeechGPT) -> None:
    async def work(connection) -> None:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        said = []
        for conversation in ("none", "auto", "none"):
            content = [{"type": "input_text", "text": "one"}]
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
            await connection.response.create(response={"conversation": conversation})
            events = await events_until(connection, "response.done")
            assert (events[-1].response.conversation_id is None) == (conversation == "none")
            said.append("".join(event.delta for event in events if event.type == "response.output_text.delta"))
        turn = (Message("human", ("one",)), Message("assistant", (said[1],)))
        assert said == [gpt.chat("one", SAMPLING)] * 2 + [gpt.chat("one", SAMPLING, turn)]
        await connection.send({"type": "response.create", "response": {"conversation": "some"}})
        assert "allowed: auto, none" in (await events_until(connection, "error"))[-1].error.message

    in_session(server, work)


def test_a_voice_is_chosen_by_its_name() -> None:
    with Server(Echo(), SAMPLING, Serving(port=0)).background() as server:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.address[1]}/v1", api_key="none")
        (model,) = client.models.list()
        assert model.voices == ["high", "low"]
        seconds = {"high": ANSWERED, "low": 2 * ANSWERED, "alloy": ANSWERED}
        for voice, expected in seconds.items():
            said = client.audio.speech.create(model="m", voice=voice, input="one", response_format="wav").read()
            assert soundfile.info(io.BytesIO(said)).duration == expected
            aloud = {"modalities": ["text", "audio"], "audio": {"voice": voice, "format": "wav"}}
            chat = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "one"}], **aloud)
            assert soundfile.info(io.BytesIO(base64.b64decode(chat.choices[0].message.audio.data))).duration == expected


def test_a_realtime_session_answers_text(server: Server, gpt: SpeechGPT) -> None:
    async def work(connection) -> None:
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        await events_until(connection, "session.updated")
        content = [{"type": "input_text", "text": "what is two"}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        events = await events_until(connection, "response.done")
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert said == gpt.chat("what is two", SAMPLING)

    in_session(server, work)


def test_speech_is_found_by_its_energy(server: Server) -> None:
    async def work(connection) -> None:
        wav = np.concatenate([np.zeros(8000, np.float32), tones(0.6), np.zeros(16000, np.float32)])
        for start in range(0, len(wav), 1600):
            await connection.input_audio_buffer.append(audio=pcm(wav[start : start + 1600]))
        events = await events_until(connection, "response.done")
        by_kind = {event.type: event for event in events}
        begin = by_kind["input_audio_buffer.speech_started"].audio_start_ms
        end = by_kind["input_audio_buffer.speech_stopped"].audio_end_ms
        assert 100 <= begin <= 300 and 1500 <= end <= 1800  # 300 ms before, 500 ms after

    in_session(server, work)


def test_a_response_can_be_cancelled(server: Server) -> None:
    async def work(connection) -> None:
        await connection.response.cancel()
        assert (await events_until(connection, "error"))[-1].error.code == "response_cancel_not_active"
        await connection.response.create()
        assert (await events_until(connection, "error"))[-1].error.code == "nothing_to_answer"
        content = [{"type": "input_text", "text": "what is two"}]
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()
        await connection.response.cancel()
        done = (await events_until(connection, "response.done"))[-1].response
        assert done.status in ("cancelled", "completed")
        await connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await connection.response.create()  # the session goes on
        await events_until(connection, "response.done")

    in_session(server, work)


def test_realtime_events_that_are_wrong_are_errors(server: Server) -> None:
    wrong = [
        {"type": "session.update", "session": {"instructions": "be kind"}},
        {"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}},
        {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "semantic_vad"}}}}},
        {"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 9}}}}},
        {"type": "session.update", "session": 3},
        {"type": "input_audio_buffer.append", "audio": "!"},
        {"type": "input_audio_buffer.append"},
        {"type": "input_audio_buffer.commit"},
        {"type": "conversation.item.create", "item": {"type": "message", "role": "system", "content": []}},
        {"type": "conversation.item.create", "item": {"type": "message", "role": "assistant", "content": [{}]}},
        {"type": "dance"},
        {},
    ]  # fmt: skip

    async def work(connection) -> None:
        for number, event in enumerate(wrong):
            await connection._connection.send(json.dumps({**event, "event_id": f"e{number}"}))
            error = (await events_until(connection, "error"))[-1].error
            assert error.event_id == f"e{number}" and error.message
        for text in ("no JSON", "[]", '"x"', "[" * 100_000):
            await connection._connection.send(text)
            await events_until(connection, "error")

    in_session(server, work)


def test_a_session_needs_the_key(server: Server) -> None:
    async def run() -> None:
        client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.address[1]}/v1", api_key="wrong")
        with pytest.raises(Exception, match="401|403"):
            async with client.realtime.connect(model="m"):
                pass

    asyncio.run(run())


# --- parts


def test_samples_in_pieces_are_those_of_the_whole() -> None:
    wav = tones(1.0)
    stream = SampleStream(SAMPLE_RATE)
    pieces = [stream.push(wav[start : start + 777]) for start in range(0, len(wav), 777)]
    found = np.frombuffer(b"".join([*pieces, stream.push(wav[:0], last=True)]), "<i2")
    wanted = resampled(wav, SAMPLE_RATE, OPENAI_RATE)
    assert len(found) == pytest.approx(len(wanted), abs=1)
    np.testing.assert_allclose(found / 32767, wanted[: len(found)], atol=1e-3)


def test_voice_activity_does_not_depend_on_the_pieces() -> None:
    noise = np.random.default_rng(1).standard_normal(24_000 * 4).astype(np.float32) * 0.003
    noise[30_000:60_000] += tones(1.875)[:30_000]
    noise[80_000:80_100] += 0.9  # a click
    whole = list(VoiceActivity(Turns()).push(noise))
    assert [boundary.kind for boundary in whole] == ["begin", "end"]
    activity = VoiceActivity(Turns())
    pieces = [found for start in range(0, len(noise), 313) for found in activity.push(noise[start : start + 313])]
    assert pieces == whole


def test_a_response_that_is_cancelled_before_it_runs_is_ended_too() -> None:
    """asyncio does not enter a task that is cancelled at once; the client still gets the response's last event."""
    sent: list[tuple[str, dict]] = []

    class Session:
        conversation = "conv_1"

        async def send(self, kind: str, **content: object) -> None:
            sent.append((kind, content))

        def left(self, reply: Reply) -> None:
            sent.append(("left", {}))

    async def work() -> None:
        reply = Reply(Session(), "item_1", "what is two", False, SAMPLING, True)  # type: ignore[arg-type]
        reply.begin()
        await reply.cancel("client_cancelled")

    asyncio.run(work())
    kinds = [kind for kind, _ in sent]
    assert kinds[0] == "left" and kinds[1] == "response.created" and kinds[-1] == "response.done"
    response = sent[-1][1]["response"]
    assert response["status"] == "cancelled" and response["status_details"]["reason"] == "client_cancelled"

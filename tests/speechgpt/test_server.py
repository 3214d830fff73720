"""speechgpt-server over a real socket: every path, errors as JSON, and a page that loads nothing else."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import SAMPLING, ask, audio, raw
from tiny_parts import talkative, tones

from speechgpt.answers import Piece
from speechgpt.inference import SpeechGPT
from speechgpt.serve import gate
from speechgpt.serve import server as command
from speechgpt.serve.application import Server, Serving
from speechgpt.serve.page_files import FOLDER
from units.audio import SAMPLE_RATE


@pytest.fixture(scope="module")
def gpt(model_folder: Path) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(model_folder))


@pytest.fixture(scope="module")
def server(gpt: SpeechGPT) -> Iterator[Server]:
    with Server(gpt, SAMPLING, Serving(port=0)).background() as server:
        yield server


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_an_answer_is_streamed_in_lines(server: Server, gpt: SpeechGPT, kind: str) -> None:
    status, type_, content = ask(server, "POST", "/answer", audio(tones(0.4), kind))
    assert (status, type_) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in content.splitlines()]
    heard, _ = soundfile.read(io.BytesIO(audio(tones(0.4), kind)), dtype="float32")
    whole = gpt.answer(heard, SAMPLING)
    assert "".join(line.get("transcript", "") for line in lines) == whole.transcript
    assert "".join(line.get("text", "") for line in lines) == whole.text
    samples = np.frombuffer(b"".join(base64.b64decode(line.get("wav", "")) for line in lines), "<i2")
    np.testing.assert_allclose(samples / 32767, np.clip(whole.wav, -1, 1), atol=1e-4)
    assert lines[-1]["finished"] is True and lines[-1]["understood"] is None
    assert not any("finished" in line for line in lines[:-1])


def test_a_request_may_set_its_candidates(server: Server) -> None:
    _, _, content = ask(server, "POST", "/answer?candidates=2", audio(tones(0.4)))
    assert json.loads(content.splitlines()[-1])["understood"] in (True, False)


def test_texts_are_answered_and_spoken(server: Server, gpt: SpeechGPT) -> None:
    question = "what is two plus two"
    assert json.loads(ask(server, "POST", "/chat", question.encode())[2]) == {"text": gpt.chat(question, SAMPLING)}
    status, kind, content = ask(server, "POST", "/say", question.encode())
    assert (status, kind) == (200, "audio/wav")
    wav, rate = soundfile.read(io.BytesIO(content))
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(wav, np.clip(gpt.say_batch([question], SAMPLING)[0].wav, -1, 1), atol=1e-4)
    heard = json.loads(ask(server, "POST", "/transcribe", audio(tones(0.4)))[2])
    assert heard == {"text": gpt.transcribe_batch([tones(0.4)], SAMPLING)[0]}
    facts = json.loads(ask(server, "GET", "/model")[2])
    assert facts == {
        "name": gpt.name,
        "capabilities": ["answer", "chat", "say", "stream", "transcribe"],
        "sample_rate": SAMPLE_RATE,
    }


@pytest.mark.parametrize(
    "method, path, body, status, says",
    [
        ("POST", "/answer", b"no audio", 400, "the request's body cannot be read as audio ("),
        ("POST", "/answer", audio(np.zeros(SAMPLE_RATE)), 400, "is silent"),
        ("POST", "/answer", audio(tones(0.01)), 400, "at least 0.025 s"),
        ("POST", "/answer?candidates=0", audio(tones(0.4)), 400, "candidates is 0"),
        ("POST", "/answer?candidates=x", audio(tones(0.4)), 400, "candidates is 'x'"),
        ("POST", "/answer?candidates=", audio(tones(0.4)), 400, "1 to 100"),
        ("POST", "/answer?candidates=101", audio(tones(0.4)), 400, "1 to 100"),
        ("POST", "/answer?candidates=1&candidates=2", audio(tones(0.4)), 400, "1 to 100"),
        ("POST", "/answer?takes=1", audio(tones(0.4)), 400, "there is no option 'takes'"),
        ("POST", "/answer?candidates=%ff", audio(tones(0.4)), 400, "malformed"),
        ("POST", "/answer", None, 400, "has a body"),
        ("POST", "/chat", b"", 400, "has a body"),
        ("POST", "/chat", b"  ", 400, "an empty text"),
        ("POST", "/say", b"\xff\xfe", 400, "not UTF-8"),
        ("POST", "/chat", b"x" * 5000, 400, "this model's context is 256"),
        ("POST", "/sing", b"x", 404, "there is no /sing; POST to /answer"),
        ("GET", "/etc/passwd", None, 404, "there is no /etc/passwd"),
    ],
)
def test_errors_are_json(server: Server, method: str, path: str, body, status: int, says: str) -> None:
    found, kind, content = ask(server, method, path, body)
    assert (found, kind) == (status, "application/json")
    assert says in json.loads(content)["error"]
    assert "/tmp" not in json.loads(content)["error"]


def test_a_body_that_is_too_long_is_not_read(server: Server) -> None:
    status, _, content = ask(server, "POST", "/answer", **{"Content-Length": str(gate.MAX_BODY + 1)})
    assert status == 413 and str(gate.MAX_BODY) in json.loads(content)["error"]


def test_pages_of_other_sites_are_refused(server: Server) -> None:
    status, _, content = ask(server, "POST", "/chat", b"x", Origin="http://evil.example")
    assert status == 403 and "may not use this server" in json.loads(content)["error"]
    port = server.address[1]
    for host, status in ((f"evil.example:{port}", 403), (f"localhost:{port}", 200)):
        assert ask(server, "POST", "/chat", b"x", Host=host, Origin=f"http://{host}")[0] == status
    own = f"http://127.0.0.1:{server.address[1]}"
    assert ask(server, "POST", "/chat", b"x", Origin=own)[0] == 200


@pytest.mark.parametrize(
    "path, size, headers, status",
    [
        ("/sing", 20 << 20, {}, 404),
        ("/answer", gate.MAX_BODY + 1, {}, 413),
        ("/answer", 20 << 20, {"Origin": "http://evil.example"}, 403),
        ("/answer", 20 << 20, {"Host": "[::1"}, 400),
        ("/chat", 20 << 20, {"Content-Length": "x"}, 400),
    ],
)
def test_the_sender_of_a_refused_body_gets_the_reason(server: Server, path: str, size: int, headers, status) -> None:
    found, kind, content = ask(server, "POST", path, bytes(size), **headers)
    assert (found, kind) == (status, "application/json") and json.loads(content)["error"]


@pytest.mark.parametrize("method", ["GET /model", "POST /chat"])
@pytest.mark.parametrize(
    "header",
    [
        "Host: [::1",
        "Host: 127.0.0.1:x",
        "Host: 127.0.0.1:999999",
        "Host: a@127.0.0.1",
        "Host: a b",
        "Host: \u00e9",
        "Host: a/b",
        "Host: 127.0.0.1\r\nHost: 127.0.0.1",
        "Origin: http://[::1",
        "Origin: x",
        "Origin: //",
        "Origin: ",
        "Origin: http://a:b",
        "Content-Length: +5",
        "Content-Length: \u00b2",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length: 5, 6",
        "Content-Length: 5\r\nContent-Length: 6",
        f"Content-Length: {'9' * 5000}",
    ],
)
def test_malformed_headers_are_bad_requests(server: Server, method: str, header: str) -> None:
    lengths = "" if "Length" in header else "Content-Length: 5\r\n"
    host = "" if header.startswith("Host") else "Host: localhost\r\n"
    status, reply = raw(server, f"{method} HTTP/1.1\r\n{host}{header}\r\n{lengths}\r\nhello".encode("latin-1"))
    assert status == 400 and reply["error"]


@pytest.mark.parametrize(
    "line, status",
    [
        ("GET http://[::1 HTTP/1.1", 404),
        ("POST http://[::1/chat HTTP/1.1", 404),
        ("POST //[::1/chat HTTP/1.1", 404),
        ("GET", 400),
        ("GET / HTTP/x", 400),
        ("GET / HTTP/3.0", 505),
        ("\x16\x03\x01", 400),
        ("PUT /chat HTTP/1.1", 405),
        ("OPTIONS /chat HTTP/1.1", 405),
        (f"GET /{'x' * 9000} HTTP/1.1", 414),
        ("GET /\u00e9\x1b[31m HTTP/1.1", 400),
    ],
)
def test_malformed_requests_get_a_reason(server: Server, line: str, status: int) -> None:
    found, reply = raw(server, f"{line}\r\nHost: localhost\r\n\r\n".encode("latin-1"))
    assert found == status and reply["error"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["Host", "Origin", "Content-Length", "Transfer-Encoding", "Content-Type", "Expect"]),
    value=st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=12),
    path=st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=12),
)
def test_any_header_and_path_get_a_reply(server: Server, name: str, value: str, path: str) -> None:
    for method in ("GET", "POST"):
        status, reply = raw(server, f"{method} /sing{path} HTTP/1.1\r\n{name}: {value}\r\n\r\n".encode("latin-1"))
        assert 400 <= status < 500 and reply["error"]


def test_a_body_without_length_or_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        raw(
            server, b"POST /chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
        )[0]
        == 411
    )
    status, reply = raw(server, b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nhi")
    assert status == 400 and "2 of 50" in reply["error"]
    monkeypatch.setattr(gate, "CLIENT_TIMEOUT", 0.2)
    status, _, content = ask(server, "POST", "/chat", b"hi", **{"Content-Length": "50"})
    assert status == 408 and json.loads(content)["error"]


def test_an_error_of_the_server_is_a_reply_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def chat(self, *args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(SpeechGPT, "chat", chat)
    status, _, content = ask(server, "POST", "/chat", b"hi")
    assert status == 500 and "failed" in json.loads(content)["error"]


def test_head_has_no_body(server: Server) -> None:
    status, _, content = ask(server, "HEAD", "/")
    assert (status, content) == (200, b"")
    assert ask(server, "HEAD", "/no/such")[0] == 404
    assert ask(server, "HEAD", "/chat")[0] == 405


def test_an_address_of_version_6(gpt: SpeechGPT) -> None:
    server = Server(gpt, SAMPLING, Serving("::1", 0))
    assert server.address[0] == "::1"
    server.close()


def test_an_error_during_an_answer_is_its_last_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream(self, *args):
        yield Piece(transcript="so far")
        raise ValueError("and no further")

    monkeypatch.setattr(SpeechGPT, "stream", stream)
    _, _, content = ask(server, "POST", "/answer", audio(tones(0.4)))
    assert [json.loads(line) for line in content.splitlines()] == [
        {"transcript": "so far"},
        {"error": "and no further"},
    ]


def test_a_client_that_leaves_stops_its_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()

    def stream(self, *args):
        try:
            for _ in range(1000):
                yield Piece(text="x" * 10000)
                time.sleep(0.01)
        finally:
            left.set()

    with monkeypatch.context() as patch:
        patch.setattr(SpeechGPT, "stream", stream)
        body = audio(tones(0.4))
        gone = socket.create_connection(server.address)
        gone.sendall(b"POST /answer HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert gone.recv(100)
        gone.close()
        assert left.wait(10)
    assert ask(server, "POST", "/chat", b"still there")[0] == 200


def test_the_page_loads_nothing_else(server: Server) -> None:
    status, kind, content = ask(server, "GET", "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert content.decode() == (FOLDER / "index.html").read_text(encoding="utf-8")
    loaded = set(re.findall(r'(?:src|href)="page/([\w.]+)"', content.decode()))
    for path in FOLDER.iterdir():
        status, kind, content = ask(server, "GET", f"/page/{path.name}")
        assert status == 200 and kind.startswith("text/") and content == path.read_bytes()
        assert not re.search(rb"(src|href|from|import|url)\s*[=( ]\s*[\"'](https?:)?//", content)  # of other sites
        loaded |= set(re.findall(r'"\./([\w.]+)"', content.decode()))
    assert loaded == {path.name for path in FOLDER.iterdir()} - {"index.html"}


@pytest.mark.parametrize("name", ["none.js", "..%2fserver.py", "%2e%2e/server.py", "", "/etc/passwd"])
def test_other_files_are_none_of_the_page(server: Server, name: str) -> None:
    assert ask(server, "GET", f"/page/{name}")[0] == 404


def test_the_command_serves_until_it_is_stopped(model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "run_until_stopped", Server.close)
    monkeypatch.setattr("sys.argv", ["speechgpt-server", "--model", str(model_folder), "--port", "0"])
    command.main.cli()
    assert re.search(
        r"model \w+, supports answer, chat, say, stream, transcribe: http://127.0.0.1:\d+\n", capsys.readouterr().out
    )
    monkeypatch.setattr("sys.argv", ["speechgpt-server", "--model", str(model_folder / "none")])
    with pytest.raises(SystemExit) as ended:
        command.main.cli()
    assert ended.value.code == 2
    assert "speechgpt-server: " in capsys.readouterr().err

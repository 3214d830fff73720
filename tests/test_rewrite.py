"""Rewriting for speech: a server that stumbles is asked again, nothing is asked twice, what fails is counted."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from instruct_data import rewrite
from instruct_data.completion import CachedWriter, EndpointWriter, LocalWriter, WriterError
from instruct_data.filters import Filters
from instruct_data.rewrite import PROMPTS, Prompts, read_field
from instruct_data.text_sets import TextChat, TextPair, chat_line, parse_chat


class Server:
    """An OpenAI-compatible server that says things in capitals, and fails where it is told to."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.stumbles: Counter[str] = Counter()  # word -> how often a prompt with it meets 503
        self.keys: set[str | None] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions" and body["model"] == "tiny"
                server.keys.add(self.headers.get("Authorization"))
                server.answer(self, body["messages"][0]["content"])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        self.prompts.append(prompt)
        for word in list(self.stumbles):
            if word in prompt and self.stumbles[word] > 0:
                self.stumbles[word] -= 1
                return self.send(handler, 503, {"error": "busy"})
        if "forbidden" in prompt:
            return self.send(handler, 400, {"error": "no"})
        if "broken" in prompt:
            return self.send(handler, 200, {"choices": []})
        if "mumble" in prompt:
            return self.send(handler, 200, {"choices": [{"message": {"content": "well, I do not know"}}]})
        field = "answer" if "Written answer" in prompt else "question"
        part = prompt.split("Written answer, for the facts:\n" if field == "answer" else "Written form:\n")[1]
        text = json.dumps({field: part.split("\n")[0].upper()})
        return self.send(handler, 200, {"choices": [{"message": {"content": f"Sure! {text} There."}}]})

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def chats(path: Path, *questions: str) -> Path:
    made = [TextChat((TextPair(question, f"answer to {question}"),)) for question in questions]
    several = TextChat((TextPair("first", "one"), TextPair("second", "two")))
    path.write_text("".join(map(chat_line, [*made, several])))
    return path


def test_every_turn_is_rewritten_in_order(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    source = chats(tmp_path / "chats.jsonl", *(f"who is {i}" for i in ("ann", "bob", "cid")))
    rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny", at_once=4)
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    turns = [[(t.question, t.answer) for t in parse_chat(line, "x").turns] for line in lines]
    assert turns == [[(f"WHO IS {i}", f"ANSWER TO WHO IS {i}")] for i in ("ANN", "BOB", "CID")] + [
        [("FIRST", "ONE"), ("SECOND", "TWO")]
    ]
    assert len(server.prompts) == 10 and server.keys == {"Bearer secret"}
    assert any("WHO IS BOB" in prompt for prompt in server.prompts)  # the answer is to the rewritten question
    assert not list(tmp_path.glob("*.refused.jsonl"))


def test_nothing_is_asked_twice_and_what_failed_is_asked_again(tmp_path: Path, server: Server) -> None:
    source = chats(tmp_path / "chats.jsonl", "who is ann", "who is bob")
    server.stumbles["bob"] = 99
    rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny", tries=1)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    (refused,) = (tmp_path / "out.jsonl.refused.jsonl").read_text().splitlines()
    assert json.loads(refused) == {"where": f"{source}:2", "reason": 'the server answers 503: {"error": "busy"}'}
    server.stumbles.clear()
    asked = len(server.prompts)
    rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    assert len(server.prompts) - asked == 2 and not (tmp_path / "out.jsonl.refused.jsonl").exists()
    whole = (tmp_path / "out.jsonl").read_bytes()
    rewrite.main(source, tmp_path / "again.jsonl", server.url, "tiny", cache=tmp_path / "out.jsonl.cache")
    assert len(server.prompts) - asked == 2 and (tmp_path / "again.jsonl").read_bytes() == whole


def test_a_server_that_stumbles_is_asked_again(server: Server) -> None:
    server.stumbles["hello"] = 2
    writer = EndpointWriter(server.url, "tiny", tries=3, wait=0.001)
    assert writer.complete(["Written form:\nhello\n"]) == ['Sure! {"question": "HELLO"} There.']
    assert len(server.prompts) == 3


@pytest.mark.parametrize("word, reason, requests", [
    ("forbidden", "the server answers 400", 1), ("broken", "no completion in what the server answers", 1),
])  # fmt: skip
def test_what_another_try_would_not_change_is_not_tried_again(
    server: Server, word: str, reason: str, requests: int
) -> None:
    (failure,) = EndpointWriter(server.url, "tiny", tries=3, wait=0.001).complete([word])
    assert isinstance(failure, WriterError) and str(failure).startswith(reason)
    assert len(server.prompts) == requests


def test_nobody_listening_is_said_plainly(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    (failure,) = EndpointWriter(server.url, "tiny", tries=2, wait=0.001).complete(["hello"])
    assert str(failure).startswith("the server cannot be reached: ")


def test_what_the_model_mumbles_is_counted_and_filters_apply(tmp_path: Path, server: Server, capsys) -> None:
    source = chats(tmp_path / "chats.jsonl", "mumble", "look at www.example.org", "fine")
    rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny", filters=Filters())
    assert "1 no question in what the model wrote; 1 url" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("text, found", [
    ('{"answer": " yes "}', "yes"), ('```json\n{"answer": "yes"}\n```', "yes"), ('{x} {"answer": "yes"}', "yes"),
    ('{"a": {"answer": "yes"}}', "yes"), ('{"answer": ""}', None), ('{"question": "yes"}', None), ("yes", None), ("", None), ('{"answer": "\\ud83d"}', None),
])  # fmt: skip
def test_the_field_is_found_in_what_stands_around_it(text: str, found: str | None) -> None:
    said = read_field(text, "answer")
    assert said == found if found else isinstance(said, WriterError)


def test_a_local_model_writes_and_is_cached(widened: Path, tmp_path: Path) -> None:
    writer = CachedWriter(LocalWriter(str(widened), most_tokens=4, at_once=2), tmp_path / "cache")
    prompts = ["what is two", "what is two plus two plus two", "say it"]
    texts = writer.complete(prompts)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    alone = [LocalWriter(str(widened), most_tokens=4).complete([prompt])[0] for prompt in prompts]
    assert texts == alone  # a padded batch gives what one at a time gives
    assert (
        CachedWriter(LocalWriter(str(widened), most_tokens=4), tmp_path / "cache").complete(prompts[::-1])
        == texts[::-1]
    )
    assert writer.asked == 3


def test_prompts_are_files_with_known_places(tmp_path: Path) -> None:
    assert "{question}" in Prompts.load(PROMPTS).question and "{answer}" in Prompts.load(PROMPTS).answer
    (tmp_path / "question.txt").write_text("say {question} in {mood}")
    (tmp_path / "answer.txt").write_text("{answer}")
    with pytest.raises(ValueError, match="mood"):
        Prompts.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Prompts.load(tmp_path / "none")
    for both in ({}, {"endpoint": "http://x/v1", "local": "y"}):
        with pytest.raises(SystemExit, match="give one of"):
            rewrite.main(tmp_path / "a", tmp_path / "b", **both)

"""Rewriting for speech: a server that stumbles is asked again, nothing is asked twice, what fails is counted."""

from __future__ import annotations

import gzip
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from instruct_data.text import completion, rewrite
from instruct_data.text.chats import TextChat, TextPair, chat_line, parse_chat
from instruct_data.text.completion import (
    CachedWriter,
    CutText,
    EndpointWriter,
    LocalWriter,
    Writer,
    WriterError,
    WriterStopped,
)
from instruct_data.text.filters import Filters
from instruct_data.text.rewrite import PROMPTS, Prompts, read_field


class Server:
    """An OpenAI-compatible server that says things in capitals, and fails where it is told to."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.stumbles: Counter[str] = Counter()  # word -> how often a prompt with it meets 503
        self.keys: set[str | None] = set()
        self.bodies: list[dict] = []
        self.status = 0  # of every answer, if it is not 0
        self.garbled = 0  # how many answers are cut short on their way
        self.headers: dict[str, str] = {}
        self.thinks = 0  # tokens; a request that grants fewer is cut
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions" and body["model"] == "tiny"
                server.keys.add(self.headers.get("Authorization"))
                server.bodies.append(body)
                server.answer(self, body["messages"][0]["content"])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        self.prompts.append(prompt)
        if self.status:
            return self.send(handler, self.status, {"error": "wrong key"})
        if self.garbled:
            self.garbled -= 1
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices"')
            return None
        if self.thinks > self.bodies[-1].get("max_tokens", 10**9):
            cut = {"message": {"content": None}, "finish_reason": "length"}
            return self.send(handler, 200, {"choices": [cut]})
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
        if "parrot" in prompt:
            return self.send(handler, 200, {"choices": [{"message": {"content": prompt[-60:]}}]})
        text = json.dumps({field: part.split("\n")[0].upper()})
        return self.send(handler, 200, {"choices": [{"message": {"content": f"Sure! {text} There."}}]})

    def send(self, handler: BaseHTTPRequestHandler, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def complete(writer: Writer, *prompts: str) -> list[str | WriterError]:
    """All of them, in order."""
    return [text for _, text in sorted(writer.arriving(prompts), key=lambda found: found[0])]


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
    assert complete(writer, "Written form:\nhello\n") == ['Sure! {"question": "HELLO"} There.']
    assert len(server.prompts) == 3


@pytest.mark.parametrize("word, reason, requests", [
    ("forbidden", "the server answers 400", 1), ("broken", "no completion in what the server answers", 1),
])  # fmt: skip
def test_what_another_try_would_not_change_is_not_tried_again(
    server: Server, word: str, reason: str, requests: int
) -> None:
    (failure,) = complete(EndpointWriter(server.url, "tiny", tries=3, wait=0.001), word)
    assert isinstance(failure, WriterError) and str(failure).startswith(reason)
    assert len(server.prompts) == requests


def test_nobody_listening_is_said_plainly_and_soon(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    writer = EndpointWriter(server.url, "tiny", tries=2, wait=0.001, at_once=1)
    (failure,) = complete(writer, "hello")
    assert str(failure).startswith("the server cannot be reached: ")
    with pytest.raises(WriterStopped, match="the server cannot be reached: "):
        complete(writer, *map(str, range(50)))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run_and_leaves_what_was_there(
    tmp_path: Path, server: Server, status: int
) -> None:
    source = chats(tmp_path / "chats.jsonl", *(f"who is {i}" for i in range(100)))
    (tmp_path / "out.jsonl").write_text("of a former run")
    rewrite.main(source, tmp_path / "trial.jsonl", server.url, "tiny", most=1, cache=tmp_path / "cache")
    server.status, asked = status, len(server.prompts)
    with pytest.raises(SystemExit, match=f"the server answers {status}: .*wrong key.* is as it was"):
        rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny", cache=tmp_path / "cache", at_once=2)
    assert len(server.prompts) - asked <= 4
    assert (tmp_path / "out.jsonl").read_text() == "of a former run"
    server.status, asked = 0, len(server.prompts)
    rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny", cache=tmp_path / "cache", most=1)
    assert len(server.prompts) == asked  # the cache keeps what was done


def test_a_run_that_comes_to_nothing_fails(tmp_path: Path, server: Server) -> None:
    source = tmp_path / "chats.jsonl"
    source.write_text(chat_line(TextChat((TextPair("mumble", "x"),))))
    with pytest.raises(SystemExit, match="nothing of .* could be rewritten.*1 no question in what the model wrote"):
        rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny")
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl.refused.jsonl").exists()
    with pytest.raises(SystemExit, match="--model NAME"):
        rewrite.main(source, tmp_path / "out.jsonl", server.url)
    with pytest.raises(ValueError, match="begins with http"):
        EndpointWriter("localhost:8000/v1", "tiny")


def test_an_answer_cut_short_on_its_way_is_asked_for_again(server: Server) -> None:
    server.garbled = 2
    writer = EndpointWriter(server.url, "tiny", tries=3, wait=0.001)
    assert complete(writer, "Written form:\nhello\n") == ['Sure! {"question": "HELLO"} There.']


@pytest.mark.parametrize(
    "said, seconds", [("3", 3.0), ("Wed, 21 Oct 2015 07:28:00 GMT", -1.0), ("", 0.0), ("soon", 0.0)]
)
def test_a_server_may_say_how_long_to_wait(said: str, seconds: float) -> None:
    found = completion._asked_to_wait(said)
    assert found == seconds or (seconds < 0 and found < 0)


def test_texts_are_in_the_cache_as_they_arrive(tmp_path: Path, server: Server) -> None:
    class Failing(EndpointWriter):
        def arriving(self, prompts):
            yield 1, "second"
            raise WriterStopped("gone")

    with pytest.raises(WriterStopped):
        CachedWriter(Failing(server.url, "tiny"), tmp_path / "cache").complete(["a", "b"])
    assert CachedWriter(EndpointWriter(server.url, "tiny"), tmp_path / "cache").complete(["b"]) == ["second"]


def test_a_model_that_thinks_gets_the_tokens_it_needs(tmp_path: Path, server: Server) -> None:
    server.thinks = 500
    source, out = chats(tmp_path / "chats.jsonl", "who is ann"), tmp_path / "out.jsonl"
    with pytest.raises(SystemExit, match="used up its tokens"):
        rewrite.main(source, out, server.url, "tiny", most_tokens=100)
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": None}
    rewrite.main(source, out, server.url, "tiny", most_tokens=600, timeout=9.0, extra_body=extra)
    assert len(out.read_text().splitlines()) == 2
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "temperature" not in server.bodies[-1] and server.bodies[-1]["max_tokens"] == 600


def test_a_follow_up_is_rewritten_with_what_was_said_before(tmp_path: Path, server: Server) -> None:
    rewrite.main(chats(tmp_path / "chats.jsonl"), tmp_path / "out.jsonl", server.url, "tiny")
    history = "The conversation so far:\nPerson: FIRST\nAssistant: ONE\n\n"
    assert [history in prompt for prompt in server.prompts] == [False, False, True, True]
    assert not any("{history}" in prompt for prompt in server.prompts)


def test_more_requests_than_a_batch_of_chats_may_be_under_way(tmp_path: Path, server: Server, monkeypatch) -> None:
    sizes: list[int] = []
    arriving = EndpointWriter.arriving
    monkeypatch.setattr(EndpointWriter, "arriving", lambda self, p: (sizes.append(len(p)), arriving(self, p))[1])
    rewrite.main(chats(tmp_path / "a.jsonl", *map(str, range(150))), tmp_path / "b", server.url, "tiny", at_once=100)
    assert max(sizes) == 151


def test_sets_are_read_and_written_compressed_by_their_names(tmp_path: Path, server: Server) -> None:
    source = chats(tmp_path / "chats.jsonl", "who is ann")
    source.with_name("chats.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    rewrite.main(tmp_path / "chats.jsonl.gz", tmp_path / "out.jsonl.gz", server.url, "tiny")
    assert len(gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).splitlines()) == 2


def test_what_the_model_mumbles_is_counted_and_filters_apply(tmp_path: Path, server: Server, capsys) -> None:
    source = chats(tmp_path / "chats.jsonl", "mumble", "parrot", "look at www.example.org", "fine", "fine")
    rewrite.main(source, tmp_path / "out.jsonl", server.url, "tiny", filters=Filters())
    assert "2 no question in what the model wrote; 1 url; 1 duplicate" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("text, found", [
    ('{"answer": " yes "}', "yes"), ('```json\n{"answer": "yes"}\n```', "yes"), ('{x} {"answer": "yes"}', "yes"),
    ('{"a": {"answer": "yes"}}', "yes"), ('{"answer": "FORM"} is it: {"answer": "yes"}', "yes"), ('{"answer": "FORM"}', None),
    ('<think>{"answer": "no"}</think> {"answer": "yes"}', "yes"), ('<think>{"answer": "no"}', None), ('{"answer": "no"} or {"answer": "yes"}', "yes"),
    ("{" * 20000, None), ('{"answer": ""}', None), ('{"question": "yes"}', None), ("yes", None), ("", None), ('{"answer": "\\ud83d"}', None),
])  # fmt: skip
def test_the_field_is_found_in_what_stands_around_it(text: str, found: str | None) -> None:
    said = read_field(text, "answer", frozenset({"FORM"}))
    assert said == found if found else isinstance(said, WriterError)


def test_a_local_model_writes_and_is_cached(widened: Path, tmp_path: Path) -> None:
    writer = CachedWriter(LocalWriter(str(widened), most_tokens=4, at_once=2), tmp_path / "cache")
    prompts = ["what is two", "what is two plus two plus two", "say it"]
    texts = writer.complete(prompts)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    alone = [complete(LocalWriter(str(widened), most_tokens=4), prompt)[0] for prompt in prompts]
    assert texts == alone  # a padded batch gives what one at a time gives
    again = CachedWriter(LocalWriter(str(widened), most_tokens=4), tmp_path / "cache")
    assert again.complete(prompts[::-1]) == texts[::-1]
    assert writer.asked == 3 and again.asked == sum(isinstance(text, CutText) for text in texts)


def test_prompts_are_files_with_known_places(tmp_path: Path) -> None:
    assert "{question}" in Prompts.load(PROMPTS).question and "{answer}" in Prompts.load(PROMPTS).answer
    (tmp_path / "question.txt").write_text("say {question} in {mood}")
    (tmp_path / "answer.txt").write_text("{answer}")
    with pytest.raises(ValueError, match="mood"):
        Prompts.load(tmp_path)
    (tmp_path / "question.txt").write_text("say it")
    with pytest.raises(ValueError, match=r"must name \{question\}"):
        Prompts.load(tmp_path)
    (tmp_path / "question.txt").write_text("say {question} as {json}}")
    with pytest.raises(ValueError, match="doubled"):
        Prompts.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Prompts.load(tmp_path / "none")
    for both in ({}, {"endpoint": "http://x/v1", "local": "y"}):
        with pytest.raises(SystemExit, match="give one of"):
            rewrite.main(tmp_path / "a", tmp_path / "b", **both)

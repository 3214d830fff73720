"""Rewriting for speech: failed requests are retried, nothing is requested twice, failures are counted."""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from refused import refused

from instruct_data.text import rewrite
from instruct_data.text.chats import TextChat, TextPair, chat_line, parse_chat
from instruct_data.text.completion import (
    CachedModel,
    CompletionError,
    CompletionModel,
    EndpointModel,
    EndpointUnavailable,
    LocalModel,
    TruncatedText,
)
from instruct_data.text.filters import Filters
from instruct_data.text.reasons import TextReason
from instruct_data.text.rewrite import PROMPTS, Prompts, RewriteConfig, read_field
from instruct_data.text.sources import NothingKept
from units.runtime.command import SOME_REFUSED
from units.runtime.files.json_files import FileReason


class Server:
    """A chat-completions server that returns texts in capitals, and fails where a test asks for it."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.busy: Counter[str] = Counter()  # word -> how many prompts with it get status 503
        self.keys: set[str | None] = set()
        self.bodies: list[dict] = []
        self.status = 0  # of every reply, if it is not 0
        self.error = "wrong key"
        self.cut_short = 0  # replies whose body ends too early
        self.headers = {"Retry-After-Ms": "1"}  # of every reply; the client then waits 1 ms before a retry
        self.reasoning = 0  # tokens; a request with a lower limit is truncated
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions" and body["model"] == "tiny"
                server.keys.add(self.headers.get("Authorization"))
                server.bodies.append(body)
                server.reply(self, body["messages"][0]["content"])

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        self.prompts.append(prompt)
        if self.status:
            return self.send(handler, self.status, {"error": self.error})
        if self.cut_short:
            self.cut_short -= 1
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices"')
            return None
        if self.reasoning > self.bodies[-1].get("max_tokens", 10**9):
            cut = {"message": {"content": None}, "finish_reason": "length"}
            return self.send(handler, 200, {"choices": [cut]})
        for word in list(self.busy):
            if word in prompt and self.busy[word] > 0:
                self.busy[word] -= 1
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
        handler.send_header("Content-Type", "application/json")
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


def complete(model: CompletionModel, *prompts: str) -> list[str | CompletionError]:
    """The completions, in the order of the prompts."""
    return [text for _, text in sorted(model.completions(prompts), key=lambda found: found[0])]


def chats(path: Path, *questions: str) -> Path:
    made = [TextChat((TextPair(question, f"answer to {question}"),)) for question in questions]
    several = TextChat((TextPair("first", "one"), TextPair("second", "two")))
    path.write_text("".join(map(chat_line, [*made, several])))
    return path


def test_every_turn_is_rewritten_in_order(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    source = chats(tmp_path / "chats.jsonl", *(f"who is {i}" for i in ("ann", "bob", "cid")))
    rewrite.main(source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny", at_once=4))
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    turns = [[(t.question, t.answer) for t in parse_chat(line).turns] for line in lines]
    assert turns == [[(f"WHO IS {i}", f"ANSWER TO WHO IS {i}")] for i in ("ANN", "BOB", "CID")] + [
        [("FIRST", "ONE"), ("SECOND", "TWO")]
    ]
    assert len(server.prompts) == 10 and server.keys == {"Bearer secret"}
    assert any("WHO IS BOB" in prompt for prompt in server.prompts)  # the answer prompt holds the rewritten question
    assert not list(tmp_path.glob("*.refused.jsonl"))


def test_nothing_is_requested_twice_and_failures_are_requested_again(tmp_path: Path, server: Server) -> None:
    source = chats(tmp_path / "chats.jsonl", "who is ann", "who is bob")
    server.busy["bob"] = 99
    assert rewrite.main(source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny", tries=1)) == SOME_REFUSED
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    (refused,) = map(json.loads, (tmp_path / "out.jsonl.refused.jsonl").read_text().splitlines())
    assert (refused["id"], refused["reason"]) == (f"{source}:2", TextReason.SERVER_ERROR.value)
    assert "503" in refused["detail"] and "busy" in refused["detail"]
    server.busy.clear()
    before = len(server.prompts)
    assert rewrite.main(source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny")) == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
    assert len(server.prompts) - before == 2 and not (tmp_path / "out.jsonl.refused.jsonl").exists()
    whole = (tmp_path / "out.jsonl").read_bytes()
    rewrite.main(
        source, tmp_path / "again.jsonl", RewriteConfig(server.url, "tiny", cache=tmp_path / "out.jsonl.cache")
    )
    assert len(server.prompts) - before == 2 and (tmp_path / "again.jsonl").read_bytes() == whole


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.busy["hello"] = 2
    model = EndpointModel(server.url, "tiny", tries=3)
    assert complete(model, "Written form:\nhello\n") == ['Sure! {"question": "HELLO"} There.']
    assert len(server.prompts) == 3


def test_the_wait_before_a_retry_is_the_one_that_the_server_states(server: Server) -> None:
    server.busy["hello"] = 1
    server.headers = {"Retry-After": "1"}
    started = time.monotonic()
    assert complete(EndpointModel(server.url, "tiny", tries=2), "Written form:\nhello\n")
    assert time.monotonic() - started >= 1 and len(server.prompts) == 2


@pytest.mark.parametrize("word, reason", [("forbidden", TextReason.SERVER_ERROR), ("broken", TextReason.NO_COMPLETION)])
def test_a_request_that_cannot_succeed_is_not_retried(server: Server, word: str, reason: TextReason) -> None:
    (failure,) = complete(EndpointModel(server.url, "tiny", tries=3), word)
    assert isinstance(failure, CompletionError) and failure.reason == reason
    assert len(server.prompts) == 1


def test_an_unreachable_server_stops_the_run_soon(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    model = EndpointModel(server.url, "tiny", tries=1, at_once=1)
    (failure,) = complete(model, "hello")
    assert isinstance(failure, CompletionError) and failure.reason == TextReason.UNREACHABLE
    with pytest.raises(EndpointUnavailable, match=re.escape(server.url)):
        complete(model, *map(str, range(50)))


def test_a_quota_that_is_used_up_stops_the_run(server: Server) -> None:
    server.status, server.error = 429, "insufficient_quota"
    with pytest.raises(EndpointUnavailable, match="429"):
        complete(EndpointModel(server.url, "tiny", tries=1, at_once=1), *map(str, range(50)))
    assert len(server.prompts) <= 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run_and_leaves_the_existing_file(
    tmp_path: Path, server: Server, status: int
) -> None:
    source = chats(tmp_path / "chats.jsonl", *(f"who is {i}" for i in range(100)))
    (tmp_path / "out.jsonl").write_text("of an earlier run")
    rewrite.main(source, tmp_path / "trial.jsonl", RewriteConfig(server.url, "tiny", most=1, cache=tmp_path / "cache"))
    server.status, before = status, len(server.prompts)
    with pytest.raises(EndpointUnavailable, match=f"{status}: .*wrong key.*out.jsonl"):
        rewrite.main(
            source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny", cache=tmp_path / "cache", at_once=2)
        )
    assert len(server.prompts) - before <= 4
    assert (tmp_path / "out.jsonl").read_text() == "of an earlier run"
    server.status, before = 0, len(server.prompts)
    rewrite.main(source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny", cache=tmp_path / "cache", most=1))
    assert len(server.prompts) == before  # the cache has it


def test_a_run_without_a_result_fails(tmp_path: Path, server: Server) -> None:
    source = tmp_path / "chats.jsonl"
    source.write_text(chat_line(TextChat((TextPair("mumble", "x"),))))
    with pytest.raises(NothingKept, match=f"chats.jsonl.*1 {TextReason.NO_FIELD}"):
        rewrite.main(source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny"))
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl.refused.jsonl").exists()
    with pytest.raises(ValueError, match="--model NAME"):
        RewriteConfig(server.url)
    with pytest.raises(ValueError, match="localhost:8000/v1.*http://"):
        EndpointModel("localhost:8000/v1", "tiny")


def test_a_reply_that_ends_too_early_is_requested_again(server: Server) -> None:
    server.cut_short = 2
    model = EndpointModel(server.url, "tiny", tries=3)
    assert complete(model, "Written form:\nhello\n") == ['Sure! {"question": "HELLO"} There.']


def test_completions_are_cached_as_they_arrive(tmp_path: Path, server: Server) -> None:
    class Failing(EndpointModel):
        def completions(self, prompts):
            yield 1, "second"
            raise EndpointUnavailable("no server")

    with pytest.raises(EndpointUnavailable):
        CachedModel(Failing(server.url, "tiny"), tmp_path / "cache").complete(["a", "b"])
    assert CachedModel(EndpointModel(server.url, "tiny"), tmp_path / "cache").complete(["b"]) == ["second"]


def test_a_reasoning_model_gets_the_tokens_it_needs(tmp_path: Path, server: Server) -> None:
    server.reasoning = 500
    source, out = chats(tmp_path / "chats.jsonl", "who is ann"), tmp_path / "out.jsonl"
    with pytest.raises(NothingKept, match=TextReason.OUT_OF_TOKENS.value):
        rewrite.main(source, out, RewriteConfig(server.url, "tiny", most_tokens=100))
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "temperature": None}
    rewrite.main(source, out, RewriteConfig(server.url, "tiny", most_tokens=600, timeout=9.0, extra_body=extra))
    assert len(out.read_text().splitlines()) == 2
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert "temperature" not in server.bodies[-1] and server.bodies[-1]["max_tokens"] == 600


def test_a_follow_up_is_rewritten_with_the_turns_before_it(tmp_path: Path, server: Server) -> None:
    rewrite.main(chats(tmp_path / "chats.jsonl"), tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny"))
    history = "The conversation so far:\nPerson: FIRST\nAssistant: ONE\n\n"
    assert [history in prompt for prompt in server.prompts] == [False, False, True, True]
    assert not any("{history}" in prompt for prompt in server.prompts)


def test_more_requests_than_a_batch_of_chats_may_run_in_parallel(tmp_path: Path, server: Server, monkeypatch) -> None:
    sizes: list[int] = []
    completions = EndpointModel.completions
    monkeypatch.setattr(EndpointModel, "completions", lambda self, p: (sizes.append(len(p)), completions(self, p))[1])
    rewrite.main(
        chats(tmp_path / "a.jsonl", *map(str, range(150))),
        tmp_path / "b",
        RewriteConfig(server.url, "tiny", at_once=100),
    )
    assert max(sizes) == 151


def test_text_sets_are_compressed_by_their_names(tmp_path: Path, server: Server) -> None:
    source = chats(tmp_path / "chats.jsonl", "who is ann")
    source.with_name("chats.jsonl.gz").write_bytes(gzip.compress(source.read_bytes()))
    rewrite.main(tmp_path / "chats.jsonl.gz", tmp_path / "out.jsonl.gz", RewriteConfig(server.url, "tiny"))
    assert len(gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).splitlines()) == 2


def test_replies_without_json_are_counted_and_filters_apply(tmp_path: Path, server: Server, capsys) -> None:
    source = chats(tmp_path / "chats.jsonl", "mumble", "parrot", "look at www.example.org", "fine", "fine")
    rewrite.main(source, tmp_path / "out.jsonl", RewriteConfig(server.url, "tiny", filters=Filters()))
    assert (
        f"4 refused (2 {TextReason.NO_FIELD}, 1 {TextReason.URL}, 1 {TextReason.DUPLICATE})" in capsys.readouterr().out
    )
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


FIELDS = {
    '{"answer": " yes "}': "yes",
    '```json\n{"answer": "yes"}\n```': "yes",
    '{x} {"answer": "yes"}': "yes",
    '{"a": {"answer": "yes"}}': "yes",
    '{"answer": "FORM"} is it: {"answer": "yes"}': "yes",
    '{"answer": "FORM"}': None,
    '<think>{"answer": "no"}</think> {"answer": "yes"}': "yes",
    '<think>{"answer": "no"}': None,
    '{"answer": "no"} or {"answer": "yes"}': "yes",
    "{" * 20000: None,
    '{"answer": ""}': None,
    '{"question": "yes"}': None,
    "yes": None,
    "": None,
    '{"answer": "\\ud83d"}': None,
}


@pytest.mark.parametrize("text", FIELDS, ids=lambda text: text[:30])
def test_a_field_is_found_whatever_surrounds_it(text: str) -> None:
    field = read_field(text, "answer", frozenset({"FORM"}))
    if FIELDS[text]:
        assert field == FIELDS[text]
    else:
        assert isinstance(field, CompletionError) and field.reason == TextReason.NO_FIELD


def test_a_local_model_writes_and_is_cached(widened: Path, tmp_path: Path) -> None:
    model = CachedModel(LocalModel(str(widened), most_tokens=4, at_once=2), tmp_path / "cache")
    prompts = ["what is two", "what is two plus two plus two", "say it"]
    texts = model.complete(prompts)
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    alone = [complete(LocalModel(str(widened), most_tokens=4), prompt)[0] for prompt in prompts]
    assert texts == alone  # a padded batch gives the same texts as single prompts
    again = CachedModel(LocalModel(str(widened), most_tokens=4), tmp_path / "cache")
    assert again.complete(prompts[::-1]) == texts[::-1]
    assert model.requested == 3 and again.requested == sum(isinstance(text, TruncatedText) for text in texts)


def test_prompts_are_files_with_known_places(tmp_path: Path) -> None:
    assert "{question}" in Prompts.load(PROMPTS).question and "{answer}" in Prompts.load(PROMPTS).answer
    (tmp_path / "question.txt").write_text("say {question} in {mood}")
    (tmp_path / "answer.txt").write_text("{answer}")
    with pytest.raises(ValueError, match="mood"):
        Prompts.load(tmp_path)
    (tmp_path / "question.txt").write_text("say it")
    with pytest.raises(ValueError, match=r"\{question\} is required"):
        Prompts.load(tmp_path)
    (tmp_path / "question.txt").write_text("say {question} as {json}}")
    with pytest.raises(ValueError, match="twice"):
        Prompts.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        Prompts.load(tmp_path / "none")
    (tmp_path / "question.txt").write_text("{question}")
    (tmp_path / "answer.txt").write_text("{question:d} {answer}")
    with pytest.raises(ValueError, match="answer.txt"):
        Prompts.load(tmp_path)


def test_a_cache_that_is_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.cache").write_text("a text, not a database" * 100)
    with refused(FileReason.DAMAGED, tmp_path / "a.cache"):
        CachedModel(EndpointModel("http://localhost:1/v1", "m"), tmp_path / "a.cache")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "--endpoint URL and --local"),
        ({"endpoint": "http://x/v1", "local": "y"}, "--endpoint URL and --local"),
        ({"local": "y", "tries": 0}, "--tries is 0"),
        ({"local": "y", "most_tokens": 0}, "--most-tokens is 0"),
        ({"local": "y", "temperature": -1.0}, "--temperature is -1"),
        ({"local": "y", "timeout": 0.0}, "--timeout is 0"),
        ({"local": "y", "most": 0}, "--most is 0"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewriteConfig(**settings)


def test_the_command_line_takes_the_settings_as_flat_options(tmp_path: Path, server: Server, capsys) -> None:
    source, out = chats(tmp_path / "chats.jsonl", "who is ann"), tmp_path / "out.jsonl"
    extra = '{"chat_template_kwargs": {"enable_thinking": false}}'
    options = [
        "--endpoint",
        server.url,
        "--model",
        "tiny",
        "--most",
        "1",
        "--extra_body",
        extra,
        "--filters.code",
        "false",
    ]
    rewrite.main.cli([str(source), str(out), *options])
    assert len(out.read_text().splitlines()) == 1
    assert server.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(SystemExit) as stopped:
        rewrite.main.cli([str(source), str(out)])
    assert stopped.value.code == 2 and "--endpoint URL" in capsys.readouterr().err

"""--llm: tokens from an inference engine. Greedy replies equal the local model's, whatever the engine would draw.

`transformers serve` takes no token ids (its completions want a text, and leave out special tokens, which units are), so
the engine is a small completions server on transformers.
"""

from __future__ import annotations

import json
import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from completions_server import CompletionsServer, completions_server
from serving import ask
from tiny_parts import talkative, tones

from speechgpt.answers import SpeechModel
from speechgpt.generation import engine as engine_module
from speechgpt.generation.candidates import verify
from speechgpt.generation.engine import EngineError
from speechgpt.generation.generate import draws, generate
from speechgpt.generation.grammar import grammar_of
from speechgpt.generation.shared import Stopped, stoppable
from speechgpt.inference import SpeechGPT
from speechgpt.open_model import open_model
from speechgpt.prompts import asr_prompt
from speechgpt.sampling import Sampling
from speechgpt.serve.application import Server, Serving

GREEDY = Sampling(max_new_tokens=60, candidates=1)
QUESTIONS = ("one", "four", "which is bigger three or nine", "what is two plus two")


@pytest.fixture(scope="module")
def local(model_folder: Path) -> SpeechGPT:
    """A random model: it would leave the grammar at every third token."""
    return talkative(SpeechGPT.from_pretrained(model_folder))


@pytest.fixture(scope="module", params=["gives ends", "keeps ends"])
def engine(request: pytest.FixtureRequest, local: SpeechGPT) -> Iterator[CompletionsServer]:
    eos = local.dialogue.tokenizer.eos_token_id
    with completions_server(local.model, {eos}, request.param == "keeps ends") as server:
        yield server


@pytest.fixture(scope="module")
def remote(model_folder: Path, engine: CompletionsServer, tmp_path_factory: pytest.TempPathFactory) -> SpeechGPT:
    """The same without weights."""
    folder = tmp_path_factory.mktemp("remote") / "model"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").unlink()
    return open_model(folder, "cpu", llm=engine.url)  # type: ignore[return-value]


def test_greedy_replies_equal_the_local_ones(local: SpeechGPT, remote: SpeechGPT, engine: CompletionsServer) -> None:
    prompts = [local.dialogue.prompt([local.heard(tones(0.4, seed))]) for seed in range(3)]
    for form in ("text", "units", "chain"):
        engine.requests.clear()
        expected = generate(local.model, local.dialogue, prompts, form, GREEDY)
        assert generate(remote.model, remote.dialogue, prompts, form, GREEDY) == expected
        assert any(map(len, expected))
        assert any("logit_bias" in request for request in engine.requests)  # the engine did leave the grammar


@pytest.mark.parametrize("candidates", [1, 2])
def test_greedy_answers_equal_the_local_ones(local: SpeechGPT, remote: SpeechGPT, candidates: int) -> None:
    sampling = Sampling(max_new_tokens=60, candidates=candidates)
    for seed in range(3):
        mine, theirs = local.answer(tones(0.5, seed), sampling), remote.answer(tones(0.5, seed), sampling)
        assert (mine.transcript, mine.text, mine.finished) == (theirs.transcript, theirs.text, theirs.finished)
        if candidates == 1:  # further candidates are drawn at random
            assert mine.units == theirs.units
        else:
            assert (mine.candidate is None) == (theirs.candidate is None)
    assert [local.chat(one, GREEDY) for one in QUESTIONS] == [remote.chat(one, GREEDY) for one in QUESTIONS]
    assert local.chat_batch(QUESTIONS, GREEDY) == remote.chat_batch(QUESTIONS, GREEDY)
    pieces = list(remote.stream(tones(0.5), GREEDY))
    assert "".join(piece.text for piece in pieces) == local.answer(tones(0.5), GREEDY).text


def test_candidates_are_verified_alike(local: SpeechGPT, remote: SpeechGPT) -> None:
    spoken = [(1, 2, 3), (4,), (5, 6, 5, 6)]
    texts = ["one", "what is two", local.chat("one", GREEDY) or "x"]
    prompts = [local.dialogue.prompt([asr_prompt(units)]) for units in spoken[:2]]
    for i, ids in enumerate(generate(local.model, local.dialogue, prompts, "text", GREEDY)):
        texts[i] = local.dialogue.parse_reply(ids).text or texts[i]  # what the model understands
    mine = verify(local.model, local.dialogue, spoken, texts)
    assert mine == verify(remote.model, remote.dialogue, spoken, texts)


def test_random_replies_keep_to_the_grammar_and_the_distribution(local: SpeechGPT, remote: SpeechGPT) -> None:
    prompt = local.dialogue.prompt([local.heard(tones(0.4))])
    grammar = grammar_of(
        local.dialogue, "units", local.model.get_output_embeddings().weight.shape[0], torch.device("cpu")
    )
    counts: dict[str, Counter] = {"local": Counter(), "remote": Counter()}
    for seed in range(60):
        sampling = Sampling(temperature=3.0, seed=seed, max_new_tokens=3)
        for name, gpt in (("local", local), ("remote", remote)):
            (ids,) = generate(gpt.model, gpt.dialogue, [prompt], "units", sampling)
            state = torch.zeros(1, dtype=torch.long)
            for token in ids:
                assert grammar.allowed(state)[0, token]
                state = grammar.after(state, torch.tensor([token]))
            counts[name][ids[1]] += 1
    common = sum((counts["local"] & counts["remote"]).values())
    assert common > 30 and len(counts["remote"]) > 3


def test_many_allowed_tokens_are_drawn_by_forbidding_others(
    local: SpeechGPT, remote: SpeechGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOST_BIASED", 2)
    assert [remote.chat(one, GREEDY) for one in QUESTIONS] == [local.chat(one, GREEDY) for one in QUESTIONS]


def test_a_caller_that_leaves_closes_the_stream(remote: SpeechGPT, engine: CompletionsServer) -> None:
    prompt, stop = remote.dialogue.prompt([remote.heard(tones(0.4))]), threading.Event()
    with stoppable(stop), pytest.raises(Stopped):
        for _ in draws(remote.model, remote.dialogue, [prompt], "chain", GREEDY):
            stop.set()
    drawing = draws(remote.model, remote.dialogue, [prompt], "chain", GREEDY)
    next(drawing)
    drawing.close()
    asked = len(engine.requests)
    assert asked == len(engine.requests)


def test_a_prompt_must_fit_in_the_engines_context(remote: SpeechGPT) -> None:
    assert remote.model.context == 250  # less than the model's own
    with pytest.raises(ValueError, match="context is 250"):
        generate(remote.model, remote.dialogue, [[1] * 250], "text", GREEDY)
    (ids,) = generate(remote.model, remote.dialogue, [[1] * 248], "units", GREEDY)
    assert len(ids) == 2


def test_engines_that_do_not_fit_are_named(
    local: SpeechGPT, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with completions_server(local.model) as server:
        opened = open_model(model_folder, "cpu", llm=server.url)
        opened.preload()  # type: ignore[attr-defined]
        server.ids = False
        with pytest.raises(EngineError, match="return_token_ids"):
            opened.preload()  # type: ignore[attr-defined]
        server.ids, server.fails = True, 400
        with pytest.raises(EngineError, match="400.*no memory"):
            opened.chat("one")
        server.fails, server.models = 0, ["a", "b"]
        with pytest.raises(EngineError, match="2 models"):
            open_model(model_folder, "cpu", llm=server.url).chat("one")
        with pytest.raises(ValueError, match="likelihoods"):
            opened.likelihoods([tones(0.3)])  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match="cannot be reached"):
        open_model(model_folder, "cpu", llm=closed).preload()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="URL"):
        open_model(model_folder, "cpu", llm="localhost:8000")


def test_the_server_passes_on_what_the_engine_says(
    local: SpeechGPT, remote: SpeechGPT, engine: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server(remote, GREEDY, Serving(port=0, rows=4)).background() as server:
        replies: dict[str, str] = {}

        def chat(question: str) -> None:
            replies[question] = json.loads(ask(server, "POST", "/chat", question.encode())[2])["text"]

        threads = [threading.Thread(target=chat, args=(question,)) for question in QUESTIONS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert replies == {question: local.chat(question, GREEDY) for question in QUESTIONS}
        monkeypatch.setattr(engine, "fails", 400)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "one"}]}).encode()
        status, _, content = ask(server, "POST", "/v1/chat/completions", body)
        assert status == 502 and "no memory" in json.loads(content)["error"]["message"]


TOY = Path(__file__).parents[2] / "runs" / "toy" / "model"


@pytest.mark.slow
@pytest.mark.skipif(not TOY.is_dir(), reason="needs runs/toy/model of make demo")
def test_the_toy_model_answers_alike() -> None:
    local = SpeechGPT.from_pretrained(TOY)
    corpus = TOY.parent / "corpus"
    rows = [json.loads(line) for line in (corpus / "test.jsonl").read_text().splitlines()[:12]]
    with completions_server(local.model) as server:
        remote: SpeechModel = open_model(TOY, "cpu", llm=server.url)
        for row in rows:
            mine, theirs = local.answer(corpus / row["audio"]), remote.answer(corpus / row["audio"])
            assert (mine.transcript, mine.text) == (theirs.transcript, theirs.text)
            if mine.candidate is not None and mine.candidate.number == 0:
                assert mine.units == theirs.units

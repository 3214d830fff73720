"""The seam for systems: open_model finds the class, commands use the protocol alone, missing capabilities are named."""

from __future__ import annotations

import http.client
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reference import DATA
from text_only_system import SYSTEM, LoudnessModel, install, loudness_folder
from tiny_parts import tones

from speechgpt import cli
from speechgpt.answers import CAPABILITIES, NotSupported, SpeechModel, answer_pieces
from speechgpt.checkpoint import FILE, CheckpointFacts
from speechgpt.inference import SpeechGPT
from speechgpt.open_model import UnknownSystem, open_model
from speechgpt.sampling import Sampling
from speechgpt.serve.application import Server, Serving
from units.audio import SAMPLE_RATE, save_wav

RELEASED = DATA / "release_0_1_0/run"


@pytest.fixture
def loudness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder of an installed system that is not SpeechGPT."""
    install(monkeypatch)
    return loudness_folder(tmp_path / "model")


# --- opening


def test_a_folder_without_a_system_is_speechgpt(model_folder: Path) -> None:
    record = json.loads((model_folder / FILE).read_text())
    assert record["system"] == "speechgpt"
    model = open_model(model_folder, "cpu")
    assert isinstance(model, SpeechGPT) and isinstance(model, SpeechModel)
    assert model.capabilities == CAPABILITIES
    assert model.sample_rate == SAMPLE_RATE
    assert model.name.startswith("model ")


@pytest.mark.parametrize("folder", ["model", "stage1", "stage3"])
def test_facts_of_release_0_1_0_open(folder: str) -> None:
    record = json.loads((RELEASED / folder / FILE).read_text())
    assert "system" not in record and "extra" not in record
    facts = CheckpointFacts.load(RELEASED / folder)
    assert facts.system == "speechgpt"
    assert facts.first_unit_id == record["first_unit_id"]
    assert facts.units.name == record["codebook"]["name"]
    assert facts.config == record["config"] and facts.stage == record["stage"]


def test_a_system_of_another_package_is_found(loudness: Path) -> None:
    model = open_model(loudness, "cpu")
    assert isinstance(model, LoudnessModel) and isinstance(model, SpeechModel)
    assert model.threshold == 0.1
    assert open_model(str(loudness)).name == model.name


def test_a_system_without_units_has_no_codebook_in_its_file(loudness: Path) -> None:
    record = json.loads((loudness / FILE).read_text())
    assert "codebook" not in record and "first_unit_id" not in record
    facts = CheckpointFacts.load(loudness)
    assert facts.codebook is None and facts.first_unit_id is None
    with pytest.raises(ValueError, match=SYSTEM):
        _ = facts.units
    with pytest.raises(ValueError, match="codebook"):
        CheckpointFacts(None, "stage1")


def test_an_unknown_system_names_the_installed_ones(loudness: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(CheckpointFacts.load(loudness), system="singing").save(loudness)
    with pytest.raises(UnknownSystem, match=f"'singing'.* installed: {SYSTEM}, speechgpt"):
        open_model(loudness)
    replace(CheckpointFacts.load(loudness), system=SYSTEM).save(loudness)
    for target in ("no_such_module:Model", "text_only_system:NoSuchClass"):
        install(monkeypatch, target)
        with pytest.raises(UnknownSystem, match=target):
            open_model(loudness)


# --- capabilities


def test_the_kind_of_a_stage_decides_before_its_name(model_folder: Path) -> None:
    facts = CheckpointFacts.load(model_folder)
    assert replace(facts, stage="stage1", config={}).kind == "units"
    assert replace(facts, stage="stage1", config={"kind": "chain"}).kind == "chain"


@pytest.mark.parametrize(
    "stage, missing, capable",
    [
        ("stage1", (), set()),
        ("stage2", (), {"transcribe", "say", "chat"}),
        ("stage3", (), CAPABILITIES),
        ("mine", (), CAPABILITIES),
        ("stage3", ("vocoder",), {"transcribe", "chat"}),
        ("stage3", ("unit_encoder",), {"say", "chat"}),
        ("stage3", ("vocoder", "unit_encoder"), {"chat"}),
    ],
)
def test_stage_and_parts_decide_what_a_model_can_do(
    model_folder: Path, tmp_path: Path, stage: str, missing: tuple[str, ...], capable: set[str]
) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    replace(CheckpointFacts.load(copy), stage=stage).save(copy)
    for part in missing:
        shutil.rmtree(copy / part)
    model = SpeechGPT.from_pretrained(copy)
    assert model.capabilities == capable
    brief = Sampling(max_new_tokens=3, candidates=1)
    calls = {
        "answer": lambda: model.answer(tones(0.3), brief),
        "stream": lambda: next(model.stream(tones(0.3), brief)),
        "transcribe": lambda: model.transcribe(tones(0.3), brief),
        "say": lambda: model.say("hello", brief),
        "chat": lambda: model.chat("hello", brief),
    }
    for capability, call in calls.items():
        if capability in capable:
            call()
            continue
        with pytest.raises(NotSupported) as refused:
            call()
        assert refused.value.capability == capability
        assert all(part in str(refused.value) for part in (model.name, *(missing or [stage])[:1]) if part)


def test_single_calls_equal_batches(model_folder: Path) -> None:
    model, brief = SpeechGPT.from_pretrained(model_folder), Sampling(max_new_tokens=20, candidates=1)
    assert model.transcribe(tones(0.3), brief) == model.transcribe_batch([tones(0.3)], brief)[0]
    assert model.say("hello", brief).units == model.say_batch(["hello"], brief)[0].units


def test_a_model_that_does_not_stream_answers_in_one_piece(loudness: Path) -> None:
    [piece] = answer_pieces(open_model(loudness), tones(0.3), Sampling())
    assert (piece.transcript, piece.text, piece.wav) == ("", "loud", None)
    assert piece.answer is not None and piece.answer.text == "loud"


# --- the commands


def test_the_cli_talks_with_another_system(loudness: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    question = save_wav(tmp_path / "q.wav", tones(0.3))
    monkeypatch.chdir(tmp_path)
    cli.main.cli(["--model", str(loudness), "--ask", str(question), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["transcript"], found["answer"], found["units"], found["wav"]) == (None, "loud", None, None)
    typed = ["hello", str(question), "and why", "/hear q.wav", "/say hello", "/ask hello"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    cli.main.cli(["--model", str(loudness), "--memory", "9"])
    greeting, chat, spoken, later, heard, say, ask, _ = capsys.readouterr().out.split("> ")
    assert "loudness model" in greeting and "does not support: say" in greeting
    assert chat.startswith("hello, after 0 messages")
    assert spoken.startswith("answer: loud\n") and "no speech" in spoken
    assert later.startswith("and why, after 4 messages")
    assert heard == "loud\n"
    assert "does not support 'say': it has no vocoder" in say
    assert ask.startswith("hello, after") and "does not support 'say'" in ask


def test_the_server_serves_another_system(loudness: Path) -> None:
    file = io.BytesIO()
    soundfile.write(file, 0.01 * tones(0.3), SAMPLE_RATE, format="WAV")
    with Server(open_model(loudness), Sampling(), Serving(port=0)).background() as server:
        found = {}
        for method, path, body in (
            ("GET", "/model", None),
            ("POST", "/answer", file.getvalue()),
            ("POST", "/transcribe", file.getvalue()),
            ("POST", "/chat", b"hello"),
            ("POST", "/say", b"hello"),
        ):
            connection = http.client.HTTPConnection("127.0.0.1", server.address[1], timeout=60)
            connection.request(method, path, body)
            reply = connection.getresponse()
            found[path] = (reply.status, json.loads(reply.read()))
    assert found["/model"] == (
        200,
        {"name": "loudness model", "capabilities": ["answer", "chat", "transcribe"], "sample_rate": 16_000},
    )
    assert found["/answer"] == (200, {"text": "quiet", "finished": True, "understood": None})
    assert found["/transcribe"] == (200, {"text": "quiet"})
    assert found["/chat"] == (200, {"text": "hello, after 0 messages"})
    status, error = found["/say"]
    assert status == 404 and "'say'" in error["error"] and "loudness model" in error["error"]


# --- sampling


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1},
        {"temperature": np.nan},
        {"temperature": np.inf},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"max_new_tokens": 0},
        {"candidates": 0},
    ],
)
def test_sampling_out_of_range_names_the_option(bad: dict[str, float]) -> None:
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; allowed: "):
        Sampling(**bad)

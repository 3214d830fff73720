"""A finished LLaMA-Omni folder: answers and streams in text and sound, chats, reads aloud, refuses; its commands."""

from __future__ import annotations

import dataclasses
import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from tiny_blsp import tone
from tiny_omni import make_omni_run, omni_config
from tiny_run import FOREIGN
from tiny_vocoders import VOCOS, loud_vocoder

import speechgpt.cli
from speechgpt import open_model
from speechgpt.answers import NotSupported, SpeechModel
from speechgpt.dialogue import Message
from speechgpt.sampling import Sampling
from stages.train import train
from units.audio import AudioError, load_wav, save_wav
from units.codebook import CodebookMismatch
from units.vocoder.unit_vocoder import UnitVocoder
from variants.llama_omni import generate, latency
from variants.llama_omni.inference import LlamaOmni
from variants.llama_omni.records import DECODER_FILE
from variants.llama_omni.stages.system import OMNI_SYSTEM
from variants.llama_omni.upstream import export
from variants.references import PartError

SHORT = Sampling(max_new_tokens=12)


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The entry point, also where the package was installed before it had one."""
    entry = EntryPoint("llama-omni", "variants.llama_omni.inference:LlamaOmni", open_model.GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_model, "entry_points", lambda group: [entry])
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_omni_run(tmp_path_factory.mktemp("omni"))
    once = {"eval_steps": 200, "save_steps": 200}
    train(omni_config(run, training={"max_steps": 80, "learning_rate": 5e-3, **once}), system=OMNI_SYSTEM)
    train(omni_config(run, kind="speaking", training={"max_steps": 120, **once}), system=OMNI_SYSTEM)
    return run


@pytest.fixture(scope="module")
def model(run) -> LlamaOmni:
    opened = open_model.open_model(run / "omni", "cpu")
    assert isinstance(opened, LlamaOmni)
    return opened


def question(run: Path, number: int = 0) -> Path:
    return run / f"wav/t{number}.wav"


def test_it_is_a_speech_model(run, model) -> None:
    assert isinstance(model, SpeechModel)
    assert model.capabilities == {"answer", "stream", "transcribe", "chat", "say"}
    assert model.name.startswith("omni ") and model.sample_rate == 16_000


def test_an_answer_has_text_units_and_sound(run, model) -> None:
    answer = model.answer(question(run), SHORT)
    assert answer.text and answer.units and answer.wav is not None and answer.transcript is None
    assert model.codebook and max(answer.units) < model.codebook.size and np.abs(answer.wav).max() > 0.01
    assert answer.turn[1].parts == (answer.text, answer.units)


def test_a_batch_answers_as_each_alone(run, model) -> None:
    wavs = [question(run, i) for i in range(5)]
    alone = [model.answer(wav, SHORT) for wav in wavs]
    for one, other in zip(model.answer_batch(wavs, SHORT), alone, strict=True):
        assert (one.text, one.units, one.finished) == (other.text, other.units, other.finished)
        np.testing.assert_allclose(one.wav, other.wav, atol=1e-4)
    assert model.transcribe_batch(wavs, SHORT) == [model.transcribe(wav, SHORT) for wav in wavs]
    questions = ["red dog", "one two three of my cat"]
    assert model.chat_batch(questions, SHORT) == [model.chat(one, SHORT) for one in questions]


@pytest.mark.parametrize("omega", [1, 2, 3, 7, 10, 40, 1000])
@pytest.mark.parametrize("sampling", [SHORT, Sampling(temperature=1.0, max_new_tokens=12, seed=3)])
def test_a_stream_joined_is_the_answer(run, model, omega: int, sampling, monkeypatch) -> None:
    monkeypatch.setattr(model, "omega", omega)
    wav = question(run, 1)
    pieces, whole = list(model.stream(wav, sampling)), model.answer(wav, sampling)
    last = pieces[-1].answer
    assert last is not None and "".join(piece.text for piece in pieces) == whole.text == last.text
    assert last.units == whole.units
    joined = np.concatenate([piece.wav for piece in pieces if piece.wav is not None])
    np.testing.assert_array_equal(joined, last.wav)
    np.testing.assert_allclose(joined, whole.wav, atol=1e-4)


def test_text_and_sound_take_turns(run, model, monkeypatch) -> None:
    monkeypatch.setattr(model, "omega", 1)
    kinds = ["sound" if piece.wav is not None else "text" for piece in model.stream(question(run, 1), SHORT)]
    first = kinds.index("sound")
    assert kinds[0] == "text" and "text" in kinds[first + 1 :]


def test_islands_are_for_comparison(run, model, monkeypatch) -> None:
    monkeypatch.setattr(model, "omega", 4)
    exact = model.answer(question(run, 1), SHORT)
    monkeypatch.setattr(model, "join", "islands")
    islands = model.answer(question(run, 1), SHORT)
    assert islands.units == exact.units and islands.wav is not None and exact.wav is not None
    assert not np.array_equal(islands.wav, exact.wav[: len(islands.wav)])


def test_the_demo_s_head_is_heard_before_the_answer_ends(run, model, monkeypatch) -> None:
    vocoder = UnitVocoder(model.codebook).eval()  # the head "mel"
    monkeypatch.setattr(model, "vocoder", vocoder)
    monkeypatch.setattr(model, "omega", 3)
    pieces = list(model.stream(question(run, 1), Sampling(max_new_tokens=40)))
    whole = model.answer(question(run, 1), Sampling(max_new_tokens=40))
    joined = np.concatenate([piece.wav for piece in pieces if piece.wav is not None])
    np.testing.assert_allclose(joined, whole.wav, atol=1e-4)


def test_it_reads_aloud(model) -> None:
    one, other = model.say_batch(["red cat", "blue"])
    assert one.text == "red cat" and one.units and one.wav is not None and one.finished
    alone = model.say("blue")
    assert alone.units == other.units
    with pytest.raises(ValueError, match="empty"):
        model.say(" ")


def test_it_may_answer_what_it_wrote_down(run, model, monkeypatch) -> None:
    monkeypatch.setattr(model, "facts", dataclasses.replace(model.facts, through_text=True))
    wavs = [question(run, i) for i in range(3)]
    answers = model.answer_batch(wavs, SHORT)
    for wav, answer in zip(wavs, answers, strict=True):
        text = model.transcribe(wav, SHORT)
        assert answer.transcript == text and answer.text == model.chat(text, SHORT)
        assert answer.turn[0].parts == (text,)
        pieces = list(model.stream(wav, SHORT))
        assert "".join(piece.transcript for piece in pieces) == text and pieces[-1].answer is not None
        assert (pieces[-1].answer.text, pieces[-1].answer.units) == (answer.text, answer.units)


def test_several_turns(run, model) -> None:
    first = model.answer(question(run), SHORT)
    written = (Message("human", ("one",)), Message("assistant", ("two",)))
    for history in (first.turn, written, first.turn + written):
        answer = model.answer(question(run, 2), SHORT, history)
        assert answer.turn and isinstance(model.chat("red dog", SHORT, history), str)
        *_, last = model.stream(question(run, 2), SHORT, history)
        assert last.answer is not None and last.answer.units == answer.units


def test_a_model_of_stage_1_answers_in_text(run) -> None:
    model = LlamaOmni.from_pretrained(run / "omni_llm")
    assert model.capabilities == {"answer", "stream", "transcribe", "chat"}
    assert model.codebook is None
    answer = model.answer(question(run), SHORT)
    assert answer.text and answer.units is None and answer.wav is None
    pieces = list(model.stream(question(run), SHORT))
    assert "".join(piece.text for piece in pieces) == answer.text and all(piece.wav is None for piece in pieces)
    with pytest.raises(NotSupported):
        model.say("red")


# --- what cannot be used


def test_sounds_that_cannot_be_used(run, model, tmp_path) -> None:
    save_wav(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    (tmp_path / "text.wav").write_bytes(b"no audio")
    for sound, reason in (
        (tmp_path / "silent.wav", "silent"),
        (tmp_path / "text.wav", "unreadable"),
        (tmp_path / "nowhere.wav", "not_found"),
        (np.full(100, 0.1, np.float32), "too_short"),
    ):
        for ask in (model.answer, lambda one: list(model.stream(one))):
            with pytest.raises(AudioError) as refused:
                ask(sound)
            assert refused.value.reason.value == reason
    with pytest.raises(ValueError, match="shorter than one speech embedding"):
        model.answer(tone(300.0, 0.07), SHORT)
    with pytest.raises(ValueError, match="places"):
        model.answer(tone(300.0, 30.0), SHORT)


def copied(run: Path, to: Path) -> Path:
    for name in ("omni", "omni_llm", "vocoder", "text_llm"):
        shutil.copytree(run / name, to / name)
    return to / "omni"


def test_parts_that_are_not_those_of_training(run, tmp_path) -> None:
    folder = copied(run, tmp_path)
    loud_vocoder(VOCOS, seed=5, codebook=FOREIGN).save_pretrained(tmp_path / "vocoder")
    with pytest.raises(PartError):
        _ = LlamaOmni.from_pretrained(folder).vocoder
    facts = json.loads((folder / "speechgpt.json").read_text())
    from variants.references import fingerprint

    facts["extra"]["vocoder"]["fingerprint"] = fingerprint(tmp_path / "vocoder")
    (folder / "speechgpt.json").write_text(json.dumps(facts))
    with pytest.raises(CodebookMismatch):
        list(LlamaOmni.from_pretrained(folder).stream(question(run)))
    (folder / DECODER_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        LlamaOmni.from_pretrained(folder)
    (folder / DECODER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=DECODER_FILE):
        LlamaOmni.from_pretrained(folder)


def test_a_decoder_that_lacks_rows(run, tmp_path) -> None:
    folder = copied(run, tmp_path)
    facts = json.loads((folder / "speechgpt.json").read_text())
    facts["extra"]["speaking"]["units"] = 11
    (folder / "speechgpt.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="not of the shape"):
        LlamaOmni.from_pretrained(folder)


def test_what_the_published_code_cannot_open_is_not_exported(run, tmp_path) -> None:
    with pytest.raises(ValueError, match="the template is plain"):
        export(run / "omni", tmp_path / "out")


# --- commands


def test_the_cli_speaks(run, tmp_path, capsys) -> None:
    speechgpt.cli.main(run / "omni", folder=tmp_path, ask=question(run), out=tmp_path / "a.wav", device="cpu")
    assert len(load_wav(tmp_path / "a.wav"))
    assert capsys.readouterr().out.strip()


def published_questions(run: Path, folder: Path, count: int = 5) -> Path:
    text = "<speech>\nPlease directly answer the questions in the user's speech."
    records = [
        {"id": f"q{i}", "speech": str(question(run, i)), "conversations": [{"from": "human", "value": text}]}
        for i in range(count)
    ]
    records[1]["conversations"].append({"from": "gpt", "value": "the blue one"})
    records.append({"id": "broken", "speech": "nowhere.wav", "conversations": [{"from": "human", "value": text}]})
    records.append({"id": "typed", "conversations": [{"from": "human", "value": "one red"}]})
    path = folder / "question.json"
    path.write_text(json.dumps(records))
    return path


def test_questions_in_the_published_form_are_answered(run, model, tmp_path) -> None:
    source, out = published_questions(run, tmp_path), tmp_path / "answer.jsonl"
    how = generate.Generation(batch=3, max_new_tokens=12)
    assert generate.main(source, out, run / "omni", tmp_path / "wavs", "cpu", how) == 3
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [*(f"q{i}" for i in range(5)), "broken", "typed"]
    for line in lines[:5]:
        assert {"question_id", "prediction", "prediction_units", "answer"} <= line.keys()
        units = tuple(map(int, line["prediction_units"].split()))
        assert units and len(load_wav(tmp_path / "wavs" / line["wav"]))
    assert lines[1]["answer"] == "the blue one" and lines[0]["answer"] is None
    assert lines[5]["prediction"] is None and lines[5]["refused"] == "unusable_audio" and lines[6]["prediction"]
    assert "broken" not in (tmp_path / "answer.jsonl.refused.jsonl").read_text().replace("nowhere", "")
    whole = out.read_text()
    kept = whole.splitlines(keepends=True)
    out.write_text("".join(kept[:3]) + kept[3][:20])  # killed in the middle of a line
    (tmp_path / "answer.jsonl.begun.json").unlink(missing_ok=True)
    assert generate.main(source, out, run / "omni", tmp_path / "wavs", "cpu", how) == 3
    assert out.read_text() == whole


def test_latency_by_omega(run, tmp_path, capsys) -> None:
    rows = [{"id": f"t{i}", "audio": str(question(run, i)), "text": "red"} for i in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    latency.main(run / "omni", tmp_path / "test.jsonl", tmp_path / "out", "1,10", 2)
    found = json.loads((tmp_path / "out/latency.json").read_text())
    assert [row["omega"] for row in found["omegas"]] == [1, 10] and found["questions"] == 2
    for row in found["omegas"]:
        assert row["total_ms"] == pytest.approx(row["llm_ms"] + row["decoder_ms"] + row["vocoder_ms"])
    assert found["decoder"]["recomputed_to_cached"] > 1
    assert "first sound ms" in capsys.readouterr().out


@pytest.mark.parametrize("omegas", ["a", "", "10,,20", "0", "-1", "1.5", "\u0663"])
def test_omegas_are_whole_numbers(tmp_path, omegas: str) -> None:
    with pytest.raises(ValueError, match="omegas"):
        latency.main(tmp_path, tmp_path, tmp_path, omegas)

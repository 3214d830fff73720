"""A finished BLSP folder: answers, streams, chats, refuses what it cannot use; its commands; labels by an LLM."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_blsp import blsp_config, make_blsp_run, saying_words, tone
from tiny_tokenizers import llama3
from transformers import AutoModelForCausalLM, AutoTokenizer

import eval.run
import speechgpt.cli
from instruct_data.build.records import write_conversations
from speechgpt import open_model
from speechgpt.answers import FollowsInstructions, NotSupported, SpeechModel
from speechgpt.dialogue import Conversation, Message, NoUnitsError, Speech
from speechgpt.sampling import Sampling
from stages.train import train
from units.audio import AudioError, save_wav
from units.runtime.files.atomic import written_whole
from units.runtime.precision import multiplies_bfloat16
from variants.blsp import continuation, generate
from variants.blsp.continuation import Labelling, LabelWriter
from variants.blsp.data.examples import utterances_of
from variants.blsp.data.labels import read_labels
from variants.blsp.inference import BLSP, Request
from variants.blsp.stages.system import BLSP_SYSTEM
from variants.blsp.template import ChatTemplate
from variants.listening import Tokens, row
from variants.references import PartError

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The entry point, also where the package was installed before it had one."""
    entry = EntryPoint("blsp", "variants.blsp.inference:BLSP", open_model.GROUP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_model, "entry_points", lambda group: [entry])
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_blsp_run(tmp_path_factory.mktemp("blsp"))
    train(blsp_config(run, training={"max_steps": 6}), system=BLSP_SYSTEM)
    return run


@pytest.fixture(scope="module")
def model(run) -> BLSP:
    opened = open_model.open_model(run / "blsp", "cpu")
    assert isinstance(opened, BLSP)
    return opened


def test_it_is_a_speech_model(model) -> None:
    assert isinstance(model, SpeechModel)
    assert model.capabilities == {"answer", "stream", "transcribe", "chat"}
    assert model.name.startswith("blsp ") and model.sample_rate == 16_000


def test_a_batch_answers_as_each_alone(run, model) -> None:
    wavs = [run / f"wav/t{i}.wav" for i in range(5)]
    alone = [model.answer(wav, SHORT) for wav in wavs]
    assert [answer.text for answer in model.answer_batch(wavs, SHORT)] == [answer.text for answer in alone]
    assert all(answer.text and answer.transcript is None and answer.wav is None for answer in alone)
    assert model.transcribe_batch(wavs, SHORT) == [model.transcribe(wav, SHORT) for wav in wavs]
    asked = ["red dog", "my cat", "red dog", "one", "two three"]
    assert isinstance(model, FollowsInstructions)
    assert model.respond_batch(wavs, asked, SHORT) == [
        model.respond_batch([wav], [one], SHORT)[0] for wav, one in zip(wavs, asked)
    ]
    assert model.respond_batch(wavs[:1], asked[:1], SHORT) == model.respond([Request(wavs[0], asked[0])], SHORT)
    questions = ["red dog", "one two three of my cat"]
    assert model.chat_batch(questions, SHORT) == [model.chat(question, SHORT) for question in questions]


def test_more_recordings_than_are_kept(model) -> None:
    wavs = [tone(200.0 + 20 * i, 0.1) for i in range(66)]
    assert len(model.answer_batch(wavs, Sampling(max_new_tokens=1))) == 66


@pytest.mark.parametrize("sampling", [SHORT, Sampling(temperature=1.0, max_new_tokens=12, seed=3)])
def test_a_stream_joined_is_the_answer(run, model, sampling) -> None:
    wav = run / "wav/t1.wav"
    pieces = list(model.stream(wav, sampling))
    assert "".join(piece.text for piece in pieces) == model.answer(wav, sampling).text == pieces[-1].answer.text


def test_a_chat_mixes_speech_and_text(run, model) -> None:
    first = model.answer(run / "wav/t0.wav", SHORT)
    wav = model.answer(tone(800.0, 0.4), SHORT)  # a recording that is in no file
    written = (Message("human", ("one",)), Message("assistant", ("two",)))
    for history in (first.turn, wav.turn, written, first.turn + written + wav.turn):
        assert isinstance(model.chat("red dog", SHORT, history), str)
        assert model.answer(run / "wav/t2.wav", SHORT, history).turn
    messages = [*first.turn, *written, Message("human", ("red",))]
    prompt, states = model._joined(model.template.prompt(messages))
    assert len(states) == 1 and len(prompt.places) == model.facts.shape.embeddings(len(states[0]))
    assert model._prompt(Message("human", ("red",)), first.turn * 40)[0].ids  # the oldest turns are dropped


def test_what_it_cannot_do(model) -> None:
    for ask in (lambda: model.say("red"), lambda: model.say_batch(["red"])):
        with pytest.raises(NotSupported) as refused:
            ask()
        assert refused.value.capability == "say"


def test_sounds_that_cannot_be_used(run, model, tmp_path) -> None:
    save_wav(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    (tmp_path / "text.wav").write_bytes(b"no audio")
    short = np.full(100, 0.1, np.float32)
    for sound, reason in (
        (tmp_path / "silent.wav", "silent"),
        (tmp_path / "text.wav", "unreadable"),
        (tmp_path / "nowhere.wav", "not_found"),
        (short, "too_short"),
    ):
        with pytest.raises(AudioError) as refused:
            model.answer(sound)
        assert refused.value.reason == reason
    with pytest.raises(ValueError, match="128"):  # the context
        model.answer(tone(300.0, 20.0))
    with pytest.raises(ValueError, match="empty"):
        model.chat(" ")
    with pytest.raises(NoUnitsError):
        model.chat("red", SHORT, (Message("human", ((1, 2),)), Message("assistant", ("one",))))


SMALLER = {"kernels": [3], "strides": [2], "inner": 8}


def test_damaged_and_foreign_parts_are_refused(run, tmp_path) -> None:
    for name, damage, error in (
        ("damaged", lambda folder: (folder / "adapter.safetensors").write_bytes(b"{}"), ValueError),
        ("missing", lambda folder: (folder / "adapter.safetensors").unlink(), FileNotFoundError),
        ("garbled", lambda folder: change_facts(folder, "shape", SMALLER), ValueError),
        ("fields", lambda folder: change_facts(folder, "encoder", None), ValueError),
        ("other", lambda folder: change_facts(folder, "llm", {"path": "../text_llm", "fingerprint": "0"}), PartError),
    ):
        folder = run / f"copy-{name}"
        shutil.copytree(run / "blsp", folder, ignore=shutil.ignore_patterns("checkpoint-*"))
        damage(folder)
        with pytest.raises(error):
            BLSP.from_pretrained(folder)
    with pytest.raises(ValueError, match="float64"):
        BLSP.from_pretrained(run / "blsp", dtype="float64")


def change_facts(folder: Path, name: str, value: object) -> None:
    facts = json.loads((folder / "speechgpt.json").read_text())
    facts["extra"][name] = value
    with written_whole(folder / "speechgpt.json") as file:
        json.dump(facts, file)


def test_it_moves_with_its_run(run, model, tmp_path) -> None:
    shutil.copytree(run / "blsp", tmp_path / "moved/blsp", ignore=shutil.ignore_patterns("checkpoint-*"))
    shutil.copytree(run / "text_llm", tmp_path / "moved/text_llm")
    moved = BLSP.from_pretrained(tmp_path / "moved/blsp")
    wav = run / "wav/t1.wav"
    assert moved.answer(wav, SHORT).text == model.answer(wav, SHORT).text


# --- commands


def test_the_command_line_and_eval_use_it(run, capsys) -> None:
    speechgpt.cli.main(str(run / "blsp"), ask=run / "wav/t1.wav", json=True, device="cpu")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["answer"] and found["wav"] is None and found["transcript"] is None
    rows = (run / "asr.jsonl").read_text().splitlines()[:3]
    (run / "test.jsonl").write_text("\n".join(rows) + "\n")
    eval.run.main(str(run / "blsp"), run / "test.jsonl", run / "results", tasks="asr,tts")
    result = json.loads((run / "results/asr.json").read_text())
    assert result["n"] == 3 and result["model"].startswith("blsp ")
    assert not (run / "results/tts.json").exists()


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def requests(run: Path, folder: Path) -> Path:
    rows = [
        {"audio": str(run / "wav/t0.wav"), "reference": "red"},
        {"audio": str(run / "wav/t1.wav"), "instruction": "one"},
        {"instruction": "two\u2028three"},
        {"audio": str(run / "wav/nowhere.wav")},
        {"reference": "neither", "instruction": ""},
        {"audio": str(run / "wav/t2.wav") + ":800:4800"},
    ]
    path = folder / "in.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join([*lines[:3], "\n", *lines[3:]]))  # a blank line is passed over, and counts as a line
    return path


def test_generate_writes_a_line_for_each(run, model, tmp_path, capsys) -> None:
    source, out = requests(run, tmp_path), tmp_path / "out.jsonl"
    how = generate.Generation(instruction="my cat", batch=2, max_new_tokens=6)
    assert generate.main(source, out, run / "blsp", how=how) == 3
    rows = lines_of(out)
    ours = ("response", "refused")
    assert [{name: row[name] for name in row if name not in ours} for row in rows] == lines_of(source)
    assert [row["response"] is None for row in rows] == [False, False, False, True, True, False]
    assert [row.get("refused") for row in rows][3:5] == ["unusable_audio", "not_a_request"]
    expected = model.respond([Request(run / "wav/t0.wav", "my cat")], Sampling(max_new_tokens=6))
    assert rows[0]["response"] == expected[0]
    refused = lines_of(tmp_path / "out.jsonl.refused.jsonl")
    assert [row["id"] for row in refused] == [f"{source}:5", f"{source}:6"]

    whole = out.read_text()
    killed = tmp_path / "killed.jsonl"
    killed.write_text("\n".join(whole.split("\n")[:4]) + '\n{"audio": "cut')
    generate.main(source, killed, run / "blsp", how=how)
    assert killed.read_text() == whole
    again = lines_of(tmp_path / "killed.jsonl.refused.jsonl")
    assert [row["id"] for row in again] == [row["id"] for row in refused]


def test_labels_are_resumed_and_shared(run, tmp_path) -> None:
    llm = str(saying_words(run / "text_llm", tmp_path / "llm"))
    how = Labelling(behaviours={"continue": 1, "answer": 2}, shard_size=7, batch=4, max_new_tokens=6)
    continuation.main(run / "asr.jsonl", tmp_path / "one", llm, how=how)
    labels = list(read_labels(tmp_path / "one"))
    by_id = {label.id: label for label in labels}
    assert len(by_id) == 30 and {label.behaviour for label in labels} == {"continue", "answer"}
    assert all(label.transcript and label.response and Path(label.speech.audio).exists() for label in labels)

    for rank in (0, 1):
        assert not (tmp_path / "two/labels.json").exists()
        continuation.main(run / "asr.jsonl", tmp_path / "two", llm, rank=rank, world=2, how=how)
    assert list(read_labels(tmp_path / "two")) == labels
    (tmp_path / "two/shard-00001.refused").unlink()
    (tmp_path / "two/labels.json").unlink()
    with pytest.raises(FileNotFoundError):
        list(read_labels(tmp_path / "two"))
    continuation.main(run / "asr.jsonl", tmp_path / "two", llm, how=how)
    assert list(read_labels(tmp_path / "two")) == labels
    facts = json.loads((tmp_path / "two/labels.json").read_text())
    assert sum(facts["labels"].values()) == len(labels)
    with pytest.raises(ValueError, match="max_new_tokens"):
        (tmp_path / "two/labels.json").unlink()
        other = Labelling(behaviours={"continue": 1, "answer": 2}, shard_size=7, batch=4, max_new_tokens=5)
        continuation.main(run / "asr.jsonl", tmp_path / "two", llm, how=other)


def test_labels_are_written_in_the_precision_of_the_llm_where_the_device_has_it(run, tmp_path) -> None:
    def dtype(llm: Path, chosen: str | None = None) -> torch.dtype:
        return LabelWriter(str(llm), "cpu", Labelling(dtype=chosen)).model.dtype

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(run / "text_llm", dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(run / "text_llm").save_pretrained(half)
    assert dtype(run / "text_llm") == torch.float32
    assert dtype(half) == (torch.bfloat16 if multiplies_bfloat16("cpu") else torch.float32)
    assert dtype(half, "float32") == torch.float32
    with pytest.raises(ValueError, match="dtype is 'int8'; it is one of float32"):
        dtype(half, "int8")


def test_some_of_a_corpus_are_labelled_evenly(run, tmp_path) -> None:
    llm = str(saying_words(run / "text_llm", tmp_path / "llm"))
    how = Labelling(limit=3, max_new_tokens=6)
    continuation.main(run / "asr.jsonl", tmp_path / "some", llm, how=how)
    assert [label.id for label in read_labels(tmp_path / "some")] == ["t0", "t10", "t20"]
    assert json.loads((tmp_path / "some/labels.json").read_text())["utterances"] == 3
    with pytest.raises(ValueError, match="limit"):
        Labelling(limit=-1)


def test_progress_counts_every_utterance_once(run) -> None:
    utterances = utterances_of(run / "asr.jsonl")
    silent = [replace(utterances[0], text="?!"), *utterances]
    done: list[int] = []
    writer = LabelWriter(str(run / "text_llm"), "cpu", Labelling(batch=8, max_new_tokens=2))
    writer.labels(silent, done.append)
    assert done == [1, 8, 8, 8, 6]


def test_labels_that_are_left_out_are_counted(run, tmp_path) -> None:
    rows = [
        {"id": "none", "audio": "wav/t0.wav"},
        {"id": "long", "audio": "wav/t1.wav", "text": "red " * 90},
        {"id": "fine", "audio": "wav/t2.wav", "text": "red"},
    ]
    (run / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = Labelling(behaviours={"repeat": 1}, max_new_tokens=3, longest_prompt=120)
    assert continuation.main(run / "some.jsonl", tmp_path / "labels", str(run / "text_llm"), how=how) == 3
    refused = {row["id"]: row["reason"] for row in lines_of(tmp_path / "labels/refused.jsonl")}
    assert refused["none"] == "no_transcript" and refused["long"] == "long_prompt"
    assert refused.get("fine") in ("not_repeated", "empty_response", None)
    with pytest.raises(ValueError, match="dance"):
        Labelling(behaviours={"dance": 1})


def test_repeats_may_be_the_transcripts_themselves_and_the_llm_is_not_asked(run, monkeypatch) -> None:
    utterances = utterances_of(run / "asr.jsonl")
    how = Labelling(behaviours={"repeat": 1, "continue": 1}, repeats="transcript", batch=8, max_new_tokens=2)
    writer = LabelWriter(str(run / "text_llm"), "cpu", how)
    asked: list[int] = []
    written = writer.written
    monkeypatch.setattr(writer, "written", lambda prompts: asked.extend(map(len, prompts)) or written(prompts))
    done: list[int] = []
    labels, _ = writer.labels(utterances, done.append)
    repeats = [label for label in labels if label.behaviour == "repeat"]
    wanted = [one.text for one in utterances if how.behaviour(one.id) == "repeat"]
    assert wanted and [label.response for label in repeats] == wanted
    assert all(label.instruction == "Please repeat the following words." for label in repeats)
    assert len(asked) == len(utterances) - len(wanted) and sum(done) == len(utterances)
    with pytest.raises(ValueError, match="exact, any or transcript"):
        Labelling(repeats="sometimes")  # type: ignore[arg-type]


def test_recordings_with_transcripts_come_in_three_forms(run, tmp_path) -> None:
    wav = str(run / "wav/t0.wav")
    (tmp_path / "published.jsonl").write_text(json.dumps({"audio": wav, "text": "red dog"}) + "\n")
    asked, replied = Message("human", ("write it", Speech(wav))), Message("assistant", ("red dog",))
    write_conversations(tmp_path / "set.jsonl", [Conversation((asked, replied), "asr", "c1")], None, 0)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "m1", "audio": wav, "text": "red dog"}) + "\n")
    for name in ("published", "set", "manifest"):
        (found,) = utterances_of(tmp_path / f"{name}.jsonl")
        assert (str(found.audio), found.text) == (wav, "red dog")


# --- the chat template of a tokenizer


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def test_any_chat_template(tmp_path) -> None:
    tokenizer = llama3(tmp_path)
    tokenizer.chat_template = LLAMA3
    template = ChatTemplate(tokenizer)
    messages = (Message("human", ("say it", Speech("q.wav"))), Message("assistant", ("yes <|eot_id|>",)))
    pieces = template.document(messages)
    made = row(pieces, [3], 0)
    assert [isinstance(piece, Speech) for piece in pieces].count(True) == 1 and len(made.places) == 3
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    trained = [token for token, train in zip(made.ids, made.train) if train]
    assert trained.count(end) == 1 and trained[-1] == end  # the one that a user typed is text
    assert tokenizer.decode(trained[:-1]) == "yes <|eot_id|>"
    prompt = row(template.prompt(messages[:1]), [3], 0)
    assert made.ids[: len(prompt.ids)] == prompt.ids
    text = (Message("human", ("red dog",)), Message("assistant", ("one",)), Message("human", ("two",)))
    whole = tokenizer.apply_chat_template(
        [{"role": "assistant" if i == 1 else "user", "content": one.parts[0]} for i, one in enumerate(text)],
        add_generation_prompt=True,
        return_dict=False,
    )
    assert [token for piece in template.prompt(text) if isinstance(piece, Tokens) for token in piece.ids] == whole


def test_commands_are_typed_as_their_pages_say(run, tmp_path, capsys) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps({"audio": str(run / "wav/t0.wav")}) + "\n")
    given = [str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl")]
    generate.main.cli([*given, "--model", str(run / "blsp"), "--instruction", "one", "--max_new_tokens", "3"])
    assert lines_of(tmp_path / "out.jsonl")[0]["response"]
    llm = str(saying_words(run / "text_llm", tmp_path / "llm"))
    labels = [str(run / "asr.jsonl"), str(tmp_path / "labels"), "--max_new_tokens", "3"]
    with pytest.raises(SystemExit):
        continuation.main.cli([*labels, "--llm", llm, "--behaviours", '{"dance": 1}'])
    assert "dance" in capsys.readouterr().err
    continuation.main.cli([*labels, "--llm", llm, "--behaviours", '{"continue": 1, "answer": 1}'])
    assert (tmp_path / "labels/labels.json").exists()
    for command in (generate.main, continuation.main):
        with pytest.raises(SystemExit) as ended:
            command.cli(given)
        assert ended.value.code == 2 and "is needed" in capsys.readouterr().err


def test_threads_that_share_it_get_what_each_gets_alone(run, model) -> None:
    wavs = [run / f"wav/t{i}.wav" for i in range(5)]
    alone = [model.answer(wav, SHORT).text for wav in wavs]
    shared = open_model.open_model(run / "blsp", "cpu")
    shared.share(3)
    with ThreadPoolExecutor(5) as threads:
        asked = [threads.submit(shared.answer, wav, SHORT) for wav in wavs * 2]
        assert [one.result(120).text for one in asked] == alone * 2
    history = [shared.heard(wavs[0]), Message("assistant", ("yes",))]
    assert shared.chat("red dog", SHORT, history) == model.chat("red dog", SHORT, [model.heard(wavs[0]), history[1]])

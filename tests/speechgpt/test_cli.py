"""speechgpt-cli answers a file and chats; every bad input is one line and exit code 2."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_parts
from tiny_parts import K, tiny_vocoder, tones

from speechgpt import cli as command
from speechgpt import open_model
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.inference import SpeechGPT
from speechgpt.serve.sound_card import record
from units.audio import HOP, SAMPLE_RATE, save_wav
from units.encoder.unit_encoder import UnitEncoder

REPOSITORY = Path(__file__).parents[2]
BRIEF = ("--sampling.max_new_tokens", "250", "--sampling.temperature", "1", "--sampling.seed", "3")


@pytest.fixture
def question(tmp_path: Path) -> Path:
    return save_wav(tmp_path / "q.wav", tones(0.3))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Call the command in this process, in an empty working folder."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def call(*args: object) -> None:
        monkeypatch.setattr("sys.argv", ["speechgpt-cli", *map(str, args)])
        command.main.cli()

    return call


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the random model end its sections."""
    opened = open_model.open_model
    monkeypatch.setattr(open_model, "open_model", lambda *args: tiny_parts.talkative(opened(*args)))


def one_line(call: Callable[[], None], capsys) -> str:
    """The one line on stderr with which a call ends, after exit code 2."""
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("speechgpt-cli: ")
    return lines[0]


# --- one question


@pytest.mark.usefixtures("talkative")
def test_a_question_is_answered(cli, model_folder: Path, question: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "a.wav"
    cli("--model", model_folder, "--ask", question, "--out", out, "--json", *BRIEF)
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"question", "transcript", "answer", "units", "finished", "wav"}
    assert (said["question"], said["wav"]) == (str(question), str(out))
    assert said["units"] and all(0 <= unit < K for unit in said["units"])
    assert soundfile.info(out).frames >= len(said["units"]) * HOP
    cli("--model", model_folder, "--ask", question, "--out", out, *BRIEF)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["heard", "answer", "spoken"]
    assert printed[2] == f"spoken: {out}"
    cli("--model", model_folder, "--ask", question, *BRIEF)
    assert Path("q.answer.wav").is_file()  # in the working folder, when nothing else is said


def test_the_command_runs_as_a_process(model_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m", "speechgpt.cli", "--model", str(model_folder), "--ask", str(tmp_path / "no.wav")]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [f"speechgpt-cli: no audio file at {tmp_path / 'no.wav'}"]


# --- bad input


def write_text(path: Path) -> None:
    path.write_text("what is two plus two")


def write_short(path: Path) -> None:
    soundfile.write(path, tones(0.01), SAMPLE_RATE)


def write_silence(path: Path) -> None:
    soundfile.write(path, np.zeros(SAMPLE_RATE, np.float32), SAMPLE_RATE)


def write_ten_minutes(path: Path) -> None:
    soundfile.write(path, np.tile(tones(10.0), 60), SAMPLE_RATE)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda path: None, "no audio file at"),
        (Path.mkdir, "is a folder, not an audio file"),
        (write_text, "cannot be read as audio"),
        (Path.touch, "cannot be read as audio"),
        (write_silence, "is silent"),
        (write_short, "is 0.010 s long; at least 0.025 s"),
        (write_ten_minutes, "is 600 s long; this model's context"),
    ],
)
def test_bad_audio_is_one_line(cli, model_folder: Path, tmp_path: Path, capsys, make, says: str) -> None:
    path = tmp_path / "q.wav"
    make(path)
    began = time.monotonic()
    line = one_line(lambda: cli("--model", model_folder, "--ask", path, *BRIEF), capsys)
    assert says in line
    assert str(path) in line
    assert time.monotonic() - began < 10


def test_audio_that_fills_the_context_is_one_line(cli, model_folder: Path, tmp_path: Path, capsys) -> None:
    path = save_wav(tmp_path / "q.wav", tones(20.0))
    line = one_line(lambda: cli("--model", model_folder, "--ask", path), capsys)
    assert "this model's context is 256; give less audio" in line


@pytest.mark.parametrize(
    "part, says",
    [
        ("vocoder", "has no vocoder/"),
        ("unit_encoder", "has no unit_encoder/"),
        ("speechgpt.json", "has no speechgpt.json"),
        ("config.json", "config.json"),
        ("model.safetensors", "model.safetensors"),
    ],
)
def test_a_model_folder_without_a_part_is_one_line(
    cli, model_folder: Path, question: Path, tmp_path: Path, capsys, part: str, says: str
) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    shutil.rmtree(copy / part) if (copy / part).is_dir() else (copy / part).unlink()
    assert says in one_line(lambda: cli("--model", copy, "--ask", question, *BRIEF), capsys)


def test_another_codebooks_vocoder_is_one_line(
    cli, model_folder: Path, hubert_encoder: UnitEncoder, question: Path, tmp_path: Path, capsys
) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    tiny_vocoder(hubert_encoder).save_pretrained(copy / "vocoder")
    line = one_line(lambda: cli("--model", copy, "--ask", question, *BRIEF), capsys)
    assert "its vocoder speaks the codebook 'tiny-tiny-0'" in line


@pytest.mark.usefixtures("talkative")
def test_no_model_and_no_place_for_the_answer_are_one_line(cli, model_folder, question, tmp_path, capsys) -> None:
    line = one_line(lambda: cli("--model", tmp_path / "none", "--ask", question), capsys)
    assert "is no folder, so it is no finished SpeechGPT checkpoint" in line
    assert "make demo" in line
    line = one_line(
        lambda: cli("--model", model_folder, "--ask", question, "--out", question / "a.wav", *BRIEF), capsys
    )
    assert str(question) in line


# --- the chat


@pytest.mark.usefixtures("talkative")
def test_a_chat(
    cli, model_folder: Path, question: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work" / "hello").mkdir()  # a folder of that name does not turn the word into a path
    typed = [
        "/save early.wav",
        "",
        "/help",
        "what is two plus two",
        "hello",
        "x" * 5000,
        str(question),
        "/save kept.wav",
        "/hear",
        f"/hear {question}",
        "/say",
        "/say hello",
        "/dance",
        str(tmp_path / "no.wav"),
        "/no/where.wav",
        str(tmp_path),
        "/record soon",
        "/reset",
        "/save late.wav",
        "/quit",
        "never read",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    cli("--model", model_folder, "--folder", tmp_path / "answers", *BRIEF)
    caught = capsys.readouterr()
    assert "Traceback" not in caught.out + caught.err
    replies = caught.out.split("> ")
    expected = {
        0: "model ",
        1: "no spoken answer to save",
        3: "`/say TEXT`",
        6: "256",
        7: "answer_1.wav",
        8: "saved kept.wav",
        9: "hear what?",
        11: "say what?",
        12: "answer_2.wav",
        13: "unknown command /dance",
        14: "no audio file at",
        15: "no audio file at",
        16: "is a folder",
        17: "record for 'soon' seconds?",
        18: "forgotten",
        19: "no spoken answer",
    }
    for turn, words in expected.items():
        assert words in replies[turn], (turn, typed[turn - 1][:60], replies[turn])
    assert len(replies) == 21
    assert "a folder" not in replies[5]
    assert replies[7].startswith("heard:")
    assert Path("kept.wav").read_bytes() == (tmp_path / "answers" / "answer_1.wav").read_bytes()
    assert {path.name for path in (tmp_path / "answers").iterdir()} == {"answer_1.wav", "answer_2.wav", "chat.jsonl"}
    noted = [json.loads(line) for line in (tmp_path / "answers" / "chat.jsonl").read_text().splitlines()]
    assert [line["asked"] for line in noted] == ["what is two plus two", "hello", str(question), "hello"]
    assert [line["wav"] for line in noted] == [None, None, "answer_1.wav", "answer_2.wav"]


def chat(cli, monkeypatch: pytest.MonkeyPatch, capsys, *typed: str, args: tuple = ()) -> list[str]:
    """What a chat prints for each line; the greeting comes first."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed) + "\n"))
    cli(*args, *BRIEF)
    return capsys.readouterr().out.split("> ")


@pytest.mark.usefixtures("talkative")
def test_a_later_chat_overwrites_nothing(cli, model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--model", model_folder, "--folder", "kept")
    assert "spoken: kept/answer_1.wav" in chat(cli, monkeypatch, capsys, "/say one", args=args)[1]
    first = Path("kept/answer_1.wav").read_bytes()
    later = chat(cli, monkeypatch, capsys, "/ask one", "/reset", "/say three", args=args)
    assert "spoken: kept/answer_2.wav" in later[1] and "spoken: kept/answer_3.wav" in later[3]
    assert Path("kept/answer_1.wav").read_bytes() == first
    assert len(Path("kept/chat.jsonl").read_text().splitlines()) == 3


@pytest.mark.usefixtures("talkative")
def test_paths_are_understood_as_terminals_give_them(
    cli, model_folder: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    home = tmp_path / "a home"
    save_wav(home / "q.wav", tones(0.3))
    monkeypatch.setenv("HOME", str(home))
    typed = [f"'{home}/q.wav'", f'"{home}/q.wav"', "~/q.wav", "/hear ~/q.wav", "~/none.m4a", "/save ~/kept.wav"]
    said = chat(cli, monkeypatch, capsys, *typed, args=("--model", model_folder))
    assert all(reply.startswith("heard:") for reply in said[1:4])
    assert "heard" not in said[4] and "no audio file" not in said[4]
    assert said[5].startswith(f"no audio file at {home}/none.m4a")
    assert (home / "kept.wav").read_bytes() == Path("answers/answer_3.wav").read_bytes()


@pytest.mark.usefixtures("talkative")
def test_memory_limits_the_history(cli, model_folder: Path, question: Path, capsys, monkeypatch) -> None:
    given: list[int] = []
    prompt = SpeechGPT._prompt
    monkeypatch.setattr(
        SpeechGPT,
        "_prompt",
        lambda self, message, history=(): given.append(len(history)) or prompt(self, message, history),
    )
    typed = ["one", str(question), "three", "/reset", "four"]
    for memory, expected in ((0, [0, 0, 0, 0]), (1, [0, 2, 2, 0]), (9, [0, 2, 4, 0])):
        given.clear()
        chat(cli, monkeypatch, capsys, *typed, args=("--model", model_folder, "--memory", memory))
        assert given == expected


@pytest.mark.usefixtures("talkative")
def test_an_answer_can_be_stopped(cli, model_folder: Path, question: Path, capsys, monkeypatch) -> None:
    def stopped(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(SpeechGPT, "stream", stopped)
    said = chat(cli, monkeypatch, capsys, str(question), "/say on", args=("--model", model_folder))
    assert "(stopped)" in said[1]
    assert "spoken: answers/answer_1.wav" in said[2]


@pytest.mark.usefixtures("talkative")
def test_a_reply_that_was_cut_off_is_marked(cli, model_folder: Path, question: Path, capsys, monkeypatch) -> None:
    args = ("--model", model_folder, "--ask", question, "--sampling.max_new_tokens", "3", "--sampling.candidates", "1")
    cli(*args)
    assert "(cut off)" in capsys.readouterr().out
    cli(*args, "--json")
    assert json.loads(capsys.readouterr().out)["finished"] is False
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{question}\n"))
    cli(*args[:2], *args[4:])
    assert "(cut off:" in capsys.readouterr().out


def test_options_without_effect_are_refused(cli, model_folder: Path, capsys) -> None:
    for flag in (("--json",), ("--out", "a.wav")):
        assert "need --ask FILE" in one_line(lambda flag=flag: cli("--model", model_folder, *flag), capsys)
    assert "memory is -1" in one_line(lambda: cli("--model", model_folder, "--memory", "-1"), capsys)
    assert "no device 'gpu' here" in one_line(lambda: cli("--model", model_folder, "--device", "gpu"), capsys)


@pytest.mark.usefixtures("talkative")
def test_an_answer_is_played(cli, model_folder: Path, question: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    cli("--model", model_folder, "--ask", question, "--play", *BRIEF)
    assert "there is no player to play it: install one of ffplay, aplay" in capsys.readouterr().err
    player = tmp_path / "aplay"
    player.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/played"\n')
    player.chmod(0o755)
    cli("--model", model_folder, "--ask", question, "--play", *BRIEF)
    assert (tmp_path / "played").read_text() == "-q q.answer.wav\n"


def test_recording_from_the_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        """A stand-in for sounddevice."""

        class PortAudioError(Exception):
            pass

        def rec(self, frames, samplerate, channels, dtype):
            assert (samplerate, channels, dtype) == (SAMPLE_RATE, 1, "float32")
            return np.full((frames, 1), 0.5, np.float32)

        def wait(self) -> None:
            pass

    card = Card()
    monkeypatch.setitem(sys.modules, "sounddevice", card)
    assert np.array_equal(record("0.5"), np.full(SAMPLE_RATE // 2, 0.5, np.float32))

    def broken(**settings):
        raise Card.PortAudioError("no device")

    card.rec = lambda *args, **settings: broken()
    with pytest.raises(ValueError, match="nothing was recorded .no device."):
        record("0.5")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(ValueError, match="pip install sounddevice"):
        record("4")
    for seconds in ("inf", "nan", "-1", "0", "soon", "601"):
        with pytest.raises(ValueError, match="at most 600"):
            record(seconds)


@pytest.mark.parametrize("stage, warned", [("stage1", True), ("stage2", True), ("stage3", False), ("mine", False)])
def test_the_greeting_names_missing_capabilities(
    cli, model_folder, tmp_path, capsys, monkeypatch, stage, warned
) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    replace(CheckpointFacts.load(copy), stage=stage).save(copy)
    greeting = chat(cli, monkeypatch, capsys, args=("--model", copy))[0]
    assert ("does not support: answer" in greeting) == warned


@pytest.mark.parametrize(
    "option, values",
    [
        ("temperature", (-0.1, 1e-4, 1001, "nan", "inf")),
        ("top_k", (-1, 1.5)),
        ("top_p", (0, -1, 1.01, "nan")),
        ("max_new_tokens", (0, -5, 2.5, "many")),
        ("seed", (-1, 2**32, 10**30)),
        ("candidates", (0, 101, 10**30)),
    ],
)
def test_numbers_are_checked_before_the_model_is_opened(cli, capsys, option: str, values: tuple) -> None:
    for value in values:
        args = ("--model", "absent", f"--sampling.{option}", value)
        line = one_line(functools.partial(cli, *args), capsys)
        assert option in line and str(value)[:6] in line and "absent" not in line


def test_a_chat_ends_at_the_end_of_its_input(cli, model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    cli("--model", model_folder)
    assert "/help" in capsys.readouterr().out


ODD_LINES = (
    b"caf\xe9",
    b"\xff\xfe/\x00s\x00a\x00y\x00",  # UTF-16
    b"/hear \xe9.wav",
    b"/say \xf0\x9f\x98",  # a cut letter
    b"/save \xe9/\x00.wav",
    b"/\xe9",
    b"\xed\xa0\x80 \xef\xbb\xbf",  # half a surrogate pair, a byte order mark
    b"a" * 5000,
    b"/help",
)


def assert_each_line_was_answered(printed: str) -> None:
    answers = printed.split("> ")
    assert len(answers) == len(ODD_LINES) + 2  # the greeting, an answer to each line, and the end of the input
    assert all("UTF-8" in answers[number] or "not Unicode" in answers[number] for number in (1, 4))
    assert answers[-2].strip() == command.HELP.strip()


@pytest.mark.parametrize("encoding, errors", [("utf-8", "strict"), ("utf-8", "surrogateescape"), ("ascii", "strict")])
def test_lines_that_are_not_utf8_leave_the_chat_going(
    cli, model_folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, encoding: str, errors: str
) -> None:
    typed = io.BytesIO(b"".join(line + b"\n" for line in ODD_LINES))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, encoding=encoding, errors=errors))
    cli("--model", model_folder, "--sampling.max_new_tokens", "8")
    assert_each_line_was_answered(capsys.readouterr().out)


def test_piped_lines_that_are_not_utf8_leave_the_process_going(model_folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONIOENCODING": "utf-8:strict"}
    run = [sys.executable, "-m", "speechgpt.cli", "--model", str(model_folder), "--sampling.max_new_tokens", "8"]
    typed = b"".join(line + b"\n" for line in ODD_LINES)
    done = subprocess.run(run, cwd=tmp_path, env=environment, input=typed, capture_output=True, timeout=120)
    assert done.returncode == 0 and b"Traceback" not in done.stderr + done.stdout
    assert_each_line_was_answered(done.stdout.decode("utf-8", "replace"))

"""The cascade: its parts in order, its batches, its stream, its topline, and every task of eval-run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chat_server import ChatServer, chat_server
from spoken_test_set import ANSWERS, CHATS, QUESTIONS

from eval import run
from eval.model import open_measured_model
from eval.models.cascade import Cascade, CascadeError, TrueTranscripts, open_cascade
from eval.results import load_results
from eval.test_set import NotMeasured, TestSet
from instruct_data.text.completion import CompletionError, EndpointModel, _rendered, messages_of
from speechgpt.answers import NotSupported, SpeechModel
from speechgpt.sampling import Sampling
from units.audio import SAMPLE_RATE, AudioError

ANSWER_TO = dict(zip(QUESTIONS, ANSWERS))
# a tone that lasts as long as the text: espeak never speaks a text twice in exactly the same way
VOICE = SimpleNamespace(name="tone", speak=lambda text: np.sin(np.arange(800 * len(text)) / 9).astype(np.float32))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server(lambda messages: ANSWER_TO.get(messages[-1]["content"], "No idea. Sorry!")) as found:
        yield found


@pytest.fixture
def cascade(corpus: Path, server: ChatServer) -> Cascade:
    return Cascade(TrueTranscripts(TestSet(corpus)), EndpointModel(server.url, "tiny"), VOICE)


def test_the_parts_work_in_order(cascade: Cascade, corpus: Path, server: ChatServer) -> None:
    assert isinstance(cascade, SpeechModel)
    wavs = [item.wav() for item in TestSet(corpus).test]
    answers = cascade.answer_batch(wavs)
    assert [(a.transcript, a.text) for a in answers] == [(q, a) for q, a, _ in CHATS]
    for answer in answers:
        assert np.array_equal(answer.wav, VOICE.speak(answer.text)) and answer.finished and answer.units is None
    alone = [cascade.answer(wav) for wav in wavs]
    assert [a.text for a in alone] == ANSWERS and all(np.array_equal(a.wav, b.wav) for a, b in zip(alone, answers))
    assert cascade.transcribe_batch(wavs) == QUESTIONS and cascade.chat_batch(QUESTIONS) == ANSWERS
    assert np.array_equal(cascade.say("hello").wav, VOICE.speak("hello"))


def test_a_stream_joins_to_the_answer(cascade: Cascade, corpus: Path, server: ChatServer) -> None:
    [item, *_] = TestSet(corpus).test
    server.reply = lambda messages: "One. Two!"
    whole, pieces = cascade.answer(item.wav()), list(cascade.stream(item.wav()))
    assert "".join(p.transcript for p in pieces) == whole.transcript and "".join(p.text for p in pieces) == whole.text
    wavs = [piece.wav for piece in pieces if piece.wav is not None]
    assert len(wavs) == 2 and np.array_equal(np.concatenate(wavs), whole.wav)
    assert [piece.answer is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_sentences_are_spoken_one_by_one(cascade: Cascade) -> None:
    pieces = list(cascade._sentences("No idea. Sorry!\n---\n12?"))
    assert [len(piece) for piece in pieces] == [len(VOICE.speak(text)) for text in ("No idea.", "Sorry!", "twelve?")]


def test_history_system_prompt_and_limit_reach_the_llm(corpus: Path, server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    specification = f"cascade:transcripts,{server.url}#tiny,tokens=2,system={tmp_path / 'system.txt'}"
    cascade = open_measured_model(specification, "cpu", TestSet(corpus))
    [first, second, *_] = TestSet(corpus).test
    answer = cascade.answer(first.wav())
    assert (answer.text, answer.finished, answer.wav) == ("that makes", False, None)
    cascade.answer(second.wav(), Sampling(max_new_tokens=1), answer.turn)
    said = [("system", "Be brief."), ("user", QUESTIONS[0]), ("assistant", "that makes"), ("user", QUESTIONS[1])]
    assert [(m["role"], m["content"]) for m in server.requests[-1]["messages"]] == said
    assert [body["max_tokens"] for body in server.requests] == [2, 1]
    assert "up to 2 tokens, prompted" in cascade.name and "say" not in cascade.capabilities
    with pytest.raises(NotSupported, match="it has no voice"):
        cascade.say("hello")


def test_what_the_llm_refuses_is_an_error_of_that_question(corpus: Path, cascade: Cascade, server: ChatServer) -> None:
    server.reply = lambda messages: 400
    with pytest.raises(CompletionError, match="400"):
        cascade.chat("hello")


def test_silence_and_foreign_wavs_are_refused(cascade: Cascade) -> None:
    with pytest.raises(AudioError, match="silent"):
        cascade.transcribe(np.zeros(SAMPLE_RATE, np.float32))
    with pytest.raises(ValueError, match="this wav is not in it"):
        cascade.transcribe(np.ones(SAMPLE_RATE, np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        "cascade:",
        "cascade:whisper:a",
        "cascade:whisper:a,",
        "cascade:whisper:a,b,flite:slt,c",
        "cascade:whisper:a,b,length=3",
        "cascade:transcripts,b,tokens=0",
        "cascade:transcripts,http://localhost:8000/v1",
    ],
)
def test_a_wrong_specification_is_one_line(wrong: str, corpus: Path) -> None:
    with pytest.raises(CascadeError) as error:
        open_cascade(wrong, "cpu", TestSet(corpus))
    assert "\n" not in str(error.value)


def test_missing_parts_are_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no language model in .*none"):
        open_cascade(f"cascade:transcripts,{tmp_path / 'none'}", "cpu", TestSet(corpus))
    with pytest.raises(NotMeasured, match="needs a test set"):
        open_cascade(f"cascade:transcripts,{tmp_path}", "cpu")


def test_a_local_llm_is_named_by_its_weights_and_replies(widened: Path, corpus: Path) -> None:
    cascade = open_cascade(f"cascade:transcripts,{widened},tokens=3", "cpu", TestSet(corpus))
    assert cascade.name.startswith(f"cascade the true transcripts, {widened.name} ")
    [item, *_] = TestSet(corpus).test
    answer = cascade.answer(item.wav())
    assert answer.transcript == item.question and isinstance(answer.text, str) and not answer.finished
    with pytest.raises(ValueError, match="replies greedily"):
        cascade.chat("hello", Sampling(temperature=1.0))


def test_a_chat_is_one_prompt() -> None:
    chat = ({"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"})
    assert messages_of(chat) == list(chat) and messages_of("hello") == [{"role": "user", "content": "hello"}]
    without_template = SimpleNamespace(chat_template=None)
    assert _rendered(without_template, chat) == "one two\nthree" == _rendered(without_template, "one two\nthree")


def test_every_task_measures_a_cascade(corpus: Path, tmp_path: Path, server: ChatServer, asr) -> None:
    out = tmp_path / "results"
    run.main(f"cascade:pocketsphinx,{server.url}#tiny,espeak:en-us", corpus, out)
    results = load_results(out)
    assert results.keys() == {
        "originals", "asr", "spoken_qa", "answer_speech", "new_voice", "text_qa", "tts", "speed", "pace"
    }  # fmt: skip
    assert results["asr"].score == results["originals"].score  # the same recogniser on the same recordings
    run.main(f"cascade:transcripts,{server.url}#tiny", corpus, tmp_path / "topline")
    topline = load_results(tmp_path / "topline")
    assert topline["spoken_qa"].score == topline["text_qa"].score == 1.0 == results["text_qa"].score
    assert topline["asr"].score == 0.0 and "answer_speech" not in topline

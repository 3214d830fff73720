"""The eval room: figures against hand-worked numbers, the judge on real speech, a whole run of a made-up model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from eval import card
from eval.judge import Judge
from eval.metrics import (
    Score,
    accuracy,
    character_error_rate,
    character_errors,
    ratio,
    word_error_rate,
    word_errors,
    words,
)
from eval.results import Result, ResultError, fingerprint, load_details, load_result, save_result
from eval.resynthesis import report, resynthesise, spread
from eval.run import TASKS, evaluate
from eval.tables import NOT_RUN
from eval.tasks import Bench
from instruct_data.toy_grammar import judge_grammar, say
from instruct_data.voices import VoiceError, open_voice
from speechgpt.generate import Sampling
from speechgpt.takes import Take
from units.audio import HOP, num_frames, save_wav
from units.codebook import Codebook, Units
from units.manifest import Utterance, write_manifest

CODEBOOK = Codebook("made", "mfcc", 0, 10, 50.0, "none", "abc")
CHATS = (
    ("what is two plus three", "that makes five", "sum"),
    ("what is nine plus one", "that makes ten", "sum"),
    ("which is bigger four or eight", "eight is bigger", "compare"),
    ("what color does anna like", "anna likes green", "town"),
    ("please say the small red dog jumps", "the small red dog jumps", "say"),
    ("what day comes after monday", "it must be tuesday", "calendar"),
)


def test_word_errors_by_hand():
    assert word_errors("two plus two", "two plus two") == (0, 3)
    assert word_errors("two plus two", "two minus two please") == (2, 3)  # one swapped, one added
    assert word_errors("Two, plus two!", "two  PLUS") == (1, 3)  # case and punctuation do not count
    assert word_errors("two plus two", None) == (3, 3)
    assert word_errors(None, "two") == (1, 0)
    assert word_errors("one two three", "one two three") == (0, 3)  # number words stay words


def test_words_of_any_script():
    assert words("नमस्ते दुनिया।") == ["नमस्ते", "दुनिया"]  # vowel signs are part of the word
    assert words("Don\u2019t") == words("don't") == ["don't"]
    assert words("cafe\u0301") == words("café") == ["café"]
    assert words("he said 'yes', the dogs' way \u2018no\u2019") == "he said yes the dogs way no".split()
    assert words("می\u200cروم") == ["میروم"] and words("snake_case, ok! ❤\ufe0f ''") == ["snake", "case", "ok"]
    assert words("可以，好") == ["可以", "好"]


def test_characters_count_where_words_cannot():
    assert character_errors("可以吗", "可以") == (1, 3)
    assert character_errors("ab cd", "abcd") == (1, 5)
    assert character_errors("", "ab") == (2, 0) and character_errors("ab", None) == (2, 2)
    assert character_error_rate(["abcd", "ef"], ["abxd", "ef"]).value == pytest.approx(1 / 6)


def test_word_error_rate_and_its_jackknife_by_hand():
    score = word_error_rate(["a b", "c d", "e f"], ["a b", "c x", "e f"])
    assert score.value == pytest.approx(1 / 6)
    # leaving one out gives 1/4, 0, 1/4: mean 1/6, squared deviations 1/144 + 1/36 + 1/144 = 1/24, times 2/3
    assert score.standard_error == pytest.approx(math.sqrt(2 / 3 / 24))
    assert score.n == 3


def test_clusters_widen_the_error():
    tops, bottoms = [1, 1, 0, 0], [2, 2, 2, 2]
    alone, together = ratio(tops, bottoms), ratio(tops, bottoms, ["a", "a", "b", "b"])
    assert alone.value == together.value == 0.25
    assert together.standard_error == pytest.approx(0.25)  # leaving out a half gives 0 or 1/2
    assert alone.standard_error < together.standard_error
    exact = accuracy(["a", "a", "b", "b"], ["x", "x", "b", "b"], ["a", "a", "b", "b"])
    assert exact == Score(0.5, pytest.approx(0.5), 4)  # leaving out a half gives 0 or 1


def test_accuracy_and_its_binomial_error_by_hand():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == Score(
        0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)), 4
    )


def test_what_cannot_be_measured_is_none():
    assert accuracy([], []) == Score(None, None, 0)
    assert word_error_rate([None], ["a"]) == Score(None, None, 0)
    assert accuracy([None, "", "a"], [None, None, "a"]) == Score(1.0, 0.0, 1)  # what says nothing is never right
    assert word_error_rate([None, "a"], [None, "a"]).n == 1
    assert word_error_rate(["a"], ["a"]) == Score(0.0, None, 1)
    with pytest.raises(ValueError):
        word_error_rate(["a"], [])


def test_spread_keeps_every_part():
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], None) == spread([1, 2], 9) == [1, 2]


# --- results


def made_result(**changes) -> Result:
    result = Result(
        task="asr", version=1, metric="wer", higher_is_better=False, listener="the model", model="m 1", commit="c0ffee",
        codebook="made abc", machine="abacus, 2 cores", limit=None, n=40, score=0.125, standard_error=0.02,
        more={"exact": Score(0.5, 0.05, 40), "family/sum": Score(None, None, 0)},
    )  # fmt: skip
    return dataclasses.replace(result, **changes)


def test_results_are_read_as_written(tmp_path):
    assert load_result(save_result(tmp_path / "asr.json", made_result())) == made_result()
    assert [path.name for path in tmp_path.iterdir()] == ["asr.json"]


WRONG = ({"color": "red"}, {"n": None}, {"n": True}, {"score": "0.1"}, {"more": {"exact": {}}})


@pytest.mark.parametrize("change", WRONG)
def test_results_reader_is_strict(tmp_path, change):
    path = save_result(tmp_path / "asr.json", made_result())
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultError, match="asr.json"):
        load_result(path)


def test_nan_is_never_written(tmp_path):
    with pytest.raises(ValueError):
        save_result(tmp_path / "asr.json", made_result(score=float("nan")))
    assert not list(tmp_path.iterdir())


def test_fingerprint_follows_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != first
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "nothing")


# --- the judge


@pytest.fixture(scope="module")
def speak():
    """Text -> wav by espeak, each sentence spoken once."""
    voice = open_voice("espeak:en-us")
    try:
        voice.speak("hello")
    except (VoiceError, ImportError, OSError) as error:
        pytest.skip(f"no speech engine to test with: {error}")
    return functools.cache(voice.speak)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    pytest.importorskip("pocketsphinx", reason="the judge needs pocketsphinx: pip install '.[eval]'")
    path = tmp_path_factory.mktemp("judge") / "judge.jsgf"
    path.write_text(judge_grammar())
    return Judge(path)


def test_judge_hears_real_speech_and_does_not_remember(judge, speak):
    sentences = [answer for _, answer, _ in CHATS] + [say("happy", "blue", "tiger", "sings").answer] * 3
    heard = [judge.transcribe(speak(sentence)) for sentence in sentences]
    assert word_error_rate(sentences, heard).value < 0.15
    wavs = [speak(sentence) for sentence in sentences]
    assert judge.transcribe_all(wavs, workers=2) == heard  # through a pool, in order, and the same


def test_judge_hears_nothing_in_silence(judge):
    assert (
        judge.transcribe(np.zeros(16000, np.float32)) == judge.transcribe(None) == judge.transcribe(np.zeros(0)) == ""
    )


def test_judge_refuses_a_missing_or_broken_grammar(judge, tmp_path):
    with pytest.raises(FileNotFoundError, match="judge.jsgf"):
        Judge(tmp_path / "none.jsgf")
    (tmp_path / "bad.jsgf").write_text("this is no grammar")
    with pytest.raises(RuntimeError, match="JSGF"):
        Judge(tmp_path / "bad.jsgf")


# --- a whole run


SLIP = next(answer for _, answer, family in CHATS if family == "town")


class MadeModel:
    """Hears by file name, knows every answer but the sums, and speaks by espeak, some answers only at the second take."""

    def __init__(self, speak, questions: dict[str, str]) -> None:
        self.speak, self.questions, self.calls = speak, questions, 0
        self.answers = {question: answer for question, answer, family in CHATS if family != "sum"}
        self.encoder = SimpleNamespace(codebook=CODEBOOK, encode=lambda wav: Units.from_frames(range(10), CODEBOOK))

    def transcribe_batch(self, paths):
        self.calls += 1
        return [self.questions[path.stem.partition(".")[0]] for path in paths]

    def answer(self, path, sampling=Sampling()):
        question = self.transcribe_batch([path])[0]
        text = self.answers.get(question)
        slip = text == SLIP and sampling.takes == 1
        wav = self.speak("no" if slip else text) if text else None
        take = Take((), True, number=int(text == SLIP)) if sampling.takes > 1 else None
        return SimpleNamespace(transcript=question, text=text, units=None, wav=wav, take=take)

    def answer_batch(self, paths, sampling=Sampling()):
        return [self.answer(path, sampling) for path in paths]

    def say_batch(self, texts):
        return [SimpleNamespace(wav=self.speak(text)) for text in texts]

    def chat_batch(self, texts):
        return [self.answers.get(text, "that makes one") for text in texts]


@pytest.fixture
def bench(tmp_path, judge, speak):
    corpus = tmp_path / "run" / "corpus"
    for name in ("test", "test_new_voice"):
        paths = [save_wav(corpus / "wav" / f"q{i}.{name}.wav", speak(q)) for i, (q, _, _) in enumerate(CHATS)]
        write_manifest(
            corpus / f"{name}.jsonl",
            [Utterance(p.stem, p, text=q, speaker="espeak") for p, (q, _, _) in zip(paths, CHATS)],
        )
    audio = save_wav(corpus / "wav" / "a0.wav", speak(CHATS[0][1]))
    answer = Utterance("a0", audio, text=CHATS[0][1], speaker="espeak")
    write_manifest(corpus / "train.jsonl", [answer])
    write_manifest(corpus / "answers_unseen.jsonl", [answer])
    rows = [{"question": q, "answer": a, "family": f, "split": "test"} for q, a, f in CHATS]
    (corpus / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpus / "corpus.json").write_text(json.dumps({"answer_voice": "espeak", "new_voice": "espeak"}))
    model = MadeModel(speak, {f"q{i}": q for i, (q, _, _) in enumerate(CHATS)})
    return Bench(model, corpus, judge, None, tmp_path / "run" / "results" / "answers")


def test_a_whole_run_and_its_report(bench, tmp_path, capsys):
    run = tmp_path / "run"
    found = evaluate(bench, run / "results", "made 1")
    assert set(found) == set(TASKS)
    assert found["asr"].score == found["new_voice"].score == 0
    assert found["spoken_qa"].main == Score(pytest.approx(4 / 6), pytest.approx(math.sqrt(2 / 9 / 6)), 6)
    assert found["spoken_qa"].more["family/sum"].value == 0
    assert found["spoken_qa"].more["family/town"].value == 1
    assert found["answer_speech"].more["gave_speech"].value == pytest.approx(4 / 6)
    assert found["answer_speech"].more["wer_against_gold"].value >= 6 / 21  # the two unspoken sums are six words lost
    spoken = found["answer_speech"]
    assert spoken.more["first_take"].value >= spoken.main.value + 2 / 15  # one answer of fifteen words' three is a slip
    assert found["tts"].more["wer_trained_sentences"].n == 1 and found["tts"].more["wer_unheard_sentences"].n == 5
    assert found["originals"].more["wer_answer_voice"].n == 1
    assert found["new_voice"].more["family/sum"].n == found["new_voice"].more["spoken_qa_family/sum"].n == 2
    assert len(load_details(run / "results" / "asr.details.jsonl")) == 6
    kept = load_details(run / "results" / "answers" / "answers.jsonl")
    assert len(kept) == 5 and len({record["family"] for record in kept}) == 5
    assert len(list((run / "results" / "answers").glob("*.answer.wav"))) == 4  # the first sum is not spoken

    with pytest.raises(ValueError, match="there are originals, asr"):
        evaluate(bench, run / "results", "made 1", ["singing"])
    calls = bench.model.calls
    evaluate(bench, run / "results", "made 1", ["asr"])
    assert bench.model.calls == calls  # finished
    evaluate(bench, run / "results", "made 2", ["asr"])
    assert bench.model.calls > calls  # another model

    (run / "stage1").mkdir()
    (run / "stage1" / "log.jsonl").write_text(
        "".join(json.dumps({"step": s, "loss": 2 / s, "seconds": s}) + "\n" for s in (1, 2, 3))
    )
    (run / "started").touch()
    capsys.readouterr()
    card.main(run, run / "report")
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[-1].startswith("toy: asr_wer=0.000 spoken_qa=0.667 answer_wer=")
        and "resynth_wer=not-run minutes=" in lines[-1]
    )
    assert "answer.wav" in lines[-2] and "report.html" in lines[-3]
    page = (run / "report" / "report.html").read_text()
    assert page.count("<audio") == 9 and page.count("data:image/png") == 2 and NOT_RUN in page
    assert "http" not in page and "src='data:" in page
    assert "66.7 ± 19.2 %" in (run / "report" / "REPORT.md").read_text()


def test_the_report_of_an_empty_run_invents_nothing(tmp_path, capsys):
    card.main(tmp_path / "run", tmp_path / "report")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.count("not-run") == 6 and line.endswith("minutes=unknown")
    assert (tmp_path / "report" / "REPORT.md").read_text().count(NOT_RUN) > 10


def test_resynthesis_of_a_perfect_and_of_a_mute_vocoder(judge, speak, tmp_path, capsys):
    spoken: dict[Units, np.ndarray] = {}

    def encode(wav):
        units = Units.from_frames([len(spoken) % 10] * num_frames(len(wav)), CODEBOOK)
        spoken.setdefault(units, wav)
        return units

    def decode(units, predict_durations=False):
        return np.zeros(HOP * 10, np.float32) if predict_durations else spoken[units]

    sentences = [answer for _, answer, _ in CHATS]
    paths = [save_wav(tmp_path / f"{i}.wav", speak(sentence)) for i, sentence in enumerate(sentences)]
    utterances = [Utterance(path.stem, path, text=sentence) for path, sentence in zip(paths, sentences)]
    figures, details = resynthesise(SimpleNamespace(encode=encode), SimpleNamespace(decode=decode), judge, utterances)
    assert figures["wer_true"].value == figures["wer_original"].value < 0.15
    assert figures["wer_predicted"].value == 1.0
    assert len(details) == len(sentences)

    main = figures.pop("wer_predicted")
    mute = made_result(task="resynthesis", score=main.value, n=main.n, more=figures)
    assert report(mute, 0.05) == 1 and "GATE FAILED" in capsys.readouterr().out
    assert report(dataclasses.replace(mute, score=0.0), 0.15) == 0 and "gate passed" in capsys.readouterr().out

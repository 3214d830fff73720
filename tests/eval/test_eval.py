"""The eval room: figures against hand-worked numbers, the judge on real speech, a whole run of a made-up model."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from made_results import made_result

from eval.asr import Judge
from eval.bench import Bench
from eval.corpus import Corpus, NotMeasured, spread
from eval.metrics import Score, word_error_rate
from eval.report import card
from eval.report.tables import NOT_RUN
from eval.results import load_details, load_result
from eval.resynthesis import report, resynthesise
from eval.run import TASKS, evaluate, main
from eval.subject import Subject
from instruct_data.speech.voices import VoiceError, open_voice
from instruct_data.toy.grammar import asr_grammar, say
from speechgpt.answers import Candidate
from speechgpt.sampling import Sampling
from units.audio import HOP, num_frames, save_wav
from units.codebook import Codebook, Units
from units.corpus.manifest import Utterance, read_manifest, write_manifest

CODEBOOK = Codebook("made", "mfcc", 0, 10, 50.0, "none", "abc")
CHATS = (
    ("what is two plus three", "that makes five", "sum"),
    ("what is nine plus one", "that makes ten", "sum"),
    ("which is bigger four or eight", "eight is bigger", "compare"),
    ("what color does anna like", "anna likes green", "town"),
    ("please say the small red dog jumps", "the small red dog jumps", "say"),
    ("what day comes after monday", "it must be tuesday", "calendar"),
)


def test_spread_keeps_every_part():
    assert spread(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], None) == spread([1, 2], 9) == [1, 2]


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
    path.write_text(asr_grammar())
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
    """Hears by the sound, knows every answer but the sums, and speaks by espeak, some answers only at the second take."""

    def __init__(self, speak, questions: list[str]) -> None:
        self.speak, self.questions, self.calls = speak, questions, 0
        self.answers = {question: answer for question, answer, family in CHATS if family != "sum"}
        self.encoder = SimpleNamespace(codebook=CODEBOOK, encode=lambda wav: Units.from_frames(range(10), CODEBOOK))

    def transcribe_batch(self, wavs):
        self.calls += 1
        return [next(q for q in self.questions if len(self.speak(q)) == len(wav)) for wav in wavs]

    def answer_batch(self, wavs, sampling=Sampling()):
        return [self.reply(question, sampling) for question in self.transcribe_batch(wavs)]

    def reply(self, question, sampling):
        text = self.answers.get(question)
        slip = text == SLIP and sampling.candidates == 1
        wav = self.speak("no" if slip else text) if text else None
        candidate = Candidate((), True, number=int(text == SLIP)) if sampling.candidates > 1 else None
        return SimpleNamespace(transcript=question, text=text, units=None, wav=wav, candidate=candidate)

    def say_batch(self, texts):
        return [SimpleNamespace(wav=self.speak(text)) for text in texts]

    def chat_batch(self, texts):
        return [self.answers.get(text, "that makes one") for text in texts]


class Listener:
    """The least that can be measured: it answers one wav at a time, in text alone."""

    def answer(self, wav):
        return SimpleNamespace(text="eight is bigger")


@pytest.fixture
def corpus(tmp_path, speak):
    corpus = tmp_path / "run" / "corpus"
    for name in ("test", "test_new_voice"):
        paths = [save_wav(corpus / "wav" / f"q{i}.{name}.wav", speak(q)) for i, (q, _, _) in enumerate(CHATS)]
        write_manifest(
            corpus / f"{name}.jsonl",
            [Utterance(f"q/{p.stem}", p, text=q, speaker="espeak") for p, (q, _, _) in zip(paths, CHATS)],
        )
    audio = save_wav(corpus / "wav" / "a0.wav", speak(CHATS[0][1]))
    answer = Utterance("a0", audio, text=CHATS[0][1], speaker="espeak")
    write_manifest(corpus / "train.jsonl", [answer])
    write_manifest(corpus / "answers_unseen.jsonl", [answer])
    rows = [{"question": q, "answer": a, "family": f, "split": "test"} for q, a, f in CHATS]
    (corpus / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (corpus / "text.txt").write_text("".join(f"{q}? {a}.\n" for q, a, f in CHATS if f != "say"))
    (corpus / "corpus.json").write_text(json.dumps({"answer_voice": "espeak", "new_voice": "espeak", "seed": 0}))
    (corpus / "judge.jsgf").write_text(asr_grammar())
    return corpus


@pytest.fixture
def bench(tmp_path, corpus, judge, speak):
    subject = Subject(MadeModel(speak, [q for q, _, _ in CHATS]), "made 1")
    return Bench(subject, Corpus(corpus), judge, tmp_path / "run" / "results" / "answers")


def test_a_whole_run_and_its_report(bench, tmp_path, capsys):
    run = tmp_path / "run"
    found = evaluate(bench, run / "results")
    assert set(found) == set(TASKS)
    assert found["asr"].score == found["new_voice"].score == 0
    assert found["spoken_qa"].main == Score(pytest.approx(4 / 6), pytest.approx(math.sqrt(2 / 9 / 6)), 6)
    assert found["spoken_qa"].more["family/sum"].value == 0
    assert found["spoken_qa"].more["family/town"].value == 1
    assert found["text_qa"].more["read"].n == 5 and found["text_qa"].more["unread"] == Score(1.0, 0.0, 1)
    assert found["asr"].more["cer"] == Score(0.0, 0.0, 6)
    assert (found["asr"].corpus, found["asr"].device) == (bench.corpus.name, "cpu")
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
        evaluate(bench, run / "results", ["singing"])
    capsys.readouterr()

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


# --- what is asked, and of whom


def test_results_are_of_one_model_corpus_and_device(bench, corpus, tmp_path):
    def calls(bench: Bench) -> int:
        before = bench.subject.model.calls
        evaluate(bench, tmp_path / "results", ["asr"])
        return bench.subject.model.calls - before

    model = bench.subject.model
    assert calls(bench) == 1 and calls(bench) == 0  # finished
    assert calls(Bench(Subject(model, "made 2"), bench.corpus, None, tmp_path)) == 1  # another model
    assert calls(Bench(Subject(model, "made 2", "mps"), bench.corpus, None, tmp_path)) == 1  # another device
    (corpus / "judge.jsgf").write_text(asr_grammar() + "\n")
    assert calls(Bench(Subject(model, "made 2"), Corpus(corpus), None, tmp_path)) == 1  # another grammar
    assert calls(Bench(Subject(model, None), Corpus(corpus), None, tmp_path)) == 1  # who has no name is never known
    assert calls(Bench(Subject(model, None), Corpus(corpus), None, tmp_path)) == 1


def test_what_cannot_be_measured_is_skipped_and_says_why(corpus, judge, tmp_path, capsys):
    found = evaluate(
        Bench(Subject(Listener(), "least"), Corpus(corpus), judge, tmp_path / "kept"), tmp_path / "results"
    )
    assert set(found) == {"originals", "spoken_qa", "speed"} and found["spoken_qa"].codebook == "-"
    assert found["spoken_qa"].score == pytest.approx(1 / 6) and "transcript_wer" not in found["spoken_qa"].more
    said = capsys.readouterr().out
    assert "asr            skipped: the model has no transcribe\n" in said
    assert "answer_speech  skipped: the model's answers have no wav\n" in said
    assert "tts            skipped: the model has no say\n" in said

    class Wrong:
        def answer(self, wav):
            return "text"

    with pytest.raises(ValueError, match="answered with a str; an answer is an object"):
        evaluate(Bench(Subject(Wrong(), None), Corpus(corpus), judge, tmp_path / "kept"), tmp_path / "wrong")


def test_an_utterance_that_is_refused_counts_as_wrong_and_is_listed(corpus, bench, tmp_path, capsys):
    before = evaluate(bench, tmp_path / "before", ["asr", "spoken_qa"])
    utterances = read_manifest(corpus / "test.jsonl")
    utterances[1].audio.write_text("no audio")
    utterances[2].audio.unlink()
    again = Bench(bench.subject, bench.corpus, bench.listener, tmp_path / "kept")
    found = evaluate(again, tmp_path / "results")
    assert found["asr"].n == before["asr"].n and found["asr"].score > before["asr"].score
    assert found["spoken_qa"].score < before["spoken_qa"].score
    details = [json.loads(line) for line in (tmp_path / "results" / "spoken_qa.details.jsonl").read_text().splitlines()]
    assert [detail["transcript"] is None for detail in details] == [False, True, True, False, False, False]
    assert set(found) == {"originals", "asr", "spoken_qa", "answer_speech", "new_voice", "text_qa", "tts", "speed"}
    lines = [json.loads(line) for line in (tmp_path / "results" / "refused.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [utterances[1].id, utterances[2].id]
    assert "cannot be read as audio" in lines[0]["reason"] and "no audio file" in lines[1]["reason"]
    assert "2 utterances could not be heard, and count as wrong" in capsys.readouterr().out
    assert found["speed"].n == 4


def test_a_manifest_alone_measures_hearing(corpus, bench, speak, tmp_path, capsys):
    """Its utterances may be stretches of one file."""
    texts = [q for q, _, _ in CHATS[:3]]
    wavs = [speak(text) for text in texts]
    whole = save_wav(tmp_path / "whole.wav", np.concatenate(wavs))
    starts = np.cumsum([0, *map(len, wavs)]) / 16_000
    said = [Utterance(f"s{i}", whole, starts[i], len(wavs[i]) / 16_000, text) for i, text in enumerate(texts)]
    write_manifest(tmp_path / "own.jsonl", [*said, Utterance("mute", whole)])
    alone = Bench(bench.subject, Corpus(tmp_path / "own.jsonl"), None, tmp_path / "kept")
    found = evaluate(alone, tmp_path / "results")
    assert set(found) == {"asr", "speed"} and found["asr"].main == Score(0.0, 0.0, 3)
    assert found["asr"].corpus.startswith("own ")
    out = capsys.readouterr().out
    assert "text_qa        skipped: a manifest has no chats.jsonl" in out and "give the judge a --grammar" in out
    judged = Bench(
        bench.subject, Corpus(tmp_path / "own.jsonl", corpus / "judge.jsgf"), bench.listener, tmp_path / "kept"
    )
    more = set(evaluate(judged, tmp_path / "judged"))
    assert more == {"originals", "asr", "answer_speech", "tts", "speed"}

    write_manifest(tmp_path / "own.jsonl", [Utterance("mute", whole)])
    assert evaluate(Bench(bench.subject, Corpus(tmp_path / "own.jsonl"), None, tmp_path), tmp_path / "empty") == {}
    with pytest.raises(NotMeasured, match="no utterance with a text"):
        _ = Corpus(tmp_path / "own.jsonl").test
    with pytest.raises(FileNotFoundError, match="no corpus at"):
        Corpus(tmp_path / "none")


def test_questions_without_answers_are_refused(corpus):
    (corpus / "chats.jsonl").write_text("")
    with pytest.raises(ValueError, match="chats.jsonl does not have"):
        _ = Corpus(corpus).test
    (corpus / "chats.jsonl").unlink()
    assert Corpus(corpus).test[0].gold == ""


def test_a_function_gives_the_model(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_models.py").write_text(
        "from types import SimpleNamespace\n"
        "def baseline(device):\n"
        "    return SimpleNamespace(name=f'theirs on {device}', transcribe=lambda wav: 'what is two plus three')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for again in ("", "(was done)"):
        main("my_models:baseline", corpus, tmp_path / "results", tasks="asr")
        assert again in capsys.readouterr().out
    result = load_result(tmp_path / "results" / "asr.json")
    assert result.model == "theirs on cpu" and 0 < result.score < 1
    for wrong in ("my_models:nothing", "no_models:baseline"):
        with pytest.raises(ValueError, match="module:function"):
            main(wrong, corpus, tmp_path / "results")


def test_answers_in_the_same_words_are_one_draw(bench, tmp_path):
    """All families of closed answers repeat them: a sentence that is badly said is badly said to every question."""
    bench.subject.model.answers = {q: SLIP for q, _, _ in CHATS[:4]} | {q: a for q, a, _ in CHATS[4:]}
    score = evaluate(bench, tmp_path / "results", ["answer_speech"])["answer_speech"]
    own = [SLIP] * 4 + [a for _, a, _ in CHATS[4:]]
    assert score.more["first_take"] == word_error_rate(own, bench.heard_first, own)
    assert score.more["first_take"].standard_error > word_error_rate(own, bench.heard_first).standard_error
    assert score.more["family/sum"].standard_error is None  # two questions, one sentence

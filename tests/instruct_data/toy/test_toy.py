"""Invariants of the toy world: nothing that is tested is in the training audio, which holds every word."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from tiny_parts import tones

from instruct_data.speech import speak
from instruct_data.speech.speak import Line, speak_lines
from instruct_data.speech.voices import VoiceError, open_voice
from instruct_data.text.reasons import TextReason
from instruct_data.toy.grammar import (
    FAMILIES,
    NAMES,
    SPLITS,
    ToyText,
    asr_grammar,
    facts,
    is_question,
    make_text,
    vocabulary,
)
from instruct_data.toy.world import (
    ANSWER_VOICE,
    NEW_VOICE,
    QUESTION_VOICES,
    SAY_COUNTS,
    ToyConfig,
    question_lines,
    reading_text,
    toy_text,
    training_lines,
    unseen_statements,
    write_texts,
)
from units.corpus.manifest import read_manifest

SEEDS = (0, 1, 2, 3)


@pytest.fixture(scope="module", params=SEEDS)
def text(request: pytest.FixtureRequest) -> ToyText:
    return toy_text(request.param)


@pytest.fixture(scope="module")
def lines(text: ToyText) -> list[Line]:
    return training_lines(text, ToyConfig())


def test_no_held_out_question_is_in_the_training_audio(text: ToyText, lines: list[Line]) -> None:
    spoken = {line.text for line in lines}
    for split in ("dev", "test"):
        assert not spoken & {q.question for q in text.questions[split]}
        assert not spoken & {q.answer for q in text.questions[split] if q.family in ("say", "town")}


def test_nothing_is_said_of_a_held_out_person_and_habit(text: ToyText, lines: list[Line]) -> None:
    spoken = {line.text.removeprefix("please say ") for line in lines}
    for split in ("dev", "test"):
        for question in text.questions[split]:
            if question.family == "town":
                start = question.answer.rsplit(" ", 1)[0]  # "anna lives in", whatever the city
                assert [sentence for sentence in spoken if f"{sentence} ".startswith(f"{start} ")] == []


def test_nothing_begins_with_an_answer_that_no_training_question_has(text: ToyText, lines: list[Line]) -> None:
    trained = {q.answer for q in text.questions["train"]}
    unheard = {q.answer for split in ("dev", "test") for q in text.questions[split]} - trained
    assert {q.answer for q in text.questions["test"] if q.family == "opposite"} <= unheard
    said = {line.text.removeprefix("please say ") for line in lines} | {*text.unspoken, *(q.answer for q in text.typed)}
    assert [sentence for sentence in said if f"{sentence} ".startswith(tuple(f"{answer} " for answer in unheard))] == []


def test_every_beginning_of_an_answer_is_said_in_many_sentences(text: ToyText, lines: list[Line]) -> None:
    spoken = {line.text for line in lines if line.voice == ANSWER_VOICE}
    for start in ("that makes", "that leaves", "it must be", "the opposite is", "has a", "lives in"):
        longer = [s for s in spoken if re.search(rf"\b{start} \w+ \w", s)]
        assert len(longer) >= 60, start


def test_what_is_only_typed_is_in_nothing_spoken(text: ToyText, lines: list[Line]) -> None:
    typed = {q.question for q in text.typed} | {q.answer for q in text.typed}
    assert len(typed) == 2 * len(text.typed) == 2000
    assert not typed & {line.text for line in lines} and not typed & {*text.statements, *text.unspoken}


def test_statements_know_no_answer_and_are_no_question_that_has_one(text: ToyText) -> None:
    known = {sentence for fact in facts() for sentence in (fact.question, fact.answer)}
    assert not known & set(text.statements)
    assert len(set(text.statements)) == len(text.statements)
    said = Counter(re.sub(r" .*", "", statement) for statement in text.statements[-2000:])
    assert said["the"] > 200 and sum(said[name] for name in NAMES) > 200  # short kinds are not all at the beginning


def test_no_statement_holds_a_question_of_dev_or_test(text: ToyText) -> None:
    statements = "\n".join(f" {statement} " for statement in text.statements)
    for question in text.questions["dev"] + text.questions["test"]:
        assert f" {question.question} " not in statements
    asked = [statement for statement in text.statements if is_question(statement)]
    assert 0.2 < len(asked) / len(text.statements) < 0.6


def test_the_answer_voice_asks_nothing(lines: list[Line]) -> None:
    assert not any(is_question(line.text) for line in lines if line.voice == ANSWER_VOICE)


def test_the_answer_voice_says_short_sentences_often(text: ToyText, lines: list[Line]) -> None:
    spoken = Counter(line.text for line in lines if line.voice == ANSWER_VOICE)
    answers = {q.answer: q.family for q in text.questions["train"]}
    assert {spoken[answer] for answer, family in answers.items() if family in ("town", "say")} == {1}
    others = {spoken[answer] for answer, family in answers.items() if family not in ("town", "say")}
    assert others == {ToyConfig().answer_renditions}


def test_no_combination_is_in_two_splits(text: ToyText) -> None:
    keys = {split: {(q.family, q.key) for q in text.questions[split]} for split in SPLITS}
    assert not keys["train"] & keys["dev"]
    assert not keys["train"] & keys["test"]
    assert not keys["dev"] & keys["test"]
    for split in SPLITS:
        assert {family for family, _ in keys[split]} == set(FAMILIES)
        assert sum(q.family == "say" for q in text.questions[split]) == SAY_COUNTS[split]
    assert len(text.questions["test"]) >= 150


def test_the_new_voice_is_in_no_training_line(lines: list[Line]) -> None:
    voices = Counter(line.voice for line in lines)
    assert NEW_VOICE not in voices
    assert set(voices) == {ANSWER_VOICE, *QUESTION_VOICES}
    assert ANSWER_VOICE not in QUESTION_VOICES


def test_the_vocoders_test_sentences_are_in_no_training_line(text: ToyText, lines: list[Line]) -> None:
    unseen = unseen_statements(text)
    assert len(unseen) >= 50
    assert not {line.text for line in lines} & set(unseen)


def test_what_is_read_aloud_is_in_nothing_else(text: ToyText, lines: list[Line]) -> None:
    assert len(set(text.unspoken)) == len(text.unspoken) == 3000 and not any(map(is_question, text.unspoken))
    known = {s for split in SPLITS for q in text.questions[split] for s in (q.question, q.answer)}
    assert not set(text.unspoken) & {*known, *text.statements, *(line.text for line in lines)}
    assert {word for sentence in text.unspoken for word in sentence.split()} <= set(vocabulary())
    for question in text.questions["dev"] + text.questions["test"]:
        if question.family == "town":
            start = f"{question.answer.rsplit(' ', 1)[0]} "
            assert not any(sentence.startswith(start) for sentence in text.unspoken)


def test_every_word_is_in_the_training_audio(text: ToyText, lines: list[Line]) -> None:
    words = set(vocabulary())
    assert 160 < len(words) < 200
    assert {word for line in lines for word in line.text.split()} == words
    asked = {word for line in lines if line.voice != ANSWER_VOICE for word in line.text.split()}
    tested = {word for split in ("dev", "test") for q in text.questions[split] for word in q.question.split()}
    assert tested <= asked


def test_every_training_answer_is_spoken(text: ToyText, lines: list[Line]) -> None:
    spoken = {line.text for line in lines if line.voice == ANSWER_VOICE}
    assert {q.answer for q in text.questions["train"]} <= spoken


def test_the_text_llm_reads_every_fact(text: ToyText) -> None:
    read = set(reading_text(text, 0))
    for split in SPLITS:
        facts = [q for q in text.questions[split] if q.family != "say"]
        assert {f"{q.question}? {q.answer}." for q in facts} <= read
    assert not {f"{statement}." for statement in unseen_statements(text)} & read


def test_a_question_has_one_answer(text: ToyText) -> None:
    answers: dict[str, str] = {}
    for split in SPLITS:
        for q in text.questions[split]:
            assert answers.setdefault(q.question, q.answer) == q.answer
            assert (q.question + q.answer).replace(" ", "").isalpha()


def test_the_asr_grammar_accepts_what_is_tested_and_what_may_be_replied(text: ToyText) -> None:
    accepts = sentence_pattern(asr_grammar())
    sentences = [s for s in text.statements + text.unspoken if not is_question(s)]
    sentences += [s for split in SPLITS for q in text.questions[split] for s in (q.question, q.answer)]
    assert [sentence for sentence in sentences if not accepts.fullmatch(sentence)] == []
    assert not accepts.fullmatch("what is two plus") and not accepts.fullmatch("what is the opposite of red bread")


def sentence_pattern(jsgf: str) -> re.Pattern[str]:
    """A regular expression for a JSGF grammar of rules of earlier rules, alternatives, groups and options only."""
    rules = dict(re.findall(r"^(?:public )?<(\w+)> = (.*);$", jsgf, re.MULTILINE))
    pattern = rules.pop("sentence")
    for name, words in rules.items():
        pattern = pattern.replace(f"<{name}>", f"({words})")
    marks = {"|": "|", "(": " ?(", ")": ") ?", "[": " ?(", "]": ")? ?"}
    return re.compile(re.sub(r" ?([][|()]) ?", lambda found: marks[found[1]], pattern))


def test_the_same_seed_is_the_same_world() -> None:
    counts = {"train": 50, "dev": 5, "test": 5}
    assert make_text(3, counts, 40, 20, 20) == make_text(3, counts, 40, 20, 20)
    assert toy_text(0).questions["test"] != toy_text(1).questions["test"]
    config = ToyConfig(
        fact_renditions=1,
        facts=20,
        say_questions=10,
        spoken_statements=5,
        answer_voice_statements=5,
        answer_renditions=1,
    )
    assert training_lines(toy_text(0), config) == training_lines(toy_text(0), config)
    assert len(training_lines(toy_text(0), config)) < 150
    asked = question_lines("test", toy_text(0).questions["test"], QUESTION_VOICES, 0)
    assert Counter(line.voice for line in asked).keys() == set(QUESTION_VOICES)


def test_the_texts_of_a_corpus_folder(tmp_path: Path, text: ToyText) -> None:
    write_texts(tmp_path, text, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"chats.jsonl", "text.txt", "to_read.txt", "asr_grammar.jsgf"}
    rows = [json.loads(line) for line in (tmp_path / "chats.jsonl").read_text().splitlines()]
    counts = {split: len(text.questions[split]) for split in SPLITS}
    assert Counter(row["split"] for row in rows) == {**counts, "train": counts["train"] + len(text.typed)}
    assert (tmp_path / "asr_grammar.jsgf").read_text() == asr_grammar()


@pytest.mark.parametrize("settings", [{"facts": -1}, {"say_questions": -1}, {"answer_renditions": 0}])
def test_settings_are_checked(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="--toy." + next(iter(settings)).replace("_", "-")):
        ToyConfig(**settings)


# --- speaking


class Tone:
    """A voice of one tone; it cannot speak the word bad."""

    def __init__(self, spoken: list[str]) -> None:
        self.spoken = spoken

    def speak(self, sentence: str):
        if "bad" in sentence:
            raise VoiceError(TextReason.ENGINE_FAILED, "cannot speak bad")
        self.spoken.append(sentence)
        return tones(0.2) if sentence != "..." else 0.005 * tones(0.2)


def test_speaking_resumes_and_counts_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[str] = []
    monkeypatch.setattr(speak, "open_voice", lambda name, **options: Tone(spoken))
    wanted = [Line("a", "one", "tone:x"), Line("b", "bad word", "tone:x"), Line("c", "two", "tone:y")]
    done = speak_lines(wanted, tmp_path, "train", workers=1)
    manifest = done.manifest
    assert (done.lines, done.refused) == (3, 1)
    assert [(u.id, u.text, u.speaker) for u in read_manifest(manifest)] == [
        ("a", "one", "tone:x"),
        ("c", "two", "tone:y"),
    ]
    refused = (tmp_path / "train.refused.jsonl").read_text().splitlines()
    row = {"id": "b", "reason": TextReason.ENGINE_FAILED, "detail": "cannot speak bad"}
    assert list(map(json.loads, refused)) == [row]
    first = manifest.read_bytes()
    read_manifest(manifest)[1].audio.unlink()
    assert speak_lines(wanted, tmp_path, "train", workers=1).manifest.read_bytes() == first
    assert spoken == ["one", "two", "two"]  # existing wavs are not spoken again
    with pytest.raises(VoiceError, match="cannot speak bad") as raised:
        speak_lines(wanted[1:2], tmp_path, "none", workers=1)
    assert raised.value.reason == TextReason.ENGINE_FAILED


def test_another_text_voice_or_option_does_not_reuse_a_wav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[str] = []
    monkeypatch.setattr(speak, "open_voice", lambda name, **options: Tone(spoken))
    for line in (
        Line("a", "one", "tone:x"),
        Line("a", "two", "tone:x"),
        Line("a", "two", "tone:y"),
        Line("a", "two", "tone:y", {"speed": 2}),
    ):
        speak_lines([line], tmp_path, "train", workers=1)
    assert spoken == ["one", "two", "two", "two"]


def test_noise_is_refused_and_not_amplified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speak, "open_voice", lambda name, **options: Tone([]))
    lines = [Line("a", "one", "tone:x"), Line("b", "...", "tone:x")]
    assert [u.id for u in read_manifest(speak_lines(lines, tmp_path, "train", workers=1).manifest)] == ["a"]
    row = json.loads((tmp_path / "train.refused.jsonl").read_text())
    assert (row["id"], row["reason"]) == ("b", TextReason.SILENT.value) and "'...'" in row["detail"]


@pytest.mark.parametrize("voice", ["espeak:en-us", "flite:slt"])
def test_a_text_that_an_engine_would_cut_is_refused(voice: str) -> None:
    for broken in ("one\0two", "one \ud83d"):
        with pytest.raises(VoiceError) as raised:
            open_voice(voice).speak(broken)
        assert raised.value.reason in (TextReason.NOT_PLAIN_TEXT, TextReason.ENGINE_MISSING)


def test_espeak_speaks_and_unknown_voices_are_refused() -> None:
    voice = open_voice("espeak:en-us", speed=180)
    assert voice.name == "espeak:en-us"
    assert 4000 < len(voice.speak("the small red dog jumps")) < 80_000
    for name, message in (
        ("espeak:nobody", "'nobody'"),
        ("flite:nobody", "slt, awb"),
        ("siri:x", "'siri:x'.*flite:NAME"),
    ):
        with pytest.raises(VoiceError, match=message) as raised:
            open_voice(name).speak("hello")
        assert raised.value.reason == TextReason.UNKNOWN_VOICE

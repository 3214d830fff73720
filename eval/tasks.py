"""The tasks: what is asked of the model, and how its answers are scored. Each is a function of a Bench.

Every task runs on the test split. Of this repository's own choices one was made on it, `unit_noise`, by `new_voice`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from eval.bench import Bench
from eval.corpus import Item, NotMeasured, spread
from eval.metrics import Score, accuracy, character_error_rate, ratio, word_error_rate, words
from eval.results import kept_wav, save_details
from units.audio import RECEPTIVE_FIELD, SAMPLE_RATE, save_wav
from units.runtime.progress import progress

NUM_SENTENCES = 60  # of `tts`
NUM_TIMED = 10  # of `speed`
NUM_KEPT = 5  # answers kept as audio


@dataclass(frozen=True)
class Outcome:
    """What a task found. details: one record an example. listener: who heard the speech."""

    score: Score
    more: dict[str, Score]
    details: list[dict]
    listener: str


def asr(bench: Bench) -> Outcome:
    """The model writes down what it hears."""
    return _transcribing(bench, bench.corpus.test)


def _transcribing(bench: Bench, items: list[Item]) -> Outcome:
    transcripts = bench.hear(bench.subject.transcribe, items, "transcribing")
    questions = [item.question for item in items]
    more = {"exact": accuracy(questions, transcripts), "cer": character_error_rate(questions, transcripts)}
    more |= _by_family(word_error_rate, items, questions, transcripts)
    details = [_detail(item, transcript=transcript) for item, transcript in zip(items, transcripts)]
    return Outcome(word_error_rate(questions, transcripts), more, details, "the model")


def spoken_qa(bench: Bench) -> Outcome:
    """A spoken question, the answer as text: exactly right or not."""
    bench.corpus.file("chats.jsonl")
    bench.require("text")
    return _answering(bench, bench.corpus.test, bench.answers)


def _answering(bench: Bench, items: list[Item], answers: list) -> Outcome:
    gold, texts = [item.gold for item in items], [answer.text for answer in answers]
    more = {}
    if "transcript" in bench.subject.parts:
        questions, transcripts = [item.question for item in items], [answer.transcript for answer in answers]
        understood = [i for i, item in enumerate(items) if words(transcripts[i]) == words(item.question)]
        more = {
            "transcript_wer": word_error_rate(questions, transcripts),
            "transcript_exact": accuracy(questions, transcripts),
            "accuracy_when_understood": accuracy([gold[i] for i in understood], [texts[i] for i in understood]),
        }
    more |= _by_family(accuracy, items, gold, texts) | _by_reading(bench, items, texts)
    details = [_detail(item, transcript=a.transcript, text=a.text) for item, a in zip(items, answers)]
    return Outcome(accuracy(gold, texts), more, details, "the model")


def answer_speech(bench: Bench) -> Outcome:
    """The spoken answer, heard by the judge: does it say what the model wrote, and what is right?"""
    judge = bench.judge.name
    bench.require("wav")
    items, answers, heard = bench.corpus.test, bench.answers, bench.heard
    own, gold = [answer.text for answer in answers], [item.gold for item in items]
    same = [" ".join(words(text)) for text in own]  # one sentence said to many questions is well or badly said to all
    speaks = [answer.wav is not None and len(answer.wav) > 0 for answer in answers]
    more = {
        "exact": accuracy(own, heard, same),
        "first_take": word_error_rate(own, bench.heard_first, same),
        "gave_speech": accuracy(["yes"] * len(items), ["yes" if spoke else "no" for spoke in speaks]),
        **_by_family(word_error_rate, items, own, heard, same),
    }
    if bench.corpus.has("chats.jsonl"):
        more["wer_against_gold"] = word_error_rate(gold, heard, same)
        more["exact_against_gold"] = accuracy(gold, heard, same)
    told = zip(items, answers, heard, bench.heard_first)
    details = [_detail(item, text=a.text, heard=h, heard_first=f) for item, a, h, f in told]
    _keep_answers(bench)
    return Outcome(word_error_rate(own, heard, same), more, details, judge)


def _keep_answers(bench: Bench) -> None:
    """Keep the first question of each of five families, whatever its answer was worth: wavs, and what was heard."""
    items = bench.corpus.test
    first: dict[str, int] = {}
    for i, item in enumerate(items):
        first.setdefault(item.family, i)
    rest = [i for i in range(len(items)) if i not in first.values()]
    records = []
    for i in sorted([*first.values(), *rest][:NUM_KEPT]):
        item, answer = items[i], bench.answers[i]
        if item.id not in bench.refused:
            save_wav(kept_wav(bench.keep, item.id, "question"), item.wav())
        if answer.wav is not None and len(answer.wav) >= RECEPTIVE_FIELD:  # shorter ones load_wav refuses
            save_wav(kept_wav(bench.keep, item.id, "answer"), answer.wav)
        records.append(_detail(item, transcript=answer.transcript, text=answer.text, heard=bench.heard[i]))
    save_details(bench.keep / "answers.jsonl", records)


def new_voice(bench: Bench) -> Outcome:
    """The test questions from a voice that no training heard: transcribed, and answered."""
    items = bench.corpus.new_voice
    hearing = _transcribing(bench, items)
    if not (bench.subject.can("answer") and bench.corpus.has("chats.jsonl")):
        return hearing
    answers = bench.hear(bench.answer_once, items, "answering a new voice")
    if "text" not in bench.subject.parts:
        return hearing
    answering = _answering(bench, items, answers)
    more = {**hearing.more, "spoken_qa": answering.score}
    more |= {f"spoken_qa_{name}": score for name, score in answering.more.items()}
    details = [{**a, "transcript_in_answer": a["transcript"], **h} for a, h in zip(answering.details, hearing.details)]
    return Outcome(hearing.score, more, details, "the model")


def text_qa(bench: Bench) -> Outcome:
    """The test questions as text: what the model knows when nothing has to be heard."""
    bench.corpus.file("chats.jsonl")
    items = bench.corpus.test
    texts = bench.in_batches(bench.subject.chat, [item.question for item in items], "chatting")
    gold = [item.gold for item in items]
    more = _by_family(accuracy, items, gold, texts) | _by_reading(bench, items, texts)
    details = [_detail(item, text=text) for item, text in zip(items, texts)]
    return Outcome(accuracy(gold, texts), more, details, "-")


def tts(bench: Bench) -> Outcome:
    """The model reads test answers aloud, or the questions where there are no answers; the judge writes down what it hears."""
    judge, corpus = bench.judge, bench.corpus
    limit = min(NUM_SENTENCES, corpus.limit or NUM_SENTENCES)
    sentences = spread(list(dict.fromkeys(item.gold or item.question for item in corpus.test)), limit)
    spoken = bench.in_batches(bench.subject.say, sentences, "speaking")
    heard = judge.transcribe_all([answer.wav for answer in spoken])
    more = {"exact": accuracy(sentences, heard)}
    if "answer_voice" in corpus.world:
        trained = corpus.said_in_training()
        for name, inside in (("trained_sentences", True), ("unheard_sentences", False)):
            pairs = [(s, h) for s, h in zip(sentences, heard) if (s in trained) is inside]
            more[f"wer_{name}"] = word_error_rate([s for s, _ in pairs], [h for _, h in pairs])
    details = [{"text": s, "heard": h} for s, h in zip(sentences, heard)]
    return Outcome(word_error_rate(sentences, heard), more, details, judge.name)


def originals(bench: Bench) -> Outcome:
    """The judge on the recordings themselves: its own floor, and the hearing that the model is compared with."""
    judge, corpus = bench.judge, bench.corpus
    heard = {"test": _judged(bench, corpus.test)}
    for name, file in (("new_voice", "test_new_voice.jsonl"), ("answer_voice", "answers_unseen.jsonl")):
        if corpus.has(file):
            heard[name] = _judged(bench, corpus.items(file))
    scores = {
        name: word_error_rate([d["question"] for d in found], [d["heard"] for d in found])
        for name, found in heard.items()
    }
    details = [detail for found in heard.values() for detail in found]
    return Outcome(scores.pop("test"), {f"wer_{name}": s for name, s in scores.items()}, details, judge.name)


def _judged(bench: Bench, items: list[Item]) -> list[dict]:
    heard = bench.judge.transcribe_all(bench.hear(list, items, "reading"))
    return [_detail(item, heard=h) for item, h in zip(items, heard)]


def speed(bench: Bench) -> Outcome:
    """Questions answered one at a time: seconds of work for a second of spoken answer."""
    subject, items = bench.subject, spread(bench.corpus.test, NUM_TIMED)
    details: list[dict] = []
    for item in progress(items, desc="timing", unit="questions"):
        try:
            wav = item.wav()
            if not details:
                subject.answer([wav])  # to warm up
            start = time.perf_counter()
            (answer,) = subject.answer([wav])
        except (ValueError, OSError) as error:
            bench.refused[item.id] = str(error)
            continue
        seconds = time.perf_counter() - start
        details.append({
            "id": item.id, "seconds": seconds, "question_seconds": len(wav) / SAMPLE_RATE,
            "answer_seconds": 0.0 if answer.wav is None else len(answer.wav) / SAMPLE_RATE,
            "question_units": subject.units_in(wav),
        })  # fmt: skip
    if not details:
        raise NotMeasured("the model refused every question that was to be timed")
    column = {name: [detail[name] for detail in details] for name in details[0]}
    more = {"seconds_for_an_answer": ratio(column["seconds"], [1] * len(details))}
    if None not in column["question_units"]:
        more["units_per_second"] = ratio(column["question_units"], column["question_seconds"])
    return Outcome(ratio(column["seconds"], column["answer_seconds"]), more, details, "-")


def _by_family(
    metric: Callable, items: list[Item], references: list, given: list, clusters: Sequence[Hashable] | None = None
) -> dict[str, Score]:
    """The metric within each family, named "family/NAME"; none where families are unknown."""
    found = {}
    for name in dict.fromkeys(item.family for item in items if item.family):
        members = [i for i, item in enumerate(items) if item.family == name]
        among = () if clusters is None else ([clusters[i] for i in members],)
        found[f"family/{name}"] = metric([references[i] for i in members], [given[i] for i in members], *among)
    return found


def _by_reading(bench: Bench, items: list[Item], texts: list) -> dict[str, Score]:
    """Exact answers to questions that stand with their answer in the text the LLM read ("read"), and to the others."""
    if not bench.corpus.has("text.txt"):
        return {}
    lines = bench.corpus.read_in_training()
    found = {}
    for name, inside in (("read", True), ("unread", False)):
        among = [i for i, item in enumerate(items) if (item.in_words in lines) is inside]
        found[name] = accuracy([items[i].gold for i in among], [texts[i] for i in among])
    return found


def _detail(item: Item, **found: str | None) -> dict:
    named = {name: getattr(item, name) for name in ("id", "speaker", "family", "question", "gold")}
    return {**named, **found}

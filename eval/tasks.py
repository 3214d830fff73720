"""The tasks: what is asked of the model, and how its answers are scored. Each is a function of a Bench.

Every task runs on the test split, which nothing is ever chosen by.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eval.judge import Judge
from eval.metrics import Score, accuracy, ratio, word_error_rate, words
from eval.results import save_details
from eval.resynthesis import spread
from speechgpt.generate import Sampling
from units.audio import RECEPTIVE_FIELD, SAMPLE_RATE, load_wav, save_wav
from units.manifest import read_manifest
from units.progress import progress

BATCH = 16  # questions answered between two steps of the progress bar
NUM_SENTENCES = 60  # of `tts`
NUM_TIMED = 10  # of `speed`
NUM_KEPT = 5  # answers kept as audio


@dataclass(frozen=True)
class Item:
    """One spoken test question. question, gold: its text and its answer's."""

    id: str
    audio: Path
    question: str
    gold: str
    family: str
    speaker: str


@dataclass(frozen=True)
class Outcome:
    """What a task found. details: one record an example. listener: who heard the speech."""

    score: Score
    more: dict[str, Score]
    details: list[dict]
    listener: str


class Bench:
    """A model, a corpus and a judge; what several tasks need is made once.

    Args:
        model: transcribe_batch, answer_batch, say_batch, chat_batch and answer, as speechgpt.inference.SpeechGPT has;
            and its unit encoder as encoder. Its answers' `take` is None if it does not listen to itself.
        corpus: folder with test.jsonl, test_new_voice.jsonl and chats.jsonl.
        judge: hears spoken answers.
        limit: at most so many examples of each set, evenly spaced; None takes all.
        keep: folder for the spoken answers that are kept.
    """

    def __init__(self, model, corpus: Path, judge: Judge, limit: int | None, keep: Path) -> None:
        self.model, self.corpus, self.judge, self.limit, self.keep = model, corpus, judge, limit, keep

    @cached_property
    def chats(self) -> dict[str, dict]:
        """Question text -> its record in chats.jsonl."""
        lines = (self.corpus / "chats.jsonl").read_text(encoding="utf-8").splitlines()
        return {record["question"]: record for record in map(json.loads, lines)}

    def _items(self, name: str) -> list[Item]:
        found = []
        for u in read_manifest(self.corpus / f"{name}.jsonl"):
            if u.text not in self.chats:
                raise ValueError(
                    f"{u.id} of {name}.jsonl asks {u.text!r}, which chats.jsonl does not have; make the corpus again"
                )
            chat = self.chats[u.text]
            found.append(Item(u.id, u.audio, u.text, chat["answer"], chat["family"], u.speaker or ""))
        return spread(found, self.limit)

    @cached_property
    def test(self) -> list[Item]:
        return self._items("test")

    @cached_property
    def new_voice(self) -> list[Item]:
        return self._items("test_new_voice")

    @cached_property
    def answers(self) -> list:
        """The model's answers to the spoken test questions."""
        return self.in_batches(self.model.answer_batch, [item.audio for item in self.test], "answering")

    @cached_property
    def heard(self) -> list[str]:
        """What the judge hears in those answers."""
        return self.judge.transcribe_all([answer.wav for answer in self.answers])

    @cached_property
    def heard_first(self) -> list[str]:
        """What the judge hears in the answers as they were spoken first, before the model heard itself."""
        heard = list(self.heard)
        again = [i for i, answer in enumerate(self.answers) if answer.take and answer.take.number]
        first = self.in_batches(self.answer_once, [self.test[i].audio for i in again], "first takes")
        for i, text in zip(again, self.judge.transcribe_all([answer.wav for answer in first])):
            heard[i] = text
        return heard

    def answer_once(self, audio: list[Path]) -> list:
        """Answers of a model that is told not to listen to itself."""
        return self.model.answer_batch(audio, Sampling(takes=1))

    def in_batches(self, function: Callable[[list], list], inputs: Sequence, name: str) -> list:
        """Outputs of a batch function, with a progress bar. Raises ValueError if it loses or adds examples."""
        outputs: list = []
        with progress(total=len(inputs), desc=name, unit="examples") as bar:
            for start in range(0, len(inputs), BATCH):
                batch = list(inputs[start : start + BATCH])
                got = function(batch)
                if len(got) != len(batch):
                    raise ValueError(f"{name}: {len(batch)} examples went in, {len(got)} came out")
                outputs += got
                bar.update(len(batch))
        return outputs


def asr(bench: Bench) -> Outcome:
    """The model writes down what it hears."""
    return _transcribing(bench, bench.test)


def _transcribing(bench: Bench, items: list[Item]) -> Outcome:
    transcripts = bench.in_batches(bench.model.transcribe_batch, [item.audio for item in items], "transcribing")
    questions = [item.question for item in items]
    more = {"exact": accuracy(questions, transcripts), **_by_family(word_error_rate, items, questions, transcripts)}
    details = [_detail(item, transcript=transcript) for item, transcript in zip(items, transcripts)]
    return Outcome(word_error_rate(questions, transcripts), more, details, "the model")


def spoken_qa(bench: Bench) -> Outcome:
    """A spoken question, the answer as text: exactly right or not."""
    return _answering(bench.test, bench.answers)


def _answering(items: list[Item], answers: list) -> Outcome:
    gold, texts = [item.gold for item in items], [answer.text for answer in answers]
    questions, transcripts = [item.question for item in items], [answer.transcript for answer in answers]
    understood = [i for i, item in enumerate(items) if words(transcripts[i]) == words(item.question)]
    more = {
        "transcript_wer": word_error_rate(questions, transcripts),
        "transcript_exact": accuracy(questions, transcripts),
        "accuracy_when_understood": accuracy([gold[i] for i in understood], [texts[i] for i in understood]),
        **_by_family(accuracy, items, gold, texts),
    }
    details = [_detail(item, transcript=a.transcript, text=a.text) for item, a in zip(items, answers)]
    return Outcome(accuracy(gold, texts), more, details, "the model")


def answer_speech(bench: Bench) -> Outcome:
    """The spoken answer, heard by the judge: does it say what the model wrote, and what is right?"""
    items, answers, heard = bench.test, bench.answers, bench.heard
    own, gold = [answer.text for answer in answers], [item.gold for item in items]
    speaks = [answer.wav is not None and len(answer.wav) > 0 for answer in answers]
    more = {
        "exact": accuracy(own, heard),
        "first_take": word_error_rate(own, bench.heard_first),
        "wer_against_gold": word_error_rate(gold, heard),
        "exact_against_gold": accuracy(gold, heard),
        "gave_speech": accuracy(["yes"] * len(items), ["yes" if spoke else "no" for spoke in speaks]),
        **_by_family(word_error_rate, items, own, heard),
    }
    details = [
        _detail(item, text=a.text, heard=h, heard_first=f)
        for item, a, h, f in zip(items, answers, heard, bench.heard_first)
    ]
    _keep_answers(bench)
    return Outcome(word_error_rate(own, heard), more, details, bench.judge.name)


def _keep_answers(bench: Bench) -> None:
    """Keep the first question of each of five families, whatever its answer was worth: wavs, and what was heard."""
    first: dict[str, int] = {}
    for i, item in enumerate(bench.test):
        first.setdefault(item.family, i)
    rest = [i for i in range(len(bench.test)) if i not in first.values()]
    records = []
    for i in sorted([*first.values(), *rest][:NUM_KEPT]):
        item, answer = bench.test[i], bench.answers[i]
        save_wav(bench.keep / f"{item.id}.question.wav", load_wav(item.audio))
        if answer.wav is not None and len(answer.wav) >= RECEPTIVE_FIELD:  # shorter ones load_wav refuses
            save_wav(bench.keep / f"{item.id}.answer.wav", answer.wav)
        records.append(_detail(item, transcript=answer.transcript, text=answer.text, heard=bench.heard[i]))
    save_details(bench.keep / "answers.jsonl", records)


def new_voice(bench: Bench) -> Outcome:
    """The test questions from a voice that no training heard: transcribed, and answered."""
    items = bench.new_voice
    hearing = _transcribing(bench, items)
    answers = bench.in_batches(bench.answer_once, [item.audio for item in items], "answering a new voice")
    answering = _answering(items, answers)
    more = {**hearing.more, "spoken_qa": answering.score}
    more |= {f"spoken_qa_{name}": score for name, score in answering.more.items()}
    details = [{**a, "transcript_in_answer": a["transcript"], **h} for a, h in zip(answering.details, hearing.details)]
    return Outcome(hearing.score, more, details, "the model")


def text_qa(bench: Bench) -> Outcome:
    """The test questions as text: what the model knows when nothing has to be heard."""
    items = bench.test
    texts = bench.in_batches(bench.model.chat_batch, [item.question for item in items], "chatting")
    gold = [item.gold for item in items]
    details = [_detail(item, text=text) for item, text in zip(items, texts)]
    return Outcome(accuracy(gold, texts), _by_family(accuracy, items, gold, texts), details, "-")


def tts(bench: Bench) -> Outcome:
    """The model reads test answers aloud; the judge writes down what it hears."""
    limit = min(NUM_SENTENCES, bench.limit or NUM_SENTENCES)
    sentences = spread(list(dict.fromkeys(item.gold for item in bench.test)), limit)
    spoken = bench.in_batches(bench.model.say_batch, sentences, "speaking")
    heard = bench.judge.transcribe_all([answer.wav for answer in spoken])
    more = {"exact": accuracy(sentences, heard)}
    trained = _spoken_in_training(bench.corpus)
    for name, inside in (("trained_sentences", True), ("unheard_sentences", False)):
        pairs = [(s, h) for s, h in zip(sentences, heard) if (s in trained) is inside]
        more[f"wer_{name}"] = word_error_rate([s for s, _ in pairs], [h for _, h in pairs])
    details = [{"text": s, "heard": h} for s, h in zip(sentences, heard)]
    return Outcome(word_error_rate(sentences, heard), more, details, bench.judge.name)


def _spoken_in_training(corpus: Path) -> set[str | None]:
    """Sentences that the answer voice says in the training audio."""
    voice = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["answer_voice"]
    return {u.text for u in read_manifest(corpus / "train.jsonl") if u.speaker == voice}


def originals(bench: Bench) -> Outcome:
    """The judge on the recordings themselves: its own floor, and the hearing that the model is compared with."""
    heard = {"test": _judged(bench, bench.test), "new_voice": _judged(bench, bench.new_voice)}
    unseen = bench.corpus / "answers_unseen.jsonl"
    if unseen.exists():
        answers = [Item(u.id, u.audio, u.text, "", "", u.speaker or "") for u in read_manifest(unseen) if u.text]
        heard["answer_voice"] = _judged(bench, spread(answers, bench.limit))
    scores = {
        name: word_error_rate([d["question"] for d in details], [d["heard"] for d in details])
        for name, details in heard.items()
    }
    details = [detail for found in heard.values() for detail in found]
    return Outcome(scores.pop("test"), {f"wer_{name}": s for name, s in scores.items()}, details, bench.judge.name)


def _judged(bench: Bench, items: list[Item]) -> list[dict]:
    heard = bench.judge.transcribe_all([load_wav(item.audio) for item in items])
    return [_detail(item, heard=h) for item, h in zip(items, heard)]


def speed(bench: Bench) -> Outcome:
    """Questions answered one at a time: seconds of work for a second of spoken answer."""
    items = spread(bench.test, NUM_TIMED)
    bench.model.answer(items[0].audio)  # to warm up
    details = []
    for item in progress(items, desc="timing", unit="questions"):
        start = time.perf_counter()
        answer = bench.model.answer(item.audio)
        seconds = time.perf_counter() - start
        wav = load_wav(item.audio)
        details.append({
            "id": item.id, "seconds": seconds, "question_seconds": len(wav) / SAMPLE_RATE,
            "answer_seconds": 0.0 if answer.wav is None else len(answer.wav) / SAMPLE_RATE,
            "question_units": len(bench.model.encoder.encode(wav).ids),
        })  # fmt: skip
    column = {name: [detail[name] for detail in details] for name in details[0]}
    more = {
        "seconds_for_an_answer": ratio(column["seconds"], [1] * len(items)),
        "units_per_second": ratio(column["question_units"], column["question_seconds"]),
    }
    return Outcome(ratio(column["seconds"], column["answer_seconds"]), more, details, "-")


def _by_family(metric: Callable, items: list[Item], references: list, given: list) -> dict[str, Score]:
    """The metric within each family, named "family/NAME"."""
    families = dict.fromkeys(item.family for item in items)
    inside = {name: [i for i, item in enumerate(items) if item.family == name] for name in families}
    return {
        f"family/{name}": metric([references[i] for i in members], [given[i] for i in members])
        for name, members in inside.items()
    }


def _detail(item: Item, **found: str | None) -> dict:
    named = {name: getattr(item, name) for name in ("id", "speaker", "family", "question", "gold")}
    return {**named, **found}

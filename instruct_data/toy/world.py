"""Speak the toy world: real audio by local speech engines, in several question voices and one answer voice.

    python -m instruct_data.toy --out runs/toy/corpus

Writes into the corpus folder:

- `train.jsonl` (questions, statements, answers), `dev.jsonl`, `test.jsonl` (questions in the training voices)
- `test_new_voice.jsonl`: the test questions in a voice that is not in the training audio
- `answers_unseen.jsonl`: statements in the answer voice that are not in the training audio, to evaluate the vocoder
- `chats.jsonl`: every question with its answer as text, and its split; some of the training questions are only typed
- `text.txt`: what the stand-in text LLM is trained on
- `to_read.txt`: statements that are in no audio and in no other file, for preferences among the model's own speech
- `asr_grammar.jsgf`: the grammar for the evaluation ASR
- `corpus.json`, written last: its presence means complete
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from instruct_data.speech.speak import Line, speak_lines, varied
from instruct_data.toy.grammar import SPLITS, Question, ToyText, asr_grammar, is_question, make_text, vocabulary
from speechgpt.dialogue import INPUT_FOLLOWS
from units.runtime.command import check_range, command
from units.runtime.files.atomic import written_whole
from units.runtime.settings import check_types

SAY_COUNTS = {"train": 2000, "dev": 30, "test": 50}  # distinct questions of the open family, by split
NUM_STATEMENTS = 7000
TYPED_SAY_QUESTIONS = 1000  # training questions of the open family that are only typed
UNSPOKEN_STATEMENTS = 3000  # that nobody speaks: the model reads them aloud for stage 4
READ_SAY_QUESTIONS = 1200  # spoken and typed questions of the open family in the text of the text LLM
READ_STATEMENTS = 1500  # statements in the text of the text LLM
READ_INSTRUCTIONS = 30  # times that it holds each task description: real LLMs know their words too
FAMILY_LINES = 800  # lines of facts of each family in that text, each fact as often as the others of its family
UNSEEN_STATEMENTS = 200  # the last statements: not in the training audio, the vocoder is evaluated on them
TOY_INSTRUCTIONS = Path(__file__).parents[1] / "instructions" / "toy"  # why they are few: docs/decisions/toy-data.md
ANSWER_VOICE = "flite:slt"
NEW_VOICE = "flite:rms"
QUESTION_VOICES = ("flite:awb", "flite:kal16", "espeak:en-us", "espeak:en-us+f2")


@dataclass(frozen=True)
class ToyConfig:
    """How much of the toy world is spoken."""

    fact_renditions: int = 6
    """How often question voices speak a training question of the closed families, on average. A question of a small
    family is spoken up to twice as often, one of a large family less often, down to two thirds."""
    facts: int | None = None
    """Use only this many training questions of the closed families; all if not given."""
    say_questions: int = 2000
    """Training questions of the open family, each in one voice."""
    spoken_statements: int = 2500
    """Statements in question voices, to train recognition: the first ones."""
    answer_voice_statements: int = 3000
    """Statements in the answer voice, to train speaking: the last ones that ask nothing."""
    answer_renditions: int = 8
    """How often the answer voice speaks each short answer (docs/decisions/toy-data.md): those of the closed families
    but the town's, whose form many statements have."""
    seed: int = 0
    """Decides the split, the sentences, and every voice's rate and pitch."""

    def __post_init__(self) -> None:
        check_types(self, "toy.")
        for name in ("fact_renditions", "say_questions", "spoken_statements", "answer_voice_statements", "facts"):
            check_range(f"toy.{name}", getattr(self, name), 0)
        check_range("toy.answer_renditions", self.answer_renditions, 1)
        check_range("toy.seed", self.seed, 0)


def toy_text(seed: int) -> ToyText:
    """The text of the toy world of the demo."""
    return make_text(seed, SAY_COUNTS, NUM_STATEMENTS, TYPED_SAY_QUESTIONS, UNSPOKEN_STATEMENTS)


def training_lines(text: ToyText, config: ToyConfig) -> list[Line]:
    """Every line of the training audio."""
    draw = random.Random(f"train {config.seed}")
    lines: list[Line] = []

    def add_question(sentence: str, voice: str) -> None:
        lines.append(Line(f"q{len(lines):05d}", sentence, voice, varied(voice, draw)))

    def add_answer(sentence: str, stretch: float = 1.0) -> None:
        lines.append(Line(f"a{len(lines):05d}", sentence, ANSWER_VOICE, {"stretch": stretch}))

    statements = text.statements[:-UNSEEN_STATEMENTS]
    closed = [question for question in text.questions["train"] if question.family != "say"][: config.facts]
    open_family = [question for question in text.questions["train"] if question.family == "say"][: config.say_questions]
    family_sizes = Counter(question.family for question in closed)
    for question in closed + open_family:
        size = family_sizes[question.family]  # 0 for the open family
        count = _renditions(config.fact_renditions, len(closed) / len(family_sizes) / size) if size else 1
        for voice in draw.choices(QUESTION_VOICES, k=count):
            add_question(question.question, voice)
    for sentence in statements[: config.spoken_statements]:
        add_question(sentence, draw.choice(QUESTION_VOICES))
    answers = [question.answer for question in closed + open_family]
    for sentence in dict.fromkeys(question.answer for question in closed if question.family != "town"):
        for _ in range(config.answer_renditions - 1):
            add_answer(sentence, round(draw.uniform(0.95, 1.05), 3))
    said = [statement for statement in statements if not is_question(statement)]
    for sentence in dict.fromkeys(answers + said[-config.answer_voice_statements :]):
        add_answer(sentence)  # last, and without a stretch: a chain takes the last rendition of an answer
    return lines


def _renditions(average: int, share: float) -> int:
    """How often a question is spoken whose family has a size of the families' mean divided by `share`."""
    return min(max(round(average * share), round(average * 2 / 3)), 2 * average)


def unseen_statements(text: ToyText) -> list[str]:
    """The last statements, without questions and those that are an answer in the training audio."""
    answers = {question.answer for question in text.questions["train"]}
    return [s for s in text.statements[-UNSEEN_STATEMENTS:] if s not in answers and not is_question(s)]


def question_lines(split: str, questions: list[Question], voices: tuple[str, ...], seed: int) -> list[Line]:
    """Each question once, in the voices by turns."""
    draw = random.Random(f"{split} {seed}")
    return [
        Line(f"{split}-{i:04d}", question.question, voice := voices[i % len(voices)], varied(voice, draw))
        for i, question in enumerate(questions)
    ]


def reading_text(text: ToyText, seed: int) -> list[str]:
    """The text that the stand-in text LLM is trained on.

    It holds every question with its answer, those of dev and test too, statements, and task descriptions.
    """
    from instruct_data.build.cross_modal import read_instructions

    facts = [q for split in SPLITS for q in text.questions[split] if q.family != "say"]
    say_questions = [q for q in text.questions["train"] if q.family == "say"] + text.typed
    say_questions = random.Random(f"say {seed}").sample(say_questions, READ_SAY_QUESTIONS)
    family_sizes = Counter(q.family for q in facts)
    readings = [q for q in facts for _ in range(max(1, round(FAMILY_LINES / family_sizes[q.family])))]
    lines = [f"{q.question}? {q.answer}." for q in readings + say_questions]
    lines += [f"{statement}." for statement in text.statements[:READ_STATEMENTS]]
    described = [line for task in ("asr", "tts") for line in read_instructions(task, TOY_INSTRUCTIONS)]
    lines += READ_INSTRUCTIONS * [f"{line} {INPUT_FOLLOWS}" for line in described]
    random.Random(f"text {seed}").shuffle(lines)
    return lines


@command("instruct-toy", positional=False)
def main(out: Path, toy: ToyConfig = ToyConfig(), workers: int | None = None) -> None:
    """Speak the toy world into a corpus folder.

    Args:
        out: the corpus folder
        toy: how much is spoken
        workers: processes; one for each core if not given
    """
    check_range("workers", workers, 1)
    text = toy_text(toy.seed)
    speak_lines(training_lines(text, toy), out, "train", workers)
    for split in ("dev", "test"):
        speak_lines(question_lines(split, text.questions[split], QUESTION_VOICES, toy.seed), out, split, workers)
    new_voice = question_lines("test_new_voice", text.questions["test"], (NEW_VOICE,), toy.seed)
    speak_lines(new_voice, out, "test_new_voice", workers)
    unseen = [Line(f"unseen-{i:04d}", s, ANSWER_VOICE) for i, s in enumerate(unseen_statements(text))]
    speak_lines(unseen, out, "answers_unseen", workers)
    write_texts(out, text, toy.seed)
    counts = {split: len(text.questions[split]) for split in SPLITS}
    facts = {
        "answer_voice": ANSWER_VOICE,
        "new_voice": NEW_VOICE,
        "questions": counts,
        "words": len(vocabulary()),
        "seed": toy.seed,
    }
    with written_whole(out / "corpus.json") as file:
        json.dump(facts, file, indent=1)
    print(f"toy world in {out}: {counts}")


def write_texts(out: Path, text: ToyText, seed: int) -> None:
    """Write `chats.jsonl`, `text.txt`, `to_read.txt` and `asr_grammar.jsgf`."""
    with written_whole(out / "chats.jsonl") as file:
        for split in SPLITS:
            for q in text.questions[split] + (text.typed if split == "train" else []):
                record = {"question": q.question, "answer": q.answer, "family": q.family, "split": split}
                file.write(json.dumps(record) + "\n")
    with written_whole(out / "text.txt") as file:
        file.writelines(f"{line}\n" for line in reading_text(text, seed))
    with written_whole(out / "to_read.txt") as file:
        file.writelines(f"{statement}\n" for statement in text.unspoken)
    with written_whole(out / "asr_grammar.jsgf") as file:
        file.write(asr_grammar())

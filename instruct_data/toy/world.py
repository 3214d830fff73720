"""The toy world, spoken: real audio by local engines, in several question voices and one answer voice.

    python -m instruct_data.toy --out runs/toy/corpus

Writes `train.jsonl` (questions, statements, answers), `dev.jsonl`, `test.jsonl` (questions in the training voices),
`test_new_voice.jsonl` (the test questions in a voice that training never hears), `answers_unseen.jsonl` (statements in
the answer voice, for judging the vocoder), `chats.jsonl` (every question with its answer as text, and its split),
`text.txt` (what the stand-in text LLM reads), `judge.jsgf` (the grammar for the outside recogniser), and last `corpus.json`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from instruct_data.build.cross_modal import INSTRUCTIONS, read_instructions
from instruct_data.speech.speak import Line, speak_lines, varied
from instruct_data.toy.grammar import SPLITS, Question, ToyText, judge_grammar, make_text, vocabulary
from units.runtime.atomic import written_whole

SAY_COUNTS = {"train": 2600, "dev": 30, "test": 50}  # distinct questions of the open family, by split
NUM_STATEMENTS = 6240
READ_SAYINGS, READ_STATEMENTS = 600, 1500  # what the text LLM reads, beside
FAMILY_LINES = 800  # lines of facts of each family, each fact as often as the others of its family
UNSEEN_STATEMENTS = 240  # the last ones: no training ever hears them, the vocoder is judged on them
# few and short: a small model on a small budget learns to hear and speak, not to paraphrase
TOY_INSTRUCTIONS = INSTRUCTIONS / "toy"
ANSWER_VOICE = "flite:slt"
NEW_VOICE = "flite:rms"
QUESTION_VOICES = ("flite:awb", "flite:kal16", "espeak:en-us", "espeak:en-us+f2")


@dataclass
class ToyConfig:
    """How much is spoken."""

    fact_renditions: int = 2
    """How often each question voice asks each training question of the closed families."""
    facts: int | None = None
    """Use only so many training questions of the closed families; all of them if not given."""
    say_questions: int = 2600
    """Training questions of the open family, each in one voice."""
    spoken_statements: int = 2600
    """Statements spoken by question voices, for hearing practice: the first ones."""
    answer_voice_statements: int = 3000
    """Statements spoken by the answer voice, for speaking practice: the last ones."""
    answer_renditions: int = 6
    """How often the answer voice says each answer of the closed families: short ones, which it has to say often."""
    seed: int = 0
    """Decides the split, the sentences and every voice's rate and pitch."""


def toy_text(seed: int) -> ToyText:
    """The text of the demo's toy world."""
    return make_text(seed, SAY_COUNTS, NUM_STATEMENTS)


def training_lines(text: ToyText, config: ToyConfig) -> list[Line]:
    """Everything that training may hear."""
    draw = random.Random(f"train {config.seed}")
    lines: list[Line] = []
    statements = text.statements[:-UNSEEN_STATEMENTS]

    def asked(sentence: str, voice: str) -> None:
        lines.append(Line(f"q{len(lines):05d}", sentence, voice, varied(voice, draw)))

    def answered(sentence: str, stretch: float = 1.0) -> None:
        lines.append(Line(f"a{len(lines):05d}", sentence, ANSWER_VOICE, {"stretch": stretch}))

    closed = [question for question in text.questions["train"] if question.family != "say"][: config.facts]
    open_ended = [question for question in text.questions["train"] if question.family == "say"][: config.say_questions]
    for question in closed + open_ended:
        once = question.family == "say"
        for voice in [draw.choice(QUESTION_VOICES)] if once else config.fact_renditions * QUESTION_VOICES:
            asked(question.question, voice)
    for sentence in statements[: config.spoken_statements]:
        asked(sentence, draw.choice(QUESTION_VOICES))
    answers = [question.answer for question in closed + open_ended]
    for sentence in dict.fromkeys(question.answer for question in closed):
        for _ in range(config.answer_renditions - 1):
            answered(sentence, round(draw.uniform(0.95, 1.05), 3))
    for sentence in dict.fromkeys(answers + statements[-config.answer_voice_statements :]):
        answered(sentence)  # last: a chain takes the last rendition of an answer
    return lines


def unseen_statements(text: ToyText) -> list[str]:
    """The last statements, without those that somebody says as an answer in training."""
    said = {question.answer for question in text.questions["train"]}
    return [statement for statement in text.statements[-UNSEEN_STATEMENTS:] if statement not in said]


def question_lines(split: str, questions: list[Question], voices: tuple[str, ...], seed: int) -> list[Line]:
    """Each question once, the voices taking turns."""
    draw = random.Random(f"{split} {seed}")
    return [
        Line(f"{split}-{i:04d}", question.question, voice := voices[i % len(voices)], varied(voice, draw))
        for i, question in enumerate(questions)
    ]


def reading_text(text: ToyText, seed: int) -> list[str]:
    """What the stand-in text LLM reads: every question with its answer, the unheard ones too, statements, task descriptions."""
    asked = [q for split in SPLITS for q in text.questions[split]]
    facts = [q for q in asked if q.family != "say"]
    sayings = [q for q in text.questions["train"] if q.family == "say"][:READ_SAYINGS]
    members = Counter(q.family for q in facts)
    readings = [q for q in facts for _ in range(max(1, round(FAMILY_LINES / members[q.family])))]
    lines = [f"{q.question}? {q.answer}." for q in readings + sayings]
    lines += [f"{statement}." for statement in text.statements[:READ_STATEMENTS]]
    lines += [line for task in ("asr", "tts", "repeat") for line in read_instructions(task, TOY_INSTRUCTIONS)]
    random.Random(f"text {seed}").shuffle(lines)
    return lines


def main(out: Path, toy: ToyConfig = ToyConfig(), workers: int | None = None) -> None:
    """Speak the toy world into a folder.

    Args:
        out: the corpus folder
        toy: how much is spoken
        workers: processes, all cores if not given
    """
    text = toy_text(toy.seed)
    speak_lines(training_lines(text, toy), out, "train", workers)
    for split in ("dev", "test"):
        speak_lines(question_lines(split, text.questions[split], QUESTION_VOICES, toy.seed), out, split, workers)
    speak_lines(
        question_lines("test_new_voice", text.questions["test"], (NEW_VOICE,), toy.seed), out, "test_new_voice", workers
    )
    unseen = [Line(f"unseen-{i:04d}", s, ANSWER_VOICE) for i, s in enumerate(unseen_statements(text))]
    speak_lines(unseen, out, "answers_unseen", workers)
    with written_whole(out / "chats.jsonl") as file:
        for split in SPLITS:
            for q in text.questions[split]:
                record = {"question": q.question, "answer": q.answer, "family": q.family, "split": split}
                file.write(json.dumps(record) + "\n")
    with written_whole(out / "text.txt") as file:
        file.writelines(f"{line}\n" for line in reading_text(text, toy.seed))
    with written_whole(out / "judge.jsgf") as file:
        file.write(judge_grammar())
    with written_whole(out / "corpus.json") as file:
        counts = {split: len(text.questions[split]) for split in SPLITS}
        json.dump({"answer_voice": ANSWER_VOICE, "new_voice": NEW_VOICE, "questions": counts,
                   "words": len(vocabulary()), "seed": toy.seed}, file, indent=1)  # fmt: skip
    print(f"toy world in {out}: {counts}")

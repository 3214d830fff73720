"""The toy world as text: a small town, small numbers, a calendar, and sentences about them, in about 190 words.

Every question asks for one *combination*: two numbers, a person and a habit, or a sentence to repeat. The split is by
combination. Combinations of dev and test are in the text that the text LLM is trained on. Their questions are not in
the training audio, nor are their answers, unless a training question has the same one.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
OPPOSITES = (
    "happy sad big small strong weak young old fast slow tall short loud quiet clean dirty brave timid polite rude "
    "beautiful ugly gentle cruel lazy busy modern ancient expensive cheap sleepy awake"
).split()
COLORS = "red blue green yellow purple orange white brown".split()
ANIMALS = "zebra horse monkey rabbit tiger lion parrot camel".split()
VERBS = "jumps sleeps runs swims sings dances climbs laughs".split()
NAMES = "anna peter maria david laura kevin susan robert sophie oliver julia thomas nancy george helen martin".split()
CITIES = "london paris berlin tokyo boston madrid cairo sydney".split()
FOODS = "apples bread cheese pizza rice soup carrots bananas".split()
GAMES = "tennis piano football chess guitar violin hockey drums".split()

CLASSES = {
    "number": NUMBERS,
    "day": DAYS,
    "month": MONTHS,
    "date": DAYS + MONTHS,
    "adjective": OPPOSITES,
    "color": COLORS,
    "animal": ANIMALS,
    "verb": VERBS,
    "name": NAMES,
    "city": CITIES,
    "food": FOODS,
    "game": GAMES,
}

# habit -> (question, answer, the class of its values)
HABITS = {
    "color": ("what color does <name> like", "<name> likes <color>", "color"),
    "food": ("what does <name> eat", "<name> eats <food>", "food"),
    "city": ("where does <name> live", "<name> lives in <city>", "city"),
    "pet": ("what animal does <name> have", "<name> has a <animal>", "animal"),
    "game": ("what does <name> play", "<name> plays <game>", "game"),
}

# Templates of JSGF: <class> stands for a word of the class, (a | b) for a or b.
SCENE = "the <adjective> <color> <animal> <verb>"
TELLING = (
    *(answer for _, answer, _ in HABITS.values()),
    SCENE,
    "<name> saw the <adjective> <animal> in <city>",
    "<name> went to <city> on <day>",
    "<name> bought <food> in <month>",
    "the <animal> <verb> on <day> and <day>",
    "the numbers are <number> <number> <number>",
    "<game> is on <day> in <city>",
)
# Statements that begin as an answer does and go on, or end as one does. The answers alone are few sentences, and a
# model that speaks says after such a beginning what it has said most often, whatever its text is. Months, numbers and
# games are in most of them: in the others these words are rare.
LIKE_ANSWERS = (
    "that makes <number> <food>",
    "that leaves <number> <food>",
    "the numbers are <number> and <number>",
    "it must be <date> in <city>",
    "it must be <month> or <month>",
    "the opposite is the <adjective> <animal>",
    "the opposite is <adjective> or <adjective>",
    "the <animal> is <adjective>",
    "<name> likes <color> <food>",
    "<name> eats <food> in <month>",
    "<name> lives in <city> in <month>",
    "<name> has <number> <food>",
    "<name> has a <animal> in <city>",
    "<name> plays <game> in <month>",
    "<name> plays <game> and <game>",
)
STATEMENTS = (*TELLING, *LIKE_ANSWERS)
ANSWERED = (
    "what is <number> (plus | minus) <number>",
    "which is (bigger | smaller) <number> or <number>",
    "what (day | month) comes (after | before) <date>",
    "what is the opposite of <adjective>",
    *(question for question, _, _ in HABITS.values()),
)
# Questions without an answer: the words that the families of facts ask for, in other company. With the facts alone, a
# model that hears `what is the opposite of` knows which words may follow, and does not listen.
UNANSWERED = (
    ANSWERED[0],  # with a number larger than those of the facts
    ANSWERED[1],
    "what (day | month) comes (near <date> | (after | before) (<food> | the last <date>)) in <city>",
    "what (animal | game) comes (after | before) <date> in <city>",
    "what is the opposite of (<color> | <verb>) (<animal> | <food>)",
    "what is the opposite of the <adjective> (<animal> | <food>)",
    "what (animal | game) in <city> is the opposite of <adjective>",
    "where does <name> see the opposite of <adjective>",
    "what is the color of <adjective> (<animal> | <food>)",
    "what is the <adjective> (<animal> | <food>)",
    "(what color does <name> see in <city> | what does <name> see in <city> | where does <name> (walk | eat | play)"
    " on <day> | what animal does <name> see on <day> | what does <name> buy on <day>)",
)
CLOSED_ANSWERS = (
    "that (makes | leaves) <number>",
    "<number> is (bigger | smaller)",
    "it must be <date>",
    "the opposite is <adjective>",
)
FAMILIES = ("sum", "difference", "compare", "calendar", "opposite", "town", "say")
SPLITS = ("train", "dev", "test")
TOWN_SEED = 7  # the facts of the town are the same in every toy world


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    family: one of FAMILIES. key: the combination that it asks for.
    """

    question: str
    answer: str
    family: str
    key: tuple[str, ...]


@dataclass(frozen=True)
class ToyText:
    """All text of one toy world.

    questions: by split. statements: what recognition and speaking are trained on. typed: training questions of the
    family `say` that are only typed. unspoken: statements that nobody speaks.
    """

    questions: dict[str, list[Question]]
    statements: list[str]
    typed: list[Question]
    unspoken: list[str]


def facts() -> list[Question]:
    """Every question of the closed families (all families except `say`), in a fixed order."""
    return [*_sums(), *_comparisons(), *_calendar(), *_opposites(), *_town()]


def _sums() -> list[Question]:
    found = []
    for a, b in itertools.product(range(1, 11), repeat=2):
        x, y = NUMBERS[a - 1], NUMBERS[b - 1]
        found.append(Question(f"what is {x} plus {y}", f"that makes {NUMBERS[a + b - 1]}", "sum", (x, y)))
        if a > b:
            found.append(Question(f"what is {x} minus {y}", f"that leaves {NUMBERS[a - b - 1]}", "difference", (x, y)))
    return found


def _comparisons() -> list[Question]:
    found = []
    for a, b in itertools.permutations(range(1, 13), 2):
        x, y = NUMBERS[a - 1], NUMBERS[b - 1]
        for word, choose in (("bigger", max), ("smaller", min)):
            answer = f"{NUMBERS[choose(a, b) - 1]} is {word}"
            found.append(Question(f"which is {word} {x} or {y}", answer, "compare", tuple(sorted((x, y)))))
    return found


def _calendar() -> list[Question]:
    found = []
    for noun, names in (("day", DAYS), ("month", MONTHS)):
        for i, name in enumerate(names):
            for relation, step in (("after", 1), ("before", -1)):
                other = names[(i + step) % len(names)]
                found.append(
                    Question(
                        f"what {noun} comes {relation} {name}", f"it must be {other}", "calendar", (relation, name)
                    )
                )
    return found


def _opposites() -> list[Question]:
    pairs = list(zip(OPPOSITES[::2], OPPOSITES[1::2]))
    both = pairs + [(b, a) for a, b in pairs]
    return [Question(f"what is the opposite of {a}", f"the opposite is {b}", "opposite", (a,)) for a, b in both]


def _town() -> list[Question]:
    draw = random.Random(TOWN_SEED)
    found = []
    for habit, (question, answer, kind) in HABITS.items():
        deal = [value for value in CLASSES[kind] for _ in range(len(NAMES) // len(CLASSES[kind]))]
        draw.shuffle(deal)
        for name, value in zip(NAMES, deal):
            said = answer.replace("<name>", name).replace(f"<{kind}>", value)
            found.append(Question(question.replace("<name>", name), said, "town", (name, habit)))
    return found


def say(sentence: str) -> Question:
    """A question of the open family: `please say X`, answered by X."""
    return Question(f"please say {sentence}", sentence, "say", (sentence,))


def make_text(
    seed: int, say_counts: dict[str, int], num_statements: int, num_typed: int = 0, num_unspoken: int = 0
) -> ToyText:
    """Draw one toy world.

    Args:
        seed: decides the split and every draw; the facts of the town never change.
        say_counts: number of distinct `say` questions by split.
        num_statements: number of distinct statements.
        num_typed: number of distinct `say` questions besides, of every kind of statement equally often.
        num_unspoken: number of distinct statements besides, that ask nothing.
    """
    draw = random.Random(seed)
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for family in FAMILIES[:-1]:
        members = [fact for fact in facts() if fact.family == family]
        split_of = _deal_keys(sorted({fact.key for fact in members}), draw)
        for fact in members:
            questions[split_of[fact.key]].append(fact)
    answered = {q.answer for q in questions["train"]}
    held_out = [q for split in ("dev", "test") for q in questions[split] if q.answer not in answered]
    repeated: list[str] = []
    for split in SPLITS:
        sentences = _distinct(say_counts[split], partial(_said, split, draw), held_out, draw, repeated)
        repeated += sentences
        questions[split] += map(say, sentences)
    held_out += [q for split in ("dev", "test") for q in questions[split] if q.family == "say"]
    statements = _distinct(num_statements, lambda: draw.choice(draw.choice((STATEMENTS, UNANSWERED))), held_out, draw)
    draw.shuffle(statements)  # there are few of the shorter ones, which were found first
    taken = {*statements, *repeated}
    unspoken = _distinct(num_unspoken, lambda: draw.choice(STATEMENTS), held_out, draw, taken)
    typed = _distinct(num_typed, lambda: draw.choice(STATEMENTS), held_out, draw, {*taken, *unspoken})
    return ToyText(questions, statements, [say(sentence) for sentence in typed], unspoken)


def _said(split: str, draw: random.Random) -> str:
    """The template of what is to be said: in training every second one is a scene, in dev and test two of three.

    The other kinds differ more, so training needs more of them.
    """
    scenes = [SCENE] if split == "train" else [SCENE, SCENE]
    return draw.choice([*scenes, draw.choice(TELLING)])


def _distinct(
    count: int,
    draw_template: Callable[[], str],
    held_out: list[Question],
    draw: random.Random,
    taken: Collection[str] = (),
) -> list[str]:
    """Distinct sentences of drawn templates, besides those that are taken.

    None is a question that has an answer, or its answer, and none begins with the answer to a held-out question. For a
    held-out question about a person there is none with another value either: nothing is said of the person and the
    habit.
    """
    known = {text for fact in facts() for text in (fact.question, fact.answer)} | {*taken}
    starts = tuple(f"{q.answer.rsplit(' ', 1)[0] if q.family == 'town' else q.answer} " for q in held_out)
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = _filled(draw_template(), draw)
        if sentence not in known and not f"{sentence} ".startswith(starts):
            found[sentence] = None
    return list(found)


def _filled(template: str, draw: random.Random) -> str:
    """A sentence of a template."""
    while choice := re.search(r"\(([^()]*)\)", template):
        template = template[: choice.start()] + draw.choice(choice[1].split(" | ")) + template[choice.end() :]
    return re.sub(r"<(\w+)>", lambda found: draw.choice(CLASSES[found[1]]), template)


def _deal_keys(keys: list[tuple[str, ...]], draw: random.Random) -> dict[tuple[str, ...], str]:
    """Deal combinations to splits: a fifth to test and a twelfth to dev, at least one each, the others to train."""
    keys = list(keys)
    draw.shuffle(keys)
    num_test, num_dev = max(1, len(keys) // 5), max(1, len(keys) // 12)
    splits = ["test"] * num_test + ["dev"] * num_dev + ["train"] * (len(keys) - num_test - num_dev)
    return dict(zip(keys, splits))


def is_question(statement: str) -> bool:
    """Whether a statement asks something, as those without an answer do."""
    return statement.split()[0] in ("what", "which", "where")


def vocabulary() -> list[str]:
    """Every word of the toy world, sorted."""
    text = make_text(0, {"train": 3000, "dev": 0, "test": 0}, 3000)
    sentences = text.statements + [s for qs in text.questions.values() for q in qs for s in (q.question, q.answer)]
    return sorted({word for sentence in sentences for word in sentence.split()})


def asr_grammar() -> str:
    """The sentences of the toy world as a JSGF grammar for the evaluation ASR.

    It holds every template but those of questions without an answer, which are for training: the evaluation ASR hears
    test questions and replies. Each slot of a template takes any word of its class.
    """
    rules = [f"<{name}> = {' | '.join(words)};" for name, words in CLASSES.items()]
    templates = [*ANSWERED, *CLOSED_ANSWERS, f"[please say] ({' | '.join(STATEMENTS)})"]
    return "\n".join(["#JSGF V1.0;", "grammar toy;", *rules, f"public <sentence> = {' | '.join(templates)};", ""])

"""The toy world as text: a small town, small numbers, a calendar, and sentences about them, in about 150 words.

Every question asks for one *combination*: two numbers, a person and a habit, or four words to repeat. The split is by
combination. Combinations of dev and test are in the text that the text LLM is trained on, but neither their questions
nor their answers are in the training audio.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

NUMBERS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
MONTHS = "january february march april may june july august september october november december".split()
OPPOSITES = "happy sad big small hot cold young old fast slow tall short loud quiet clean dirty".split()
COLORS = "red blue green yellow purple orange white black".split()
ANIMALS = "dog horse monkey rabbit tiger lion cow camel".split()
VERBS = "jumps sleeps runs swims sings dances walks laughs".split()
NAMES = "anna peter maria david laura kevin susan robert sophie oliver julia thomas nancy george helen martin".split()
CITIES = "london paris berlin tokyo boston madrid cairo sydney".split()
FOODS = "apples bread cheese pizza rice soup carrots bananas".split()
GAMES = "tennis piano football chess guitar violin hockey drums".split()

# habit -> (question, answer, possible values)
HABITS = {
    "color": ("what color does {name} like", "{name} likes {value}", COLORS),
    "food": ("what does {name} eat", "{name} eats {value}", FOODS),
    "city": ("where does {name} live", "{name} lives in {value}", CITIES),
    "pet": ("what animal does {name} have", "{name} has a {value}", ANIMALS),
    "game": ("what does {name} play", "{name} plays {value}", GAMES),
}
# Dates that the calendar has no answer to.
OTHER_DATES = [f"near {name}" for name in DAYS + MONTHS] + [
    f"{r} {food}" for r in ("after", "before") for food in FOODS
]
# Questions about people that the town has no answer to.
OTHER_HABITS = (
    "what color does {name} see in {city}",
    "what does {name} see in {city}",
    "where does {name} walk on {day}",
    "what animal does {name} see on {day}",
    "what does {name} buy on {day}",
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
    """All text of one toy world: questions by split, and statements that recognition and speaking are trained on."""

    questions: dict[str, list[Question]]
    statements: list[str]


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
    for habit, (question, answer, values) in HABITS.items():
        deal = [value for value in values for _ in range(len(NAMES) // len(values))]
        draw.shuffle(deal)
        for name, value in zip(NAMES, deal):
            found.append(
                Question(question.format(name=name), answer.format(name=name, value=value), "town", (name, habit))
            )
    return found


def say(adjective: str, color: str, animal: str, verb: str) -> Question:
    """A question of the open family: `please say X`, answered by X, where X holds four words."""
    sentence = f"the {adjective} {color} {animal} {verb}"
    return Question(f"please say {sentence}", sentence, "say", (adjective, color, animal, verb))


def make_text(seed: int, say_counts: dict[str, int], num_statements: int) -> ToyText:
    """Draw one toy world.

    Args:
        seed: decides the split and every draw; the facts of the town never change.
        say_counts: number of distinct `say` questions by split.
        num_statements: number of distinct statements.
    """
    draw = random.Random(seed)
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for family in FAMILIES[:-1]:
        members = [fact for fact in facts() if fact.family == family]
        split_of = _deal_keys(sorted({fact.key for fact in members}), draw)
        for fact in members:
            questions[split_of[fact.key]].append(fact)
    combinations = list(itertools.product(OPPOSITES, COLORS, ANIMALS, VERBS))
    drawn = iter(draw.sample(combinations, sum(say_counts.values())))
    for split in SPLITS:
        questions[split] += [say(*next(drawn)) for _ in range(say_counts[split])]
    held_out = {q.key for split in ("dev", "test") for q in questions[split]}
    return ToyText(questions, _statements(num_statements, held_out, draw))


def _deal_keys(keys: list[tuple[str, ...]], draw: random.Random) -> dict[tuple[str, ...], str]:
    """Deal combinations to splits: a fifth to test and a twelfth to dev, at least one each, the others to train."""
    keys = list(keys)
    draw.shuffle(keys)
    num_test, num_dev = max(1, len(keys) // 5), max(1, len(keys) // 12)
    splits = ["test"] * num_test + ["dev"] * num_dev + ["train"] * (len(keys) - num_test - num_dev)
    return dict(zip(keys, splits))


def _statements(count: int, held_out: set[tuple[str, ...]], draw: random.Random) -> list[str]:
    """Distinct sentences over the whole vocabulary, without combinations of dev and test."""
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = _statement(held_out, draw)
        if sentence:
            found[sentence] = None
    return list(found)


def _statement(held_out: set[tuple[str, ...]], draw: random.Random) -> str | None:
    """One sentence, or None if the draw gave a combination of dev or test."""
    pick = draw.choice
    name, color, animal, city, day = pick(NAMES), pick(COLORS), pick(ANIMALS), pick(CITIES), pick(DAYS)
    kind = draw.randrange(14)
    if kind == 0:
        habit = pick(list(HABITS))
        if (name, habit) in held_out:
            return None
        return HABITS[habit][1].format(name=name, value=pick(HABITS[habit][2]))
    if kind == 1:
        words = (pick(OPPOSITES), color, animal, pick(VERBS))
        return None if words in held_out else say(*words).answer
    return {
        2: f"{name} saw the {pick(OPPOSITES)} {animal} in {city}",
        3: f"{name} went to {city} on {day}",
        4: f"{name} bought {pick(FOODS)} in {pick(MONTHS)}",
        5: f"the {animal} {pick(VERBS)} on {day} and {pick(DAYS)}",
        6: f"the numbers are {pick(NUMBERS)} {pick(NUMBERS)} {pick(NUMBERS)}",
        7: f"{pick(GAMES)} is on {day} in {city}",
        8: _with_large_number(f"what is {{}} {pick(('plus', 'minus'))} {{}}", 10, draw),
        9: _with_large_number(f"which is {pick(('bigger', 'smaller'))} {{}} or {{}}", 12, draw),
        # Questions without an answer: the words that the families of facts ask for, in other company. With the facts
        # alone, a model that hears `what is the opposite of` knows which words may follow, and does not listen.
        10: f"what {pick(('day', 'month'))} comes {pick(OTHER_DATES)} in {city}",
        11: f"what is the opposite of {pick(COLORS + VERBS)} {pick(ANIMALS + FOODS)}",
        12: f"what is the {pick(OPPOSITES)} {pick(ANIMALS + FOODS)}",
        13: pick(OTHER_HABITS).format(name=name, city=city, day=day),
    }[kind]


def _with_large_number(template: str, largest: int, draw: random.Random) -> str:
    """A template filled with two numbers, one of them larger than any in a question, so that no answer exists."""
    numbers = [draw.choice(NUMBERS[largest:]), draw.choice(NUMBERS)]
    draw.shuffle(numbers)
    return template.format(*numbers)


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

    It holds every template, and each slot of a template takes any word of its class.
    """
    classes = {
        "number": NUMBERS,
        "day": DAYS,
        "month": MONTHS,
        "adjective": OPPOSITES,
        "color": COLORS,
        "animal": ANIMALS,
        "verb": VERBS,
        "name": NAMES,
        "city": CITIES,
        "food": FOODS,
        "game": GAMES,
    }
    rules = [f"<{name}> = {' | '.join(words)};" for name, words in classes.items()]
    sentence = f"public <sentence> = {' | '.join(_templates())};"
    return "\n".join(["#JSGF V1.0;", "grammar toy;", *rules, sentence, ""])


def _templates() -> list[str]:
    """Every sentence of the toy world, with word classes in place of words."""
    scene = "the <adjective> <color> <animal> <verb>"
    values = {"color": "<color>", "food": "<food>", "city": "<city>", "pet": "<animal>", "game": "<game>"}
    return [
        "what is <number> (plus | minus) <number>",
        "which is (bigger | smaller) <number> or <number>",
        "what (day | month) comes (after | before) (<day> | <month>)",
        "what is the opposite of <adjective>",
        *(question.format(name="<name>") for question, _, _ in HABITS.values()),
        f"please say {scene}",
        "that (makes | leaves) <number>",
        "<number> is (bigger | smaller)",
        "it must be (<day> | <month>)",
        "the opposite is <adjective>",
        *(HABITS[habit][1].format(name="<name>", value=value) for habit, value in values.items()),
        scene,
        "<name> saw the <adjective> <animal> in <city>",
        "<name> went to <city> on <day>",
        "<name> bought <food> in <month>",
        "the <animal> <verb> on <day> and <day>",
        "the numbers are <number> <number> <number>",
        "<game> is on <day> in <city>",
        "what (day | month) comes (near (<day> | <month>) | (after | before) <food>) in <city>",
        "what is the opposite of (<color> | <verb>) (<animal> | <food>)",
        "what is the <adjective> (<animal> | <food>)",
        *(question.format(name="<name>", city="<city>", day="<day>") for question in OTHER_HABITS),
    ]

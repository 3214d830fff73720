"""The toy world in text: a small town, small numbers, a calendar, and sentences about them, in about 150 words.

Every question asks for one *combination* (two numbers, a person and a habit, four words to say back). The split is by
combination: those of dev and test are in the text that the text LLM learns from, but nobody ever speaks them, nor
their answers, in the training audio.
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
NAMES = "anna peter maria david laura kevin susan robert emma oliver julia thomas nancy george helen martin".split()
CITIES = "london paris berlin tokyo boston madrid cairo sydney".split()
FOODS = "apples bread cheese pizza rice soup carrots bananas".split()
GAMES = "tennis piano football chess guitar violin hockey drums".split()

# habit -> (question, answer, what it may be)
HABITS = {
    "color": ("what color does {name} like", "{name} likes {value}", COLORS),
    "food": ("what does {name} eat", "{name} eats {value}", FOODS),
    "city": ("where does {name} live", "{name} lives in {value}", CITIES),
    "pet": ("what animal does {name} have", "{name} has a {value}", ANIMALS),
    "game": ("what does {name} play", "{name} plays {value}", GAMES),
}
FAMILIES = ("sum", "difference", "compare", "calendar", "opposite", "town", "say")
SPLITS = ("train", "dev", "test")
TOWN_SEED = 7  # who lives where is part of the world, not of the sample


@dataclass(frozen=True)
class Question:
    """A question, its answer, the combination it asks for, and the family it belongs to."""

    question: str
    answer: str
    family: str
    key: tuple[str, ...]


@dataclass(frozen=True)
class ToyText:
    """All text of one toy world: questions by split, and statements for hearing and speaking practice."""

    questions: dict[str, list[Question]]
    statements: list[str]


def facts() -> list[Question]:
    """Every question of the closed families (all but `say`), in a fixed order."""
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
    """`please say X` and X, four open words."""
    sentence = f"the {adjective} {color} {animal} {verb}"
    return Question(f"please say {sentence}", sentence, "say", (adjective, color, animal, verb))


def make_text(seed: int, say_counts: dict[str, int], num_statements: int) -> ToyText:
    """Draw one toy world.

    Args:
        seed: decides the split and every draw; the town itself never changes.
        say_counts: distinct `say` questions for each of train, dev, test.
        num_statements: distinct statements for hearing and speaking practice.
    """
    draw = random.Random(seed)
    questions: dict[str, list[Question]] = {split: [] for split in SPLITS}
    for family in FAMILIES[:-1]:
        members = [fact for fact in facts() if fact.family == family]
        side = _deal_keys(sorted({fact.key for fact in members}), draw)
        for fact in members:
            questions[side[fact.key]].append(fact)
    combinations = list(itertools.product(OPPOSITES, COLORS, ANIMALS, VERBS))
    drawn = iter(draw.sample(combinations, sum(say_counts.values())))
    for split in SPLITS:
        questions[split] += [say(*next(drawn)) for _ in range(say_counts[split])]
    unheard = {q.key for split in ("dev", "test") for q in questions[split]}
    return ToyText(questions, _statements(num_statements, unheard, draw))


def _deal_keys(keys: list[tuple[str, ...]], draw: random.Random) -> dict[tuple[str, ...], str]:
    """A fifth of the combinations to test, a twelfth to dev, at least one each."""
    keys = list(keys)
    draw.shuffle(keys)
    num_test, num_dev = max(1, len(keys) // 5), max(1, len(keys) // 12)
    splits = ["test"] * num_test + ["dev"] * num_dev + ["train"] * (len(keys) - num_test - num_dev)
    return dict(zip(keys, splits))


def _statements(count: int, unheard: set[tuple[str, ...]], draw: random.Random) -> list[str]:
    """Distinct sentences over the whole vocabulary that hold no unheard combination."""
    found: dict[str, None] = {}
    while len(found) < count:
        sentence = _statement(unheard, draw)
        if sentence:
            found[sentence] = None
    return list(found)


def _statement(unheard: set[tuple[str, ...]], draw: random.Random) -> str | None:
    """One sentence, or None when the draw hit an unheard combination."""
    pick = draw.choice
    name, color, animal, city, day = pick(NAMES), pick(COLORS), pick(ANIMALS), pick(CITIES), pick(DAYS)
    kind = draw.randrange(10)
    if kind == 0:
        habit = pick(list(HABITS))
        if (name, habit) in unheard:
            return None
        return HABITS[habit][1].format(name=name, value=pick(HABITS[habit][2]))
    if kind == 1:
        words = (pick(OPPOSITES), color, animal, pick(VERBS))
        return None if words in unheard else say(*words).answer
    return {
        2: f"{name} saw the {pick(OPPOSITES)} {animal} in {city}",
        3: f"{name} went to {city} on {day}",
        4: f"{name} bought {pick(FOODS)} in {pick(MONTHS)}",
        5: f"the {animal} {pick(VERBS)} on {day} and {pick(DAYS)}",
        6: f"the numbers are {pick(NUMBERS)} {pick(NUMBERS)} {pick(NUMBERS)}",
        7: f"{pick(GAMES)} is on {day} in {city}",
        8: _beyond(f"what is {{}} {pick(('plus', 'minus'))} {{}}", 10, draw),
        9: _beyond(f"which is {pick(('bigger', 'smaller'))} {{}} or {{}}", 12, draw),
    }[kind]


def _beyond(template: str, largest: int, draw: random.Random) -> str:
    """Two numbers, one of them above the largest that questions ask for: hearing practice without an answer."""
    numbers = [draw.choice(NUMBERS[largest:]), draw.choice(NUMBERS)]
    draw.shuffle(numbers)
    return template.format(*numbers)


def vocabulary() -> list[str]:
    """Every word of the toy world, sorted."""
    text = make_text(0, {"train": 3000, "dev": 0, "test": 0}, 3000)
    sentences = text.statements + [s for qs in text.questions.values() for q in qs for s in (q.question, q.answer)]
    return sorted({word for sentence in sentences for word in sentence.split()})


def judge_grammar() -> str:
    """The sentences of this world as a JSGF grammar for a recogniser: every template, every slot open to its whole word class."""
    classes = {
        "number": NUMBERS, "day": DAYS, "month": MONTHS, "adjective": OPPOSITES, "color": COLORS, "animal": ANIMALS,
        "verb": VERBS, "name": NAMES, "city": CITIES, "food": FOODS, "game": GAMES,
    }  # fmt: skip
    scene = "the <adjective> <color> <animal> <verb>"
    values = {"color": "<color>", "food": "<food>", "city": "<city>", "pet": "<animal>", "game": "<game>"}
    templates = [
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
    ]
    lines = ["#JSGF V1.0;", "grammar toy;"]
    lines += [f"<{name}> = {' | '.join(words)};" for name, words in classes.items()]
    return "\n".join([*lines, f"public <sentence> = {' | '.join(templates)};", ""])

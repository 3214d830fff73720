"""Suites of spoken pairs of the toy world, in the layout of the published ones, spoken by local voices.

    instruct-eval-sets runs/eval_sets
    eval-run --model runs/toy/model --corpus runs/eval_sets --out runs/toy/pairs

- `lexical/dev`: words and non-words, as sWUGGY. A non-word differs from its word in one or two letters and is spoken
  as it is spelled. Frequency is that of the toy's training text; common English words that the toy never says are in
  the band oov.
- `syntactic/dev`: grammatical and ungrammatical sentences, as sBLIMP: agreement of verb, of auxiliary, and word order.
- `sStoryCloze`, `tStoryCloze`: a question with its right answer, and with another one: of the same family (spoken), or
  of another family (topic).

They make the suites measurable at once, with no download. Their figures say nothing about the published suites: a
hundred words by three synthesisers are not LibriSpeech's vocabulary by four neural voices.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.speech.speak import Line
from instruct_data.toy.grammar import (
    ANIMALS,
    CITIES,
    COLORS,
    FOODS,
    GAMES,
    HABITS,
    NAMES,
    OPPOSITES,
    VERBS,
    facts,
    vocabulary,
)
from units.runtime.command import check_range, command
from units.runtime.files.atomic import written_whole

VOICES = ("flite:awb", "espeak:en-us", "flite:slt")
VOWELS, CONSONANTS = "aeiou", "bdfgklmnprstvz"
# Common English words that are not in the toy world, of the lengths of its words.
OTHER_WORDS = (
    "table window garden river mountain kitchen doctor paper letter winter summer market bottle button candle castle "
    "corner dinner engine finger forest hammer island jacket ladder manner minute mirror number pencil pocket poison "
    "powder rocket saddle silver sister spider student teacher thunder ticket tunnel turkey valley velvet village "
    "wagon weather whisper wonder yesterday"
).split()
SHORTEST = 4  # letters of a word: of shorter ones too many neighbours are words
GOLD = "gold.csv"
BATCH = 32  # lines of one job


@dataclass(frozen=True)
class EvalSetConfig:
    """How large the suites are."""

    words: int = 100
    """pairs of words; half as many again of words that the toy never says"""
    sentences: int = 120
    """pairs of sentences"""
    stories: int = 60
    """pairs of stories, of each kind"""
    seed: int = 0
    """of every draw"""

    def __post_init__(self) -> None:
        for name in ("words", "sentences", "stories"):
            check_range(name, getattr(self, name), 1)


@dataclass(frozen=True)
class Spoken:
    """One wav of a suite: its stem, its text, and its row of gold.csv."""

    stem: str
    text: str
    voice: str
    row: dict[str, object]


def words_and_non_words(count: int, frequencies: Counter[str], seed: int) -> list[tuple[str, str]]:
    """Pairs of a word of the toy and a non-word, and half as many of words that the toy never says.

    Args:
        frequencies: of the toy's words.
    """
    draw = random.Random(f"words {seed}")
    own = [word for word in sorted(frequencies) if len(word) >= SHORTEST]
    other = [word for word in OTHER_WORDS if word not in frequencies]
    known = {*frequencies, *OTHER_WORDS, *vocabulary()}
    chosen = draw.sample(own, min(count, len(own))) + draw.sample(other, min(count // 2, len(other)))
    pairs = []
    for word in chosen:
        wrong = non_word(word, known, draw)
        known.add(wrong)
        pairs.append((word, wrong))
    return pairs


def non_word(word: str, known: set[str], draw: random.Random) -> str:
    """A word with one letter replaced, or two if all of those are known: a vowel by a vowel, a consonant by one."""
    places = [i for i, letter in enumerate(word) if letter in VOWELS + CONSONANTS and i > 0]
    for changes in (1, 2, 2, 2, 2):
        for _ in range(20):
            letters = list(word)
            for place in draw.sample(places, changes):
                same = VOWELS if letters[place] in VOWELS else CONSONANTS
                letters[place] = draw.choice([letter for letter in same if letter != letters[place]])
            if (made := "".join(letters)) not in known:
                return made
    raise ValueError(f"no non-word beside {word!r} was found")


def sentence_pairs(count: int, seed: int) -> list[tuple[str, str, str, str]]:
    """(type, subtype, right, wrong), as many of each type as of the others, no pair twice."""
    draw = random.Random(f"sentences {seed}")
    found: dict[tuple[str, str, str, str], None] = {}
    makers = (_verb, _plural_verb, _auxiliary, _habit_verb, _order, _number_order)
    while len(found) < count:
        found[makers[len(found) % len(makers)](draw)] = None
    return list(found)


def _verb(draw: random.Random) -> tuple[str, str, str, str]:
    subject, verb = f"the {draw.choice(OPPOSITES)} {draw.choice(ANIMALS)}", draw.choice(VERBS)
    return "verb_agreement", "animal", f"{subject} {verb}", f"{subject} {_bare(verb)}"


def _plural_verb(draw: random.Random) -> tuple[str, str, str, str]:
    subject = f"{draw.choice(NAMES)} and {draw.choice(NAMES)}"
    verb, place = draw.choice(("live", "play", "sing")), draw.choice(CITIES)
    return "verb_agreement", "two_names", f"{subject} {verb} in {place}", f"{subject} {verb}s in {place}"


def _auxiliary(draw: random.Random) -> tuple[str, str, str, str]:
    question = HABITS[draw.choice(sorted(HABITS))][0].replace("<name>", draw.choice(NAMES))
    return "auxiliary_agreement", "does", question, question.replace(" does ", " do ")


def _habit_verb(draw: random.Random) -> tuple[str, str, str, str]:
    verb, values = draw.choice((("likes", COLORS), ("eats", FOODS), ("plays", GAMES), ("has a", ANIMALS)))
    name, value = draw.choice(NAMES), draw.choice(values)
    wrong = {"has a": "have a"}.get(verb, verb.removesuffix("s"))
    return "auxiliary_agreement", "habit", f"{name} {verb} {value}", f"{name} {wrong} {value}"


def _order(draw: random.Random) -> tuple[str, str, str, str]:
    adjective, color, animal, verb = (draw.choice(words) for words in (OPPOSITES, COLORS, ANIMALS, VERBS))
    right = f"the {adjective} {color} {animal} {verb}"
    return "word_order", "noun_phrase", right, f"the {animal} {color} {adjective} {verb}"


def _number_order(draw: random.Random) -> tuple[str, str, str, str]:
    name, city = draw.choice(NAMES), draw.choice(CITIES)
    return "word_order", "preposition", f"{name} lives in {city}", f"{name} in lives {city}"


def _bare(verb: str) -> str:
    """The plural of a verb of the toy: `dances` -> `dance`, `laughs` -> `laugh`."""
    return verb.removesuffix("s")


def story_pairs(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(question with the right answer, with one of the same family, with one of another family)."""
    draw = random.Random(f"stories {seed}")
    members = facts()
    for question in draw.sample(members, min(count, len(members))):
        near = [one for one in members if one.family == question.family and one.answer != question.answer]
        far = [one for one in members if one.family != question.family and one.answer != question.answer]
        right, same, other = (
            f"{question.question}? {one.answer}." for one in (question, draw.choice(near), draw.choice(far))
        )
        yield right, same, other


def lexical_lines(config: EvalSetConfig, frequencies: Counter[str]) -> list[Spoken]:
    """Every wav of `lexical/dev`, with its row of gold.csv."""
    lines = []
    for id, pair in enumerate(words_and_non_words(config.words, frequencies, config.seed), 1):
        for voice in VOICES:
            for text, correct in zip(pair, (1, 0)):
                row = {
                    "id": id,
                    "voice": voice,
                    "frequency": frequencies[pair[0]] if correct else "",
                    "word": text,
                    "phones": " ".join(text),
                    "length": len(pair[0]),
                    "correct": correct,
                }
                lines.append(Spoken(f"{id:04d}_{_plain(voice)}_{correct}", text, voice, row))
    return lines


def syntactic_lines(config: EvalSetConfig) -> list[Spoken]:
    """Every wav of `syntactic/dev`, with its row of gold.csv."""
    lines = []
    for id, (type, subtype, *pair) in enumerate(sentence_pairs(config.sentences, config.seed), 1):
        for voice in VOICES:
            for text, correct in zip(pair, (1, 0)):
                row = {"id": id, "voice": voice, "type": type, "subtype": subtype}
                row |= {"transcription": text, "correct": correct}
                lines.append(Spoken(f"{id:04d}_{_plain(voice)}_{correct}", text, voice, row))
    return lines


def story_lines(config: EvalSetConfig, topic: bool) -> list[Spoken]:
    """Every wav of `sStoryCloze`, or of `tStoryCloze`."""
    lines = []
    for number, (right, near, far) in enumerate(story_pairs(config.stories, config.seed)):
        voice = VOICES[number % len(VOICES)]
        for text, name in ((right, "a_correct"), (far if topic else near, "b_incorrect")):
            lines.append(Spoken(f"{number}_{name}", text, voice, {}))
    return lines


def _plain(voice: str) -> str:
    return voice.replace(":", "-").replace("+", "-")


@command("instruct-eval-sets")
def main(out: Path, sizes: EvalSetConfig = EvalSetConfig(), workers: int | None = None) -> None:
    """Make suites of spoken pairs of the toy world, in ZeroSpeech's and StoryCloze's layout.

    What is there already is not spoken again.

    Args:
        out: the folder of the suites
        sizes: of the suites
        workers: processes; one for each core if not given
    """
    from instruct_data.toy.world import toy_text

    check_range("workers", workers, 1)
    text = toy_text(sizes.seed)
    said = [text for q in text.questions["train"] for text in (q.question, q.answer)] + text.statements
    frequencies = Counter(word for sentence in said for word in sentence.split())
    suites = {
        "lexical/dev": lexical_lines(sizes, frequencies),
        "syntactic/dev": syntactic_lines(sizes),
        "sStoryCloze": story_lines(sizes, topic=False),
        "tStoryCloze": story_lines(sizes, topic=True),
    }
    for name, lines in suites.items():
        _speak(lines, out / name, workers)
        if lines[0].row:
            _write_gold(out / name / GOLD, lines)
    print(f"pairs in {out}: " + ", ".join(f"{len(lines) // 2} in {name}" for name, lines in suites.items()))


def _speak(lines: Sequence[Spoken], folder: Path, workers: int | None) -> None:
    """Speak what is not there yet. Raises VoiceError for the first line that cannot be spoken: a suite is whole."""
    from instruct_data.speech.voices import processes
    from units.runtime.pool import Workers
    from units.runtime.progress import progress

    jobs = [(Line(line.stem, line.text, line.voice), folder / f"{line.stem}.wav") for line in lines]
    missing = [job for job in jobs if not job[1].exists()]
    batches = [missing[first : first + BATCH] for first in range(0, len(missing), BATCH)]
    with Workers(workers or processes(VOICES)) as pool:
        with progress(total=len(missing), desc=f"speaking {folder.name}", unit="lines") as bar:
            for count in pool.run(_speak_batch, batches):
                bar.update(count)


def _speak_batch(jobs: Sequence[tuple[Line, Path]]) -> int:
    from instruct_data.speech.trim import trim
    from instruct_data.speech.voices import open_voice
    from units.audio import save_wav

    for line, path in jobs:
        save_wav(path, trim(open_voice(line.voice).speak(line.text), line.text))
    return len(jobs)


def _write_gold(path: Path, lines: Sequence[Spoken]) -> None:
    with written_whole(path) as file:
        writer = csv.DictWriter(file, ["filename", *lines[0].row], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"filename": line.stem, **line.row} for line in lines)


if __name__ == "__main__":
    main.cli()

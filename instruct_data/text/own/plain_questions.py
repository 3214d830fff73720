"""Plain questions of everyday English, for a language model to answer: forms, each with the words that fit it."""

from __future__ import annotations

import random

ANIMALS = (
    "cats dogs cows horses birds bees ants spiders whales sharks lions elephants monkeys owls frogs bats "
    "wolves ducks penguins turtles"
).split()
THINGS = (
    "hammer|ladder|compass|microscope|telescope|thermometer|bicycle|bridge|candle|clock|dictionary|fridge|guitar|kite|"
    "library|lighthouse|map|mirror|museum|oven|pillow|pump|radio|ruler|sail|saw|scarf|spoon|tent|umbrella|volcano|wheel"
).split("|")
TASKS = (
    "sleep better|save money|learn a language|make new friends|cook rice|boil an egg|clean a window|grow tomatoes|"
    "write a letter|stay healthy|fix a bicycle|remember names|wake up early|read faster|pack a suitcase|"
    "make good tea|bake bread|train a dog|plan a trip|speak in public|stop worrying|keep warm in winter"
).split("|")
HABITS = (
    "laugh|dream|sing|travel|keep pets|read books|drink coffee|celebrate birthdays|wear hats|take photographs|dance|"
    "go to school|play games|exercise|tell stories|plant trees|build houses|save money|watch films|cook food"
).split("|")
SUBJECTS = (
    "the weather|the moon|the ocean|music|mountains|winter|bread|the human heart|rain|trees|rivers|deserts|"
    "painting|football|chess|the stars|rice|islands|earthquakes|chocolate|trains|flowers|history|medicine|honey"
).split("|")
PAIRS = (
    "a river and a lake|a frog and a toad|a city and a village|tea and milk|a nurse and a doctor|a poem and a tale|"
    "a hill and a mountain|a novel and a diary|a planet and a star|snow and hail|butter and cheese"
).split("|")
FORMS: tuple[tuple[str, tuple[str, ...] | list[str]], ...] = (
    ("What do {} eat?", ANIMALS),
    ("Where do {} live?", ANIMALS),
    ("Tell me something about {}.", ANIMALS),
    ("What is a good thing about {}?", ANIMALS),
    ("What is a {} used for?", THINGS),
    ("What does a {} look like?", THINGS),
    ("Can you explain what a {} is?", THINGS),
    ("How can I {}?", TASKS),
    ("What should I know before I {}?", TASKS),
    ("Is it hard to {}?", TASKS),
    ("Why do people {}?", HABITS),
    ("When did people begin to {}?", HABITS),
    ("What do people need to {}?", HABITS),
    ("Tell me something about {}.", SUBJECTS),
    ("Why is it good to learn about {}?", SUBJECTS),
    ("Why do people like {}?", SUBJECTS),
    ("What would you tell a child about {}?", SUBJECTS),
    ("What is the difference between {}?", PAIRS),
)


def plain_questions(count: int | None = None, seed: int = 0) -> list[str]:
    """Questions in random order, each once; all of them if no count is given."""
    every = [form.format(word) for form, words in FORMS for word in words]
    random.Random(f"plain questions {seed}").shuffle(every)
    return every[:count]

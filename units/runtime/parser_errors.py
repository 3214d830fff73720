"""What the command-line parser says of a value that is of no type of its option, in words.

jsonargparse names Python's types, and lists what each of several said, over several lines. One of two things is of use:
what a settings class said itself, or the option with its value and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_UNION = re.compile(
    r'^(?:Parser key "(?P<key>[^"]+)": )?.*?Does not validate against any of the Union subtypes '
    r"Subtypes: \[(?P<types>.*?)\] Errors: (?P<errors>.*) Given value type: .*? Given value: (?P<value>.*)$"
)
_SINGLE = re.compile(r'^Parser key "(?P<key>[^"]+)": Expected an? (?P<types>.*)\. Got value: (?P<value>.*)$')
_OWN = re.compile(r"(?:^| )- (?!Expected |Parser key )(?P<said>.*?)(?= - Expected | - Parser key |$)")
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null", "str": "text"}
SHOWN = 60  # characters of a value


def plain(message: str) -> str:
    """A message on one line; one about a value that fits no type in words, any other as it is."""
    line = " ".join(message.split())
    union = _UNION.match(line)
    own = _OWN.search(union["errors"]) if union else None
    if own is not None:
        return own["said"]
    found = union or _SINGLE.match(line)
    if found is None or found["key"] is None:
        return line
    allowed = " or ".join(dict.fromkeys(map(_in_words, _types(found["types"]))))
    return f"--{found['key']} is {found['value'][:SHOWN]}; it must be {allowed}"


def _types(listed: str) -> Iterator[str]:
    """The types of a list of them, as Python writes them."""
    depth, begin = 0, 0
    for place, letter in enumerate(listed + ","):
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            yield listed[begin:place].strip()
            begin = place + 1


def _in_words(kind: str) -> str:
    literal = re.fullmatch(r"typing\.Literal\[(.*)\]", kind)
    if literal is not None:
        return literal[1].replace("'", "").replace(", ", " or ")
    if kind.startswith(("list[", "tuple[", "typing.List[")):
        return "a list"
    if kind.startswith(("dict[", "typing.Dict[")):
        return "a table {NAME: VALUE}"
    name = kind.removeprefix("<class '").removesuffix("'>").rpartition(".")[2]
    if "Path" in name:
        return "a path"
    return _WORDS.get(name, "a table of its settings {NAME: VALUE}" if kind.startswith("<class") else kind)

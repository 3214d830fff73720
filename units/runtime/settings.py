"""Settings dataclasses: their numbers, and their switches, are of the types that the fields name.

A dataclass takes any value. True would count as 1, and "8" would fail far from the place where it was written.
"""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from typing import Any

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_LISTS = (list, tuple)
_hints: dict[type, dict[str, Any]] = {}


def check_types(settings: Any, prefix: str = "") -> None:
    """Check the fields of a settings dataclass that hold numbers, switches, or lists of them.

    Args:
        prefix: of the fields' names in the message, such as `lora.`.

    Raises: ValueError with the name, the value and what is allowed.
    """
    hints = type_hints(type(settings))
    for field in dataclasses.fields(settings):
        check_type(prefix + field.name, getattr(settings, field.name), hints[field.name])


def check_type(name: str, value: Any, hint: Any) -> None:
    """Check one setting.

    Args:
        name: of its field. hint: its type.

    Raises: ValueError with the name, the value and what is allowed, if the type is of numbers or switches.
    """
    if _is_checked(hint) and not _fits(value, hint):
        raise ValueError(f"--{name.replace('_', '-')} is {repr(value)[:60]}; it must be {_kind(hint)}")


def type_hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields."""
    return typing.get_type_hints(kind)


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types in a union; a type that is none is its own part."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_checked(hint: Any) -> bool:
    """Whether numbers or switches are in a type."""
    return hint in (int, float, bool) or any(_is_checked(part) for part in typing.get_args(hint))


def _fits(value: Any, hint: Any) -> bool:
    parts = _parts(hint)
    if len(parts) > 1:
        return any(_fits(value, part) for part in parts)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in _LISTS:
        return isinstance(value, _LISTS) and all(_fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    return isinstance(value, hint) if isinstance(hint, type) else True


def _kind(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    parts = _parts(hint)
    if len(parts) > 1:
        return " or ".join(dict.fromkeys(map(_kind, parts)))
    if hint in _KINDS:
        return _KINDS[hint]
    if origin is typing.Literal:
        return " or ".join(map(str, inner))
    if origin in _LISTS:
        return f"a list, each {_kind(inner[0])}"
    if origin is dict:
        return f"a table, each value {_kind(inner[1])}"
    return getattr(hint, "__name__", str(hint))

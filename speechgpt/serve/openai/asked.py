"""The fields of a request in OpenAI's API: read one by one, each with the reason for which it is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from speechgpt.sampling import Sampling
from speechgpt.serve.errors import ApiError

DEEPEST = 64  # brackets in one another; a request has about six
SAMPLING = {  # a field of the API: the field of Sampling, and its kind
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "seed": ("seed", int),
    "max_tokens": ("max_new_tokens", int),
    "max_completion_tokens": ("max_new_tokens", int),
    "candidates": ("candidates", int),
}


def json_object(body: bytes | str) -> dict[str, Any]:
    """The object in a request's body. Raises ApiError."""
    try:
        found = json.loads(body)
    except RecursionError:
        raise ApiError(400, f"the JSON has more than {DEEPEST} brackets in one another") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the request is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ApiError(400, f"the request is a JSON {type(found).__name__}; it must be an object")
    return found


def text_field(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that is a text with a word in it. Raises ApiError."""
    value = fields.get(name, default)
    if not isinstance(value, str) or not value.strip():
        raise ApiError(400, f"{name} is {shown(value)}; it must be a text that is not empty", param=name)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(400, f"{name} is not Unicode: it holds half of a surrogate pair", param=name) from None
    return value.strip()


def flag(fields: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, and false if it is missing. Raises ApiError."""
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} is {shown(value)}; allowed: true, false", param=name)
    return bool(value)


def refuse_fields(fields: Mapping[str, Any], unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ApiError for a field that asks for what no model here does.

    Args:
        unsupported: by name, the values that ask for nothing.
    """
    for name, idle in unsupported.items():
        if fields.get(name) is not None and fields[name] not in idle:
            allowed = ", ".join(shown(one) for one in idle) or "leave it out"
            raise ApiError(
                400, f"{name} is {shown(fields[name])}, which is not supported; allowed: {allowed}",
                "unsupported_parameter", name,
            )  # fmt: skip


def sampling_of(fields: Mapping[str, Any], default: Sampling) -> Sampling:
    """The server's sampling with what a request changes. Raises ApiError."""
    changed: dict[str, Any] = {}
    for name, (ours, kind) in SAMPLING.items():
        value = fields.get(name)
        if value is None:
            continue
        fits = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
        if not fits or abs(value) > 1 << 40:
            what = "number" if kind is float else "whole number"
            raise ApiError(400, f"{name} is {shown(value)}; it must be a {what}", param=name)
        changed[ours] = kind(value)
    try:
        return replace(default, **changed)
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def shown(value: object) -> str:
    """A value as an error shows it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

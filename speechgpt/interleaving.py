"""Interleaved replies: text and speech by turns, so that the sound begins before the text ends.

    {transcript}; [ta] {13 text tokens} [ua] {26 units} [ta] {13 text tokens} [ua] {26 units} .. [ta] {rest} [ua] {rest}

Source: GLM-4-Voice (Zeng et al. 2024, arXiv 2412.02612) takes 13 text tokens and 26 units by turns; early-stop
interleaving (Wu et al. 2025, arXiv 2506.04518) lets the units go on alone where the text has ended. The reasons for
this form: docs/decisions/interleaved-replies.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from units.runtime.command import check_range
from units.runtime.settings import check_types

SETTING = "interleave_replies"  # its name in a stage's config, and in `extra` of speechgpt.json
MOST = 1000  # tokens of a stretch: more would be the chain, and the grammar has a state for each


@dataclass(frozen=True)
class InterleavedReplies:
    """How replies of text and units alternate between the two."""

    text: int = 13
    """Text tokens before the next units."""
    units: int = 26
    """Units before the next text tokens."""

    def __post_init__(self) -> None:
        check_types(self, f"{SETTING}.")
        check_range(f"{SETTING}.text", self.text, 1, MOST)
        check_range(f"{SETTING}.units", self.units, 1, MOST)

    def stretches(self, text: Sequence[int], units: Sequence[int]) -> Iterator[tuple[list[int], tuple[int, ...]]]:
        """Text tokens and units of a reply, cut into stretches of each.

        While more than a stretch of both is left, each stretch has its full length. In the last one all of the text
        comes first, then all of the units.

        Yields: text tokens, and the units that follow them.
        """
        at, spoken = 0, 0
        while len(text) - at > self.text and len(units) - spoken > self.units:
            yield list(text[at : at + self.text]), tuple(units[spoken : spoken + self.units])
            at, spoken = at + self.text, spoken + self.units
        yield list(text[at:]), tuple(units[spoken:])

    def record(self) -> dict[str, int]:
        """As `speechgpt.json` holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Any, where: object) -> InterleavedReplies:
        """Inverse of record.

        Args:
            where: what holds it, for the message.

        Raises:
            ValueError: it is anything else.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(record, dict) or record.keys() != names:
            raise ValueError(
                f"{where}: {SETTING} is {repr(record)[:60]}; it must be an object with {' and '.join(sorted(names))}, "
                "and nothing else"
            )
        try:
            return cls(**record)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

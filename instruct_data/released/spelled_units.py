"""The units of a released file: `<sosp><12><7><eosp>`, at least one, all of them in the codebook."""

from __future__ import annotations

from instruct_data.released.reasons import ReleasedError, ReleasedReason
from units import notation
from units.notation import EOSP, SOSP


def read_units(text: str, size: int) -> tuple[int, ...]:
    """Read one sequence of spelled units.

    Args:
        text: `<sosp>..<eosp>`; spaces around it are allowed.
        size: K, of the codebook.

    Raises:
        ReleasedError: if the text is spelled otherwise, has no units, or has a unit of K or more.
    """
    try:
        ids = notation.read(text)
    except ValueError as error:
        raise ReleasedError(ReleasedReason.UNIT_SPELLING, str(error)) from error
    if not ids:
        raise ReleasedError(ReleasedReason.NO_UNITS, f"no units between {SOSP} and {EOSP}")
    if max(ids) >= size:
        message = f"unit <{max(ids)}> is out of range; this codebook has <0> to <{size - 1}>"
        raise ReleasedError(ReleasedReason.UNIT_RANGE, message)
    return tuple(ids)

"""Spelled units: read is the inverse of spell; everything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_parts import K

from units import notation


@given(st.lists(st.integers(0, 999)))
def test_read_is_the_inverse_of_spell(ids: list[int]) -> None:
    assert notation.read(notation.spell(ids), 1000) == ids
    assert notation.read(f"  {notation.spell(ids)}\n") == ids


@pytest.mark.parametrize("text", ["", "<1>", "<sosp><1>", "<sosp><x><eosp>", "<sosp>1<eosp>", "<sosp><-1><eosp>"])
def test_what_is_not_spelled_units_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not spelled units"):
        notation.read(text)


def test_a_spelled_unit_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="<12> is out of range; this codebook has <0> to <11>"):
        notation.read("<sosp><3><12><eosp>", K)

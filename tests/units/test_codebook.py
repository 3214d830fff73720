"""Units and codebooks: inverse pairs, and what cannot be one."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_parts import K

from units.codebook import Codebook, Units, expand, reduce

CODEBOOK = Codebook("tiny", "mfcc", 0, K, 50.0, "none", "0123abcd")
frames = st.lists(st.integers(0, K - 1), max_size=60)


@given(frames)
def test_expand_is_the_inverse_of_reduce(sequence: list[int]) -> None:
    ids, durations = reduce(sequence)
    assert expand(ids, durations) == sequence
    assert all(a != b for a, b in zip(ids, ids[1:]))
    assert sum(durations) == len(sequence)


@given(frames)
def test_frames_is_the_inverse_of_from_frames(sequence: list[int]) -> None:
    assert Units.from_frames(sequence, CODEBOOK).frames() == sequence


@pytest.mark.parametrize("ids, durations", [((K,), (1,)), ((-1,), (1,)), ((1, 2), (1,)), ((1,), (0,))])
def test_units_that_cannot_be_are_refused(ids: tuple[int, ...], durations: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        Units(ids, durations, CODEBOOK)


def test_units_without_durations_have_no_frames() -> None:
    with pytest.raises(ValueError, match="no durations"):
        Units((1, 2), None, CODEBOOK).frames()


def test_a_codebook_on_disk_is_strict() -> None:
    assert Codebook.from_json(CODEBOOK.to_json()) == CODEBOOK
    record = dataclasses.asdict(CODEBOOK)
    for wrong in ({**record, "more": 1}, {k: v for k, v in record.items() if k != "layer"}):
        with pytest.raises(ValueError, match="a codebook has the fields"):
            Codebook.from_json(wrong)

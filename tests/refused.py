"""An error with a reason code, asserted by its code and by the values that its message has to name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from units.runtime.refusals import Reason, RefusedError


@contextmanager
def refused(reason: Reason, *values: object, error: type[RefusedError] = RefusedError) -> Iterator[None]:
    """The block raises an `error` with this reason whose message contains each of the values."""
    with pytest.raises(error) as caught:
        yield
    assert caught.value.reason is reason
    for value in values:
        assert str(value) in str(caught.value)

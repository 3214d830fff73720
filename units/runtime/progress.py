"""Progress of long work: on a terminal a bar with the rate and the time left, elsewhere plain lines."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tqdm import tqdm

PLAIN = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"


class _Lines:
    """A stream for tqdm that writes each state of the bar as a line."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(
    iterable: Iterable | None = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0
) -> tqdm:
    """A tqdm bar over `iterable`, or one to `update` by hand.

    Args:
        iterable: what is iterated over.
        desc: the work, such as "decoding".
        unit: what is counted, in the plural, such as "files".
        total: how many there are, if the iterable has no length.
        initial: how many were done before.
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, unit=f" {unit}", total=total, initial=initial, mininterval=0.5)
    return tqdm(
        iterable,
        desc=desc,
        unit=f" {unit}",
        total=total,
        initial=initial,
        mininterval=15,
        maxinterval=60,
        file=_Lines(),
        bar_format=PLAIN,
    )

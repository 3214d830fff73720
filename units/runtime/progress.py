"""Progress of long work: a bar with a rate and an estimate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

PLAIN = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_noinv_fmt}, {remaining} left{postfix}"


class _Lines:
    """A stream for tqdm that turns each redrawing of the bar into a line of its own."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable: Any = None, *, desc: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A tqdm over `iterable`, or one to `update` by hand.

    Args:
        desc: what is being done. unit: what is counted, in the plural, such as "files".
    """
    if sys.stderr.isatty():
        return tqdm(iterable, desc=desc, unit=f" {unit}", total=total, initial=initial, mininterval=0.5)
    return tqdm(
        iterable, desc=desc, unit=f" {unit}", total=total, initial=initial, mininterval=15, maxinterval=60,
        file=_Lines(), bar_format=PLAIN,
    )  # fmt: skip

"""ABX: is a phone closer to the same phone than to another one, in the same context? Computed by fastabx.

    units-quality units/dev --alignments textgrids/ --abx abx/
    fastabx abx/units.item abx/units --distance identical --max-size-group 10      # the same, elsewhere

`abx/units.item` lists phones with their neighbours and speakers in ZeroSpeech's form, `abx/units/` holds the units of
each utterance, a frame a row. Two frames differ by 0 or 1, and stretches of them are aligned by dynamic time warping.
fastabx needs Python 3.12; without it the folder is written, and there is no figure.

Sources: Schatz et al. 2013; ZeroSpeech 2021, arXiv 2011.11588, section 3.1; fastabx, arXiv 2505.02692.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from units.corpus.alignments import SILENCE, Alignments, Segment
from units.dataset.unit_set import UnitRecord, UnitSet
from units.runtime.files.atomic import written_whole

ITEMS, UNITS = "units.item", "units"
COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
IN_A_CELL, ACROSS = 10, 5  # as ZeroSpeech: the most of A, B or X in a cell, and of X for an A and B of other speakers


@dataclass(frozen=True)
class AbxError:
    """The share of triples in which the phone is closer to another one: chance is 0.5.

    speaker: "within", all of one speaker, or "across", X of another one.
    """

    speaker: str
    error: float


class NoItems(ValueError):
    """No phone of a unit set can be compared."""


def write_items(unit_set: UnitSet, alignments: Alignments, folder: Path) -> int:
    """Write the phones and the units of a set as fastabx reads them.

    Args:
        unit_set: utterances without speaker or alignment are left out.
        alignments: of phones.
        folder: for both.

    Returns: the number of phones.
    Raises:
        NoItems: there is none: the set has no speakers, or other utterances are aligned.
    """
    import torch

    rate = Decimal(str(unit_set.codebook.frame_rate))
    rows: list[str] = []
    (folder / UNITS).mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(unit_set):
        name = f"u{number:06d}"  # ids may hold spaces, which separate the columns
        found = [" ".join((name, *row)) for row in _phones(record, alignments.segments(record.id) or [], rate)]
        if found:
            frames = torch.tensor(record.units.frames(), dtype=torch.float32)[:, None]
            with written_whole(folder / UNITS / f"{name}.pt", mode="wb") as file:
                torch.save(frames, file)
        rows += found
    if not rows:
        raise NoItems(
            f"{unit_set.folder} has no phone with a neighbour on both sides, in an utterance with a speaker; the "
            "alignments are of phones, and of this set's utterances"
        )
    with written_whole(folder / ITEMS) as file:
        file.write("\n".join([" ".join(COLUMNS), *rows]) + "\n")
    return len(rows)


def _phones(record: UnitRecord, segments: list[Segment], rate: Decimal) -> Iterator[tuple[str, ...]]:
    """The columns behind #file of each phone that has two neighbours and at least one frame."""
    if record.speaker is None:
        return
    count = len(record.units.frames())
    for before, one, after in zip(segments, segments[1:], segments[2:]):
        onset, offset = (Decimal(f"{time:.4f}") for time in (one.start, one.end))
        first, last = math.ceil(onset * rate - Decimal("0.5")), math.floor(offset * rate - Decimal("0.5"))
        if one.label != SILENCE and 0 <= first <= last < count:
            labels = (_word(each) for each in (one.label, before.label, after.label, record.speaker))
            yield str(onset), str(offset), *labels


def _word(text: str) -> str:
    """A label without the spaces and quotes that mean something in the table."""
    return re.sub(r'[\s"]+', "_", text)


def abx_errors(folder: Path, frame_rate: float, seed: int = 0) -> tuple[AbxError, ...]:
    """The ABX errors of such a folder, within and across speakers, in the same context; () without fastabx.

    Args:
        folder: what write_items wrote.
        frame_rate: of the units, in Hz.
        seed: decides which phones are compared, where a cell has many.
    """
    if importlib.util.find_spec("fastabx") is None:
        return ()
    from fastabx import zerospeech_abx

    return tuple(
        AbxError(
            speaker,
            float(
                zerospeech_abx(
                    folder / ITEMS,
                    folder / UNITS,
                    max_size_group=IN_A_CELL,
                    max_x_across=ACROSS,
                    speaker=speaker,
                    context="within",
                    distance="identical",
                    frequency=f"{frame_rate:g}",
                    seed=seed,
                    device="cpu",
                    progress=False,
                )
            ),
        )
        for speaker in ("within", "across")
    )

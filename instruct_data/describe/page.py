"""The description as one HTML file, from page.html.jinja: tables, plots and examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from instruct_data.describe.description import Description, Leak, TaskLengths, length_rows
from speechgpt.dialogue import Speech, part_kind
from units.audio import SAMPLE_RATE
from units.codebook import Codebook, Units
from units.runtime.extras import required
from units.runtime.files.atomic import written_whole
from units.runtime.pages import environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from units.vocoder.unit_vocoder import UnitVocoder

TEMPLATE = "page.html.jinja"
COLOUR = "#1f6f8b"
SHOWN_UNITS = 24  # of an utterance
PLOTS_IN_A_ROW = 4


def write_page(path: Path, data: Path, found: Description, vocoder: Path | None) -> Path:
    """Write the page.

    Args:
        path: the HTML file.
        data: what is described, for the title.
        found: the description.
        vocoder: a vocoder's folder; with it, examples with units can be played.

    Returns: `path`.

    Raises:
        ImportError: if jinja2 or matplotlib is not installed.
    """
    text = _html(data, found, _open_vocoder(vocoder) if vocoder else None)
    with written_whole(path) as file:
        file.write(text)
    return path


def _open_vocoder(folder: Path) -> UnitVocoder:
    from units.vocoder.unit_vocoder import UnitVocoder

    return UnitVocoder.from_pretrained(folder)


def _html(data: Path, found: Description, vocoder: UnitVocoder | None) -> str:
    """The whole page. Every text of the sets is escaped."""
    templates = environment(Path(__file__).parent)
    templates.filters |= {"kind": part_kind, "spelled": spelled, "segment": segment}
    templates.globals["spoken"] = lambda units: _spoken(units, found.codebook, vocoder)
    return templates.get_template(TEMPLATE).render(
        title=str(data),
        found=found,
        counts=_counts(("set", "task", "conversations"), found.sets),
        refused=_counts(("set", "reason", "records"), found.refused),
        leaks=_leaks(found.leaks),
        lengths=_lengths(found.lengths),
        length_plot=_length_plot(found.lengths),
        unit_plot=None if found.used is None else _unit_plot(found.used),
        units_used=None if found.used is None else int((found.used > 0).sum()),
    )


# --- tables


@dataclass(frozen=True)
class Table:
    """A table of the page. numbers: the columns that are aligned to the right."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    numbers: tuple[int, ...]


def _counts(header: tuple[str, str, str], counts: dict[str, dict[str, int]]) -> Table:
    """The counts of each set."""
    rows = [(name, key, f"{number:,}") for name, of_set in counts.items() for key, number in sorted(of_set.items())]
    return Table(header, rows, (2,))


def _leaks(leaks: list[Leak]) -> Table:
    rows = [(leak.kind, " and ".join(leak.splits), f"{leak.count:,}", *leak.examples) for leak in leaks]
    return Table(("inputs", "splits", "count", "one conversation", "another"), rows, (2,))


def _lengths(lengths: dict[str, TaskLengths]) -> Table:
    rows = [(task, measure, *numbers) for task, measure, numbers in length_rows(lengths)]
    return Table(("task", "length in", "mean", "median", "95 %", "max"), rows, (2, 3, 4, 5))


# --- examples


def spelled(units: tuple[int, ...]) -> str:
    """The first units of an utterance, as numbers."""
    return " ".join(map(str, units[:SHOWN_UNITS])) + (" .." if len(units) > SHOWN_UNITS else "")


def segment(speech: Speech) -> str:
    """The audio file of a speech part, and the segment of it in seconds."""
    if speech.duration is not None:
        return f"{speech.audio}, {speech.start:.2f} s to {speech.start + speech.duration:.2f} s"
    return f"{speech.audio}, from {speech.start:.2f} s" if speech.start else speech.audio


def _spoken(units: tuple[int, ...], codebook: Codebook | None, vocoder: UnitVocoder | None) -> str | None:
    """Units as speech, a WAV file in base64; None without a vocoder."""
    if vocoder is None or codebook is None or not units:
        return None
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, vocoder.decode(Units(units, None, codebook)), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


# --- plots


def _length_plot(lengths: dict[str, TaskLengths]) -> str:
    """A histogram of each task in its most exact measure, as a PNG file in base64."""
    tasks = sorted(lengths)
    rows, columns = -(-len(tasks) // PLOTS_IN_A_ROW), min(len(tasks), PLOTS_IN_A_ROW)
    figure = _figure(3.1 * columns, 2.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks):
        measure, values = _most_exact(lengths[task])
        axis.hist(np.asarray(values), bins=30, color=COLOUR)
        axis.set(title=task, xlabel=measure)
    return _png(figure)


def _most_exact(lengths: TaskLengths) -> tuple[str, np.ndarray]:
    """The first of tokens, units and words that is known and not 0 everywhere."""
    for measure in ("tokens", "units"):
        values = np.asarray(getattr(lengths, measure))
        if values.any():
            return measure, values
    return "words", np.asarray(lengths.words)


def _unit_plot(used: np.ndarray) -> str:
    """How often each unit occurs, as a PNG file in base64."""
    figure = _figure(9, 2.6)
    axis = figure.subplots()
    axis.bar(np.arange(len(used)), np.sort(used)[::-1], width=1.0, color=COLOUR)
    axis.set(xlabel="units, by frequency", ylabel="occurrences", xlim=(-0.5, max(len(used) - 0.5, 0.5)))
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    return required("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png", facecolor="white")
    return base64.b64encode(file.getvalue()).decode()

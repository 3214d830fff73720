"""A picture of units: the spectrogram of a wav, its units under it, and the labels of an alignment under them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE
from units.codebook import Units
from units.corpus.alignments import Segment
from units.runtime.files.atomic import written_whole

SHOWN = 5.0  # seconds: the width of a screen
INCHES = 5.0  # per second: a unit of one frame (20 ms) is as wide as its number is high
LETTER = 0.09  # inches, of 6 points
RANGE = 65  # dB shown below the loudest point
WINDOW, STEP = round(0.025 * SAMPLE_RATE), round(0.005 * SAMPLE_RATE)  # samples of a spectrum, and between two


def draw_units(
    wav: np.ndarray, units: Units, path: str | Path, segments: Sequence[Segment] = (), begin: float = 0.0
) -> Path:
    """Draw at most 5 seconds of a wav with its units.

    Args:
        wav: (T,), 16 kHz. units: its units, with durations. segments: its labels, in seconds.
        path: the .png, which appears whole or not at all.
        begin: seconds into the wav.

    Raises: ValueError if `begin` is beyond the wav, or without matplotlib.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install matplotlib") from error
    length = len(wav) / SAMPLE_RATE
    end = min(length, begin + SHOWN)
    if not 0 <= begin < end:
        raise ValueError(f"the picture cannot begin at {begin} s, but the wav is {length:.2f} s long")
    rows = 3 if segments else 2
    figure = matplotlib.figure.Figure(
        figsize=(max(3.0, INCHES * (end - begin)), 2.2 + 0.45 * rows), layout="constrained", dpi=100
    )
    axes = figure.subplots(rows, 1, sharex=True, height_ratios=[5, 1, 1][:rows])
    _spectrogram(axes[0], wav)
    axes[0].set_title(f"{units.codebook.name}, {begin:.2f} to {end:.2f} of {length:.2f} s", loc="left", fontsize=9)
    for row, (name, spans) in zip(axes[1:], (("units", unit_spans(units)), ("labels", segments))):
        _spans(row, spans, begin, end)
        row.set_ylabel(name)
        row.set_yticks([])
    axes[-1].set_xlim(begin, end)
    axes[-1].set_xlabel("seconds")
    with written_whole(path, "wb") as file:
        figure.savefig(file, format="png", facecolor="white")
    return Path(path)


def unit_spans(units: Units) -> list[Segment]:
    """The time of each unit: frame n lasts from n to n + 1 over the frame rate, in seconds."""
    ends = [frames / units.codebook.frame_rate for frames in accumulate(units.durations or (), initial=0)]
    return [Segment(start, end, str(unit)) for unit, start, end in zip(units.ids, ends, ends[1:])]


def _spectrogram(axes, wav: np.ndarray) -> None:
    faint = 1e-6 * np.random.default_rng(0).standard_normal(len(wav))  # digital silence has no logarithm
    power = axes.specgram(wav + faint, NFFT=WINDOW, noverlap=WINDOW - STEP, Fs=SAMPLE_RATE, cmap="magma")
    loudest = 10 * np.log10(power[0].max())
    power[3].set_clim(loudest - RANGE, loudest)
    axes.set_ylabel("Hz")


def _spans(axes, spans: Sequence[Segment], begin: float, end: float) -> None:
    """Coloured segments with their labels, vertical if they are narrow; one colour per label."""
    from matplotlib.colors import hsv_to_rgb

    for span in spans:
        if span.end <= begin or span.start >= end:
            continue
        hue = zlib.crc32(span.label.encode()) / 2**32
        axes.axvspan(span.start, span.end, facecolor=hsv_to_rgb((hue, 0.35, 0.95)), edgecolor="white", linewidth=0.5)
        inches = (span.end - span.start) * INCHES
        if inches >= LETTER:
            axes.text(
                (span.start + span.end) / 2,
                0.5,
                span.label,
                ha="center",
                va="center",
                fontsize=6,
                clip_on=True,
                rotation=0 if inches >= LETTER * len(span.label) else 90,
            )

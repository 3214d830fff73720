"""The pictures of the report, as PNG files: training curves, and spectrograms of a question and its spoken answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.asr.recogniser import PEAK
from units.audio import SAMPLE_RATE
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import finished_lines

INK, FAINT, ACCENT, SECOND = "#22303c", "#d5dde4", "#1f6f8b", "#d1813a"
WINDOW = round(0.025 * SAMPLE_RATE)  # samples of one spectrum
STEP = round(0.005 * SAMPLE_RATE)  # samples between two spectra
RANGE = 65  # dB shown below the loudest point
NOT_CURVES = {"step", "epoch", "seconds", "learning_rate", "lr", "grad_norm", "tokens", "examples"}
TRAINING_ORDER = ("vocoder", "text_llm", "stage1", "stage2", "stage3")
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def read_logs(run: Path) -> dict[str, list[dict]]:
    """The log lines of every RUN/NAME/log.jsonl by NAME, in the order of training."""
    logs = {}
    for path in run.glob("*/log.jsonl"):
        lines = finished_lines(path)
        if steps := [line for line in lines if isinstance(line.get("step"), (int, float))]:
            logs[path.parent.name] = steps
    return dict(sorted(logs.items(), key=lambda item: (_place(item[0]), item[0])))


def _place(name: str) -> int:
    return TRAINING_ORDER.index(name) if name in TRAINING_ORDER else len(TRAINING_ORDER)


def curves_of(lines: Sequence[dict]) -> dict[str, tuple[list[float], list[float]]]:
    """(steps, values) of each loss of a log, or of every number if none is called a loss; held-out figures last."""
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in NOT_CURVES and isinstance(value, (int, float)) and np.isfinite(value):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    shown = [name for name in curves if "loss" in name] or list(curves)
    return {name: curves[name] for name in sorted(shown, key=lambda name: (_is_held_out(name), name))}


def _is_held_out(name: str) -> bool:
    return "eval" in name or "dev" in name


def draw_training(logs: dict[str, list[dict]], path: Path) -> Path:
    """Draw one panel per training, with every curve of its log."""
    plt = _pyplot()
    columns = min(3, len(logs))
    rows = -(-len(logs) // columns)
    size = (3.6 * columns, 2.5 * rows)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axes, (name, lines) in zip(grid.flat, logs.items()):
            _draw_log(axes, name, lines, _colors(plt))
        for axes in list(grid.flat)[len(logs) :]:
            axes.set_visible(False)
        return _save(figure, path)


def _draw_log(axes: Any, name: str, lines: Sequence[dict], colors: Sequence[str]) -> None:
    for (label, (steps, values)), color in zip(curves_of(lines).items(), colors):
        mark: dict[str, Any] = {"marker": "o", "markersize": 3} if _is_held_out(label) or len(steps) < 3 else {}
        axes.plot(steps, values, color=color, linewidth=1.3, label=label, **mark)
    seconds = [line["seconds"] for line in lines if "seconds" in line]
    axes.set_title(name + (f"  ({seconds[-1] / 60:.1f} min)" if seconds else ""), loc="left")
    axes.set_xlabel("step")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.legend(fontsize=8)


def draw_exchange(question: np.ndarray, answer: np.ndarray, titles: tuple[str, str], path: Path) -> Path:
    """Draw spectrograms of two wavs (T,) side by side, on one scale of time and loudness."""
    plt = _pyplot()
    lengths = [len(question) / SAMPLE_RATE, len(answer) / SAMPLE_RATE]
    layout: dict[str, Any] = {"layout": "constrained", "sharey": True, "gridspec_kw": {"width_ratios": lengths}}
    with plt.rc_context(STYLE):
        figure, both = plt.subplots(1, 2, figsize=(10.8, 2.9), **layout)
        for axes, wav, seconds, title in zip(both, (question, answer), lengths, titles):
            area = (0, seconds, 0, SAMPLE_RATE / 2000)  # seconds, kHz
            colors = {"cmap": "magma", "vmin": -RANGE, "vmax": 0}
            axes.imshow(spectrogram(wav), origin="lower", aspect="auto", extent=area, **colors)
            axes.set_title(title, loc="left", parse_math=False)  # a sentence may contain dollar signs
            axes.set_xlabel("seconds")
        both[0].set_ylabel("kHz")
        return _save(figure, path)


def spectrogram(wav: np.ndarray) -> np.ndarray:
    """wav (T,) -> (F, S) decibels below the loudest point: F = 201 bins up to 8 kHz, a spectrum every 5 ms."""
    wav = np.pad(wav * (PEAK / max(np.abs(wav).max(), 1e-9)), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::STEP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)).T ** 2
    return 10 * np.log10(np.maximum(power / power.max(), 1e-12))


def _colors(plt: Any) -> list[str]:
    return [ACCENT, SECOND, *plt.rcParams["axes.prop_cycle"].by_key()["color"][2:]]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=160, format="png", facecolor="white")
    plt.close(figure)
    return path

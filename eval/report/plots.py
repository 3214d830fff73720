"""The report's two pictures, as PNG files: training curves, and a question beside its spoken answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.asr import PEAK
from units.audio import SAMPLE_RATE
from units.runtime.atomic import written_whole

INK, FAINT, ACCENT, SECOND = "#22303c", "#d5dde4", "#1f6f8b", "#d1813a"
WINDOW, STEP = round(0.025 * SAMPLE_RATE), round(0.005 * SAMPLE_RATE)  # samples of a spectrum, and between two
RANGE = 65  # dB shown below the loudest point
_NOT_CURVES = {"step", "epoch", "seconds", "learning_rate", "lr", "grad_norm", "tokens", "examples"}
_STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "text.color": INK, "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False,
}  # fmt: skip
_ORDER = ["vocoder", "text_llm", "stage1", "stage2", "stage3"]


def read_logs(run: Path) -> dict[str, list[dict]]:
    """Training log lines by folder name, for every RUN/NAME/log.jsonl, in the order of training."""
    found = {}
    for path in run.glob("*/log.jsonl"):
        whole = path.read_text(encoding="utf-8").split("\n")[:-1]  # a kill may have torn the last line
        lines = [json.loads(line) for line in whole if line.strip()]
        if steps := [line for line in lines if "step" in line]:
            found[path.parent.name] = steps
    return dict(sorted(found.items(), key=lambda item: (_ORDER.index(item[0]) if item[0] in _ORDER else 99, item[0])))


def curves_of(lines: Sequence[dict]) -> dict[str, tuple[list[float], list[float]]]:
    """(steps, values) of each figure of a log: the losses, or whatever numbers there are if none is called a loss."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name not in _NOT_CURVES and isinstance(value, (int, float)) and np.isfinite(value):
                steps, values = found.setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    names = sorted([name for name in found if "loss" in name] or found, key=lambda name: (_is_held_out(name), name))
    return {name: found[name] for name in names}


def _is_held_out(name: str) -> bool:
    return "eval" in name or "dev" in name


def draw_training(logs: dict[str, list[dict]], path: Path) -> Path:
    """One panel a training, every curve of its log in it."""
    plt = _pyplot()
    with plt.rc_context(_STYLE):
        columns = min(3, len(logs))
        rows = -(-len(logs) // columns)
        figure, grid = plt.subplots(
            rows, columns, figsize=(3.6 * columns, 2.5 * rows), squeeze=False, layout="constrained"
        )
        for axes, (name, lines) in zip(grid.flat, logs.items()):
            for (label, (steps, values)), color in zip(curves_of(lines).items(), _colors(plt)):
                mark = {"marker": "o", "markersize": 3} if _is_held_out(label) or len(steps) < 3 else {}
                axes.plot(steps, values, color=color, linewidth=1.3, label=label, **mark)
            seconds = [line["seconds"] for line in lines if "seconds" in line]
            axes.set_title(name + (f"  ({seconds[-1] / 60:.1f} min)" if seconds else ""), loc="left")
            axes.set_xlabel("step")
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.legend(fontsize=8)
        for axes in list(grid.flat)[len(logs) :]:
            axes.set_visible(False)
        return _save(figure, path)


def draw_exchange(question: np.ndarray, answer: np.ndarray, titles: tuple[str, str], path: Path) -> Path:
    """Spectrograms of a question and its answer, wavs (T,), side by side on one scale of time and loudness."""
    plt = _pyplot()
    pictures = [spectrogram(question), spectrogram(answer)]
    lengths = [len(question) / SAMPLE_RATE, len(answer) / SAMPLE_RATE]
    with plt.rc_context(_STYLE):
        figure, both = plt.subplots(
            1, 2, figsize=(10.8, 2.9), layout="constrained", sharey=True, gridspec_kw={"width_ratios": lengths}
        )
        for axes, picture, seconds, title in zip(both, pictures, lengths, titles):
            axes.imshow(
                picture,
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=-RANGE,
                vmax=0,
                extent=(0, seconds, 0, SAMPLE_RATE / 2000),
            )
            axes.set_title(title, loc="left", parse_math=False)  # what people say may hold dollars
            axes.set_xlabel("seconds")
        both[0].set_ylabel("kHz")
        return _save(figure, path)


def spectrogram(wav: np.ndarray) -> np.ndarray:
    """wav (T,) -> decibels (F, S) under the loudest point, F = 201 bins up to 8 kHz, one spectrum every 5 ms."""
    wav = np.pad(wav * (PEAK / max(np.abs(wav).max(), 1e-9)), WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(wav, WINDOW)[::STEP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)).T ** 2
    return 10 * np.log10(np.maximum(power / power.max(), 1e-12))


def _colors(plt) -> list[str]:
    return [ACCENT, SECOND, *plt.rcParams["axes.prop_cycle"].by_key()["color"][2:]]


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure, path: Path) -> Path:
    import matplotlib.pyplot as plt

    with written_whole(path, "wb") as file:
        figure.savefig(file, dpi=160, format="png", facecolor="white")
    plt.close(figure)
    return path

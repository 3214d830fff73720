"""The description of a set as one HTML file: figures, plots, and examples to read and play."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np

from instruct_data.build.description import Description, length_rows
from speechgpt.dialogue import Conversation, Part, Speech
from units.audio import SAMPLE_RATE
from units.codebook import Units
from units.runtime.atomic import written_whole
from units.vocoder.unit_vocoder import UnitVocoder

CSS = """body{font:16px/1.5 system-ui,sans-serif;color:#22303c;background:#f4f6f8;max-width:1000px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;background:#fff;font-size:.92rem}th,td{padding:.35rem .8rem;border:1px solid #dfe6ec;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}.bad{color:#b3402a;font-weight:600}.ok{color:#2d7d46}
.turn{background:#fff;border:1px solid #dfe6ec;border-radius:8px;padding:.5rem .9rem;margin:.3rem 0}.assistant{margin-left:3rem}
img{max-width:100%;background:#fff}audio{display:block;height:34px;margin:.2rem 0}code{font-size:.8rem;color:#5d6c79;overflow-wrap:anywhere}"""
SHOWN_UNITS = 24


def write_page(path: Path, data: Path, found: Description, vocoder: Path | None) -> Path:
    """Write the page.

    Args:
        data: what is described. vocoder: its folder, for examples that can be played.
    """
    voice = UnitVocoder.from_pretrained(vocoder) if vocoder else None
    counts = [(name, task, f"{n:,}") for name, tasks in found.sets.items() for task, n in sorted(tasks.items())]
    refused = [(name, reason, f"{n:,}") for name, reasons in found.refused.items() for reason, n in reasons.items()]
    lengths = [(task, name, *numbers) for task, name, numbers in length_rows(found.lengths)]
    leaks = [(leak.kind, " and ".join(leak.splits), f"{leak.count:,}", *leak.examples) for leak in found.leaks]
    body = [
        f"<h1>{escape(str(data))}</h1><p>{found.total:,} conversations, {found.duplicates:,} said before word for word.</p>",
        "<h2>Counts</h2>", _table(("set", "task", "conversations"), counts),
        "<h2>Left out</h2>" + _table(("set", "reason", "records"), refused) if refused else "",
        "<h2>Two sides</h2>",
        "<p class=bad>Inputs stand on two sides.</p>" + _table(("what", "sides", "how many", "one", "the other"), leaks)
        if leaks else "<p class=ok>No sound and no sentence stands on two sides.</p>",
        "<h2>Lengths</h2>", _table(("task", "in", "mean", "median", "95 %", "most"), lengths), _length_plot(found),
        "<h2>Units</h2>" + _unit_plot(found) if found.used is not None else "",
        "<h2>Examples</h2>", *(_example(c, found, voice) for kept in found.examples.values() for c in kept),
    ]  # fmt: skip
    with written_whole(path) as file:
        file.write(
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(str(data))}</title><style>{CSS}</style>"
        )
        file.write("\n".join(part for part in body if part) + "</html>\n")
    return path


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def cell(text: str) -> str:
        number = text.replace(",", "").replace(".", "").isdigit()
        return f"<td{' class=n' if number else ''}>{escape(text)}</td>"

    top = "".join(f"<th>{escape(name)}</th>" for name in header)
    return f"<table><tr>{top}</tr>" + "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows) + "</table>"


def _length_plot(found: Description) -> str:
    """One histogram a task, in the finest measure that could be told."""
    plt = _pyplot()
    tasks = sorted(found.lengths)
    rows, columns = -(-len(tasks) // 4), min(len(tasks), 4)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, task in zip(axes.flat, tasks):
        known = {name: getattr(found.lengths[task], name) for name in ("tokens", "units", "words")}
        name, values = next(((n, v) for n, v in known.items() if len(v) and max(v)), ("words", known["words"]))
        axis.hist(np.asarray(values), bins=30, color="#1f6f8b")
        axis.set(title=task, xlabel=name)
    return _picture(figure, "lengths of the conversations of each task")


def _unit_plot(found: Description) -> str:
    plt = _pyplot()
    used = np.zeros(0) if found.used is None else found.used
    figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
    axis.bar(np.arange(len(used)), np.sort(used)[::-1], width=1.0, color="#1f6f8b")
    axis.set(xlabel="units, most used first", ylabel="times", xlim=(-0.5, max(len(used) - 0.5, 0.5)))
    return f"<p>{int((used > 0).sum())} of {len(used)} are used.</p>" + _picture(figure, "how often each unit is used")


def _example(conversation: Conversation, found: Description, voice: UnitVocoder | None) -> str:
    turns = "".join(
        f"<div class='turn {message.role}'>{''.join(_part(part, found, voice) for part in message.parts)}</div>"
        for message in conversation.messages
    )
    return f"<h3>{escape(conversation.task)}: {escape(conversation.id)}</h3>{turns}"


def _part(part: Part, found: Description, voice: UnitVocoder | None) -> str:
    if isinstance(part, str):
        return f"<div>{escape(part)}</div>"
    if isinstance(part, Speech):
        return f"<div><code>{escape(part.audio)}</code></div>" + _part(part.units or (), found, voice)
    spelled = escape(" ".join(map(str, part[:SHOWN_UNITS])) + (" .." if len(part) > SHOWN_UNITS else ""))
    sound = ""
    if voice is not None and found.codebook is not None and part:
        sound = _audio(voice.decode(Units(part, None, found.codebook)))
    return f"<div><code>{len(part)} units: {spelled}</code>{sound}</div>"


def _audio(wav: np.ndarray) -> str:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wav, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return f"<audio controls preload=none src='data:audio/wav;base64,{base64.b64encode(file.getvalue()).decode()}'></audio>"


def _picture(figure, title: str) -> str:
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png", facecolor="white")
    _pyplot().close(figure)
    return f"<img alt='{escape(title)}' src='data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}'>"


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("the page needs matplotlib; install it with: pip install matplotlib") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

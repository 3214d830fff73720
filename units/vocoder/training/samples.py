"""Samples of a vocoder in training: wavs, pictures of their log-mels, and both on tensorboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from units.audio import SAMPLE_RATE, load_wav, save_wav
from units.runtime.files.atomic import written_whole
from units.runtime.files.file_names import FileNames
from units.vocoder.mel import LogMel
from units.vocoder.training.crops import Pair
from units.vocoder.unit_vocoder import UnitVocoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


def write_samples(out: Path, step: int, vocoder: UnitVocoder, pairs: list[Pair], board: SummaryWriter) -> None:
    """Write OUT/samples/step-N/ID.wav and ID.png of each pair, and show both on the board."""
    folder = out / "samples" / f"step-{step:08d}"
    names = FileNames(folder, [".wav", ".png"], slash="-")
    for utterance, units in pairs:
        speaker = str(utterance.speaker) if vocoder.speakers else 0
        generated = vocoder.decode(units, speaker=speaker)
        recorded = load_wav(utterance.audio, utterance.start, utterance.duration)
        wav_path = save_wav(names.path(utterance.id), generated)
        figure = draw_log_mels(recorded, generated, f"step {step}")
        with written_whole(names.path(utterance.id, ".png"), "wb") as file:
            figure.savefig(file, format="png")
        board.add_figure(wav_path.stem, figure, step)
        board.add_audio(wav_path.stem, generated, step, SAMPLE_RATE)
    names.write_list()


def spread(pairs: list[Pair], count: int) -> list[Pair]:
    """`count` pairs, evenly spread over all."""
    return [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]


def draw_log_mels(recorded: np.ndarray, generated: np.ndarray, title: str) -> Figure:
    """The log-mels of a recording above those of the generated wav."""
    from matplotlib.figure import Figure

    log_mel = LogMel()
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2)
    for axes, wav, name in ((upper, recorded[: len(generated)], "recorded"), (lower, generated, title)):
        mels = log_mel(torch.from_numpy(wav)[None])[0].numpy()
        axes.imshow(mels, origin="lower", aspect="auto", vmin=-11.5, vmax=1)
        axes.set(title=name, ylabel="mel band")
    lower.set_xlabel(f"frames of {1000 * log_mel.hop / SAMPLE_RATE:.0f} ms")
    return figure

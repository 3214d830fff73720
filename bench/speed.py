"""How fast each part of a finished model runs on this machine, one audio file at a time.

    python -m bench.speed --model runs/toy/model --corpus runs/toy/corpus --files 5     # half a minute
    make bench

Prints for the encoder, the whole answer and the vocoder: seconds of work for a second of audio (the real-time
factor; below 1 is faster than real time), median and 90th percentile over the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speechgpt.inference import SpeechGPT
from units.audio import SAMPLE_RATE, load_wav
from units.manifest import read_manifest


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(model: Path, corpus: Path, files: int = 20, device: str = "cpu") -> None:
    """Time a model on development questions.

    Args:
        model: a model folder
        corpus: the corpus folder; `dev.jsonl` in it is read
        files: how many questions
        device: cpu or cuda
    """
    speaker = SpeechGPT.from_pretrained(str(model), device=device)
    wavs = [load_wav(utterance.audio) for utterance in read_manifest(corpus / "dev.jsonl")[:files]]
    speaker.answer(wavs[0])  # the first call prepares kernels
    factors: dict[str, list[float]] = {"encoder": [], "vocoder": [], "answer": []}
    for wav in wavs:
        heard = len(wav) / SAMPLE_RATE
        units = speaker.encoder.encode(wav)
        factors["encoder"].append(timed(lambda wav=wav: speaker.encoder.encode(wav)) / heard)
        factors["vocoder"].append(timed(lambda units=units: speaker.vocoder.decode(units)) / heard)
        factors["answer"].append(timed(lambda wav=wav: speaker.answer(wav)) / heard)
    print(f"{len(wavs)} questions, {sum(map(len, wavs)) / SAMPLE_RATE:.1f} s of audio, one at a time on {device}")
    for name, values in factors.items():
        print(
            f"{name:8}  median {np.median(values):.4f}  90th percentile {np.percentile(values, 90):.4f}  of real time"
        )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

"""Measure how fast each part of a finished SpeechGPT model runs on this machine, one audio file at a time.

    python -m bench.speed --model runs/toy/model --corpus runs/toy/corpus --files 5     # half a minute
    python -m bench.speed --model runs/mine/model --corpus dev.jsonl                    # any manifest
    make bench

Prints seconds of work per second of audio (the real-time factor; below 1 is faster than real time), median and 90th
percentile over the files: of the unit encoder per second of question, of the vocoder that speaks that question's
units again, and of the whole answer per second of spoken answer, as eval.run has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from units.runtime.command import command


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


@command("python -m bench.speed", positional=False)
def main(model: Path, corpus: Path, files: int = 20, device: str = "cpu") -> None:
    """Time a model on development questions.

    Args:
        model: a SpeechGPT model folder
        corpus: a manifest, or a corpus folder, whose dev.jsonl is read
        files: how many questions, 1 or more
        device: cpu or cuda
    """
    from speechgpt.inference import SpeechGPT
    from units.audio import SAMPLE_RATE, load_wav
    from units.corpus.manifest import read_manifest
    from units.runtime.provenance import machine

    if files < 1:
        raise ValueError(f"files is {files}; allowed: 1 or more")
    utterances = read_manifest(corpus / "dev.jsonl" if corpus.is_dir() else corpus)[:files]
    wavs = [load_wav(utterance.audio, utterance.start, utterance.duration) for utterance in utterances]
    if not wavs:
        raise ValueError(f"{corpus} has no utterances; the bench needs at least one")
    speechgpt = SpeechGPT.from_pretrained(str(model), device=device)
    speechgpt.answer(wavs[0])  # the first call prepares kernels
    factors: dict[str, list[float]] = {"encoder": [], "vocoder": [], "answer": []}
    for wav in wavs:
        seconds, units = timed(partial(speechgpt.encoder.encode, wav))
        factors["encoder"].append(seconds * SAMPLE_RATE / len(wav))
        seconds, spoken = timed(partial(speechgpt.vocoder.decode, units))
        factors["vocoder"].append(seconds * SAMPLE_RATE / len(spoken))
        seconds, answer = timed(partial(speechgpt.answer, wav))
        if answer.wav is not None:
            factors["answer"].append(seconds * SAMPLE_RATE / len(answer.wav))
    audio = sum(map(len, wavs)) / SAMPLE_RATE
    print(f"{len(wavs)} questions, {audio:.1f} s of audio, one at a time on {machine(device)}")
    print_factors(factors)


def print_factors(factors: dict[str, list[float]]) -> None:
    """Print median and 90th percentile of each part's real-time factors."""
    import numpy as np

    for name, values in factors.items():
        if values:
            median, high = np.median(values), np.percentile(values, 90)
            print(f"{name:8}  median {median:.4f}  90th percentile {high:.4f}  of real time, {len(values)} files")


if __name__ == "__main__":
    main.cli()

"""How fast each part of a finished model runs on this machine, one audio file at a time.

    python -m bench.speed --model runs/toy/model --corpus runs/toy/corpus --files 5     # half a minute
    python -m bench.speed --model runs/mine/model --corpus dev.jsonl                    # any manifest
    make bench

Prints seconds of work for a second of audio (the real-time factor; below 1 is faster than real time), median and 90th
percentile over the files: of the encoder for a second of question, of the vocoder speaking that question's units again, and
of the whole answer for a second of what is answered, as eval.run has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from speechgpt.inference import SpeechGPT
from units.audio import SAMPLE_RATE, load_wav
from units.corpus.manifest import read_manifest
from units.runtime.provenance import machine


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that one call takes, and what it gives."""
    began = time.perf_counter()
    given = work()
    return time.perf_counter() - began, given


def main(model: Path, corpus: Path, files: int = 20, device: str = "cpu") -> None:
    """Time a model on development questions.

    Args:
        model: a model folder
        corpus: a manifest, or a corpus folder, whose `dev.jsonl` is read
        files: how many questions
        device: cpu or cuda
    """
    speaker = SpeechGPT.from_pretrained(str(model), device=device)
    asked = read_manifest(corpus / "dev.jsonl" if corpus.is_dir() else corpus)[:files]
    wavs = [load_wav(utterance.audio, utterance.start, utterance.duration) for utterance in asked]
    if not wavs:
        raise ValueError(f"{corpus} has no utterances; the bench needs one at least")
    speaker.answer(wavs[0])  # the first call prepares kernels
    factors: dict[str, list[float]] = {"encoder": [], "vocoder": [], "answer": []}
    for wav in wavs:
        took, units = timed(partial(speaker.encoder.encode, wav))
        factors["encoder"].append(took * SAMPLE_RATE / len(wav))
        took, said = timed(partial(speaker.vocoder.decode, units))
        factors["vocoder"].append(took * SAMPLE_RATE / len(said))
        took, answer = timed(partial(speaker.answer, wav))
        if answer.wav is not None:
            factors["answer"].append(took * SAMPLE_RATE / len(answer.wav))
    print(
        f"{len(wavs)} questions, {sum(map(len, wavs)) / SAMPLE_RATE:.1f} s of audio, one at a time on {machine(device)}"
    )
    for name, values in factors.items():
        if values:
            high = np.percentile(values, 90)
            print(
                f"{name:8}  median {np.median(values):.4f}  90th percentile {high:.4f}  of real time, {len(values)} files"
            )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

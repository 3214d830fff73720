"""Features of a corpus for k-means, read ahead: each core of a CPU, or the GPU, is kept busy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from units.audio import SAMPLE_RATE
from units.corpus.decoding import decoded
from units.corpus.manifest import Utterance
from units.encoder.centring import centred
from units.encoder.unit_encoder import Features, UnitEncoder
from units.runtime.ahead import spare_cores, worked_ahead
from units.runtime.progress import progress
from units.runtime.refusals import Refusal

COUNTED_SECONDS = 120.0  # of audio, whose units are counted
BATCH = 4  # utterances


def units_per_second(encoder: UnitEncoder, utterances: list[Utterance]) -> float:
    """Units left after runs are collapsed, per second of audio, over the first readable utterances."""
    units = seconds = 0.0
    for wav in decoded(utterances, 0, encoder.features.grid):
        if not isinstance(wav, Refusal):
            units += len(encoder.encode(wav).ids)
            seconds += len(wav) / SAMPLE_RATE
            if seconds > COUNTED_SECONDS:
                break
    return units / seconds


def corpus_features(utterances: list[Utterance], features: Features, centring: str) -> Iterator[Tensor]:
    """Features (N, D) of each readable utterance, in order; the number of the others is printed at the end."""
    batches = [utterances[start : start + BATCH] for start in range(0, len(utterances), BATCH)]
    read = 0
    for pieces in progress(_of_batches(batches, features), desc="features", unit="batches", total=len(batches)):
        read += len(pieces)
        for piece in pieces:
            yield centred(piece, centring)
    if read < len(utterances):
        print(f"{len(utterances) - read} of {len(utterances)} utterances were not readable and left out")


def _of_batches(batches: list[list[Utterance]], features: Features) -> Iterator[list[Tensor]]:
    """Features of each batch's readable utterances.

    On a CPU each core works on a separate batch, which is faster than sharing every small matrix product. On a GPU
    threads decode the next batches while one is encoded.
    """

    def wavs(rows: list[Utterance]) -> list[np.ndarray]:
        return [wav for wav in decoded(rows, 0, features.grid) if not isinstance(wav, Refusal)]

    if features.device.type != "cpu":
        for batch in worked_ahead(wavs, batches, spare_cores(str(features.device))):
            yield features(batch)
        return
    threads = torch.get_num_threads()
    try:
        yield from worked_ahead(
            lambda rows: features(wavs(rows)), batches, threads, prepare=lambda: torch.set_num_threads(1)
        )
    finally:
        torch.set_num_threads(threads)

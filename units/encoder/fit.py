"""Fit a codebook: features of a corpus, k-means, one unit encoder folder.

    python -m units.encoder.fit --manifest runs/toy/corpus/train.jsonl --out runs/toy/unit_encoder
    python -m units.encoder.fit --manifest folder/of/audio --out enc --encoder facebook/hubert-base-ls960 --layer 6 --size 500 --device cuda
    python -m units.encoder.fit --manifest train.jsonl --out enc --encoder hubert_large_ll60k.pt --layer 22 --size 2000

The default encoder is the small one that comes with the package.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from units.audio import SAMPLE_RATE
from units.corpus.decoding import decoded
from units.corpus.manifest import Utterance
from units.corpus.sources import list_source
from units.encoder.unit_encoder import MFCC, STARTER, Features, UnitEncoder, kmeans, open_features
from units.runtime.ahead import spare_cores, worked_ahead
from units.runtime.precision import check_device
from units.runtime.progress import progress
from units.runtime.refusals import Refusal

HEARD = 120.0  # seconds whose units are counted at the end


def main(
    manifest: Path, out: Path, encoder: str = "starter", layer: int = 2, size: int = 100, centring: str = "utterance",
    utterances: int = 2000, frames: int = 150_000, seed: int = 0, device: str = "cpu", name: str | None = None,
) -> None:  # fmt: skip
    """Fit k-means on one layer's features and write a unit encoder.

    Args:
        manifest: utterances to draw frames from: a manifest, a folder, or whatever units-extract takes
        out: folder for the unit encoder
        encoder: starter, mfcc, a transformers HuBERT folder, a hub id, or a fairseq .pt
        layer: transformer layer, 1-based
        size: number of units K
        centring: utterance takes each utterance's mean off its features (less of the voice), none leaves them
        utterances: how many utterances are drawn
        frames: how many frames k-means sees at most
        seed: decides utterances, frames and the fit
        device: cpu, cuda, or cuda:N
        name: the codebook's name; made from encoder, layer and size if not given
    """
    check_device(device)
    if centring not in ("utterance", "none"):
        raise SystemExit(f"centring is 'utterance' or 'none', not {centring!r}")
    source = STARTER / "encoder" if encoder == "starter" else encoder
    features = open_features(source, layer, device)
    features.name = encoder if encoder in ("starter", MFCC) else features.name
    drawn = list_source(manifest).utterances
    random.Random(seed).shuffle(drawn)
    sample = kmeans.sample_frames(_features(drawn[:utterances], features, centring), frames, seed)
    fit = kmeans.fit(sample, size, seed)
    made = UnitEncoder.from_features(
        features, fit.centres, name or f"{Path(encoder).stem}-L{features.layer}-km{size}", centring
    )
    made.save_pretrained(out)
    print(
        f"k-means: {fit.frames} frames, K={size}, inertia {fit.inertia:.4f}, dead centres {fit.dead}, "
        f"{_units_per_second(made, drawn):.1f} units a second"
    )
    print(f"{made.codebook.name} ({made.codebook.fingerprint}) in {out}")


def _units_per_second(encoder: UnitEncoder, utterances: list[Utterance]) -> float:
    """Units left after runs are collapsed, per second of audio, over the first readable utterances."""
    units = seconds = 0.0
    for wav in decoded(utterances, 0, encoder.features.grid):
        if not isinstance(wav, Refusal):
            units += len(encoder.encode(wav).ids)
            seconds += len(wav) / SAMPLE_RATE
            if seconds > HEARD:
                break
    return units / seconds


def _features(utterances: list[Utterance], features: Features, centring: str, batch: int = 4) -> Iterator[Tensor]:
    """Features of readable utterances, in order; the others are counted and named at the end.

    On a CPU each core takes a batch of its own, which serves it better than a share of every small matrix product; on a
    GPU some batches are decoded while another is encoded.
    """
    threads = torch.get_num_threads()

    def wavs(rows: list[Utterance]) -> list[np.ndarray]:
        return [wav for wav in decoded(rows, 0, features.grid) if not isinstance(wav, Refusal)]

    batches = [utterances[start : start + batch] for start in range(0, len(utterances), batch)]
    if features.device.type == "cpu":
        each = worked_ahead(
            lambda rows: features(wavs(rows)), batches, threads, prepare=lambda: torch.set_num_threads(1)
        )
    else:
        each = (features(heard) for heard in worked_ahead(wavs, batches, spare_cores(str(features.device))))
    read = 0
    for pieces in progress(each, desc="features", unit="batches", total=len(batches)):
        read += len(pieces)
        for piece in pieces:
            yield piece - piece.mean(0) if centring == "utterance" else piece
    torch.set_num_threads(threads)
    refused = len(utterances) - read
    if refused:
        print(f"{refused} of {len(utterances)} utterances were not readable and left out")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

"""Fit a codebook: features of a corpus, k-means, one unit encoder folder.

    python -m units.fit --manifest runs/toy/corpus/train.jsonl --out runs/toy/unit_encoder
    python -m units.fit --manifest big.jsonl --out enc --encoder facebook/hubert-base-ls960 --layer 6 --size 500 --device cuda

The default encoder is the small one that comes with the package.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from units import kmeans
from units.audio import AudioError, load_wav
from units.encoder import MFCC, STARTER, UnitEncoder, open_features
from units.manifest import Utterance, read_manifest
from units.progress import progress


def main(
    manifest: Path, out: Path, encoder: str = "starter", layer: int = 2, size: int = 100, centring: str = "utterance",
    utterances: int = 2000, frames: int = 150_000, seed: int = 0, device: str = "cpu", name: str | None = None,
) -> None:  # fmt: skip
    """Fit k-means on one layer's features and write a unit encoder.

    Args:
        manifest: utterances to draw frames from
        out: folder for the unit encoder
        encoder: starter, mfcc, a transformers HuBERT folder, or a hub id
        layer: transformer layer, 1-based
        size: number of units K
        centring: utterance takes each utterance's mean off its features (less of the voice), none leaves them
        utterances: how many utterances are drawn
        frames: how many frames k-means sees at most
        seed: decides utterances, frames and the fit
        device: cpu or cuda
        name: the codebook's name; made from encoder, layer and size if not given
    """
    if centring not in ("utterance", "none"):
        raise SystemExit(f"centring is 'utterance' or 'none', not {centring!r}")
    source = STARTER / "encoder" if encoder == "starter" else encoder
    features = open_features(source, layer, device)
    features.name = encoder if encoder in ("starter", MFCC) else features.name
    drawn = read_manifest(manifest)
    random.Random(seed).shuffle(drawn)
    sample = kmeans.sample_frames(_features(drawn[:utterances], features, centring), frames, seed)
    fit = kmeans.fit(sample, size, seed)
    print(f"k-means: {fit.frames} frames, K={size}, inertia {fit.inertia:.4f}, dead centres {fit.dead}")
    made = UnitEncoder.from_features(
        features, fit.centres, name or f"{Path(encoder).name}-L{features.layer}-km{size}", centring
    )
    print(f"{made.codebook.name} ({made.codebook.fingerprint}) in {made.save_pretrained(out)}")


def _features(utterances: list[Utterance], features, centring: str, batch: int = 16) -> Iterator[Tensor]:
    """Features of readable utterances; the others are counted and named at the end."""
    refused = 0
    for start in progress(range(0, len(utterances), batch), desc="features", unit="batches"):
        wavs = []
        for utterance in utterances[start : start + batch]:
            try:
                wavs.append(load_wav(utterance.audio, utterance.start, utterance.duration))
            except (AudioError, FileNotFoundError):
                refused += 1
        for piece in features(wavs) if wavs else ():
            yield piece - piece.mean(0) if centring == "utterance" else piece
    if refused:
        print(f"{refused} of {len(utterances)} utterances were not readable and left out")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

"""Targets of HuBERT pre-training: features of the corpus are clustered, and every frame is labelled by its cluster."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.encoder import kmeans
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.pretraining.pretrain_data import Features, PretrainCorpus
from units.encoder.recipes import Iteration
from units.encoder.unit_encoder import open_features
from units.runtime.files.json_files import FileError, FileReason

FIT_UTTERANCES, FIT_FRAMES = 2000, 120_000  # utterances, and frames of them, that targets are fitted on


def iteration_targets(
    corpus: PretrainCorpus, model: nn.Module, plan: Iteration, saved: Path, seed: int, device: str
) -> np.ndarray:
    """Labels of every frame for one iteration, (total frames, heads).

    Args:
        saved: a file that holds them, or will, beside the centres of each head; a resumed run reads them there.

    Raises: ValueError if the file labels another number of frames than the corpus has.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save_file

    if saved.exists():
        try:
            targets = load_file(saved)["targets"]
        except (SafetensorError, KeyError, ValueError) as error:
            raise FileError(
                FileReason.DAMAGED, f"{saved}: damaged, or no targets ({error!r:.200}); delete it to make them again"
            ) from error
        if len(targets) != corpus.first_frame[-1]:
            raise ValueError(
                f"{saved} labels {len(targets)} frames, the corpus has {corpus.first_frame[-1]}: it changed; "
                "give another --out"
            )
        return targets
    codebooks = [(_extractor(model, layer, device, plan.teacher), sizes) for layer, sizes in plan.clusters.items()]
    targets, centres = make_targets(corpus, codebooks, seed, plan.centring)
    part = saved.with_suffix(".part")
    kept = {f"centres{head}": own.cpu().numpy() for head, own in enumerate(centres)}
    save_file({"targets": targets, **kept}, str(part))
    part.replace(saved)
    return targets


def make_targets(
    corpus: PretrainCorpus, codebooks: list[tuple[Features, list[int]]], seed: int, centring: str = "utterance"
) -> tuple[np.ndarray, list[Tensor]]:
    """Cluster features and label every frame; the whole corpus is decoded once for all codebooks.

    Args:
        codebooks: features, and the sizes of the codebooks to fit on them.
        centring: mean normalisation of the features.

    Returns: labels (total frames, heads), heads in the order of `codebooks`, uint16 if every codebook allows it, else
        int32; and the centres of each head, (K, D).
    """
    by_length = np.argsort(corpus.lengths, kind="stable")
    drawn = by_length[np.sort(np.random.default_rng(seed).permutation(len(by_length))[:FIT_UTTERANCES])]
    jobs, centres = [], list[Tensor]()
    for extract, sizes in codebooks:
        pieces = (piece for _, [batch] in corpus.run_jobs(drawn, [(extract, lambda x: x)], centring) for piece in batch)
        frames = kmeans.sample_frames(pieces, FIT_FRAMES, seed)
        fits = [kmeans.fit(frames, min(size, len(frames)), seed) for size in sizes]
        reports = (f"K={size} inertia {fit.inertia:.3f} dead {fit.dead}" for size, fit in zip(sizes, fits))
        print(f"targets of {extract.name}:", ", ".join(reports))
        jobs.append((extract, _assigner([fit.centres.to(extract.device) for fit in fits])))
        centres += [fit.centres for fit in fits]
    largest = max(size for _, sizes in codebooks for size in sizes)
    heads = sum(len(sizes) for _, sizes in codebooks)
    labels = np.empty((int(corpus.first_frame[-1]), heads), np.uint16 if largest <= 1 << 16 else np.int32)
    for rows, results in corpus.run_jobs(by_length, jobs, centring):
        for row, *columns in zip(rows, *results):
            labels[corpus.first_frame[row] : corpus.first_frame[row + 1]] = np.concatenate(columns, axis=1)
    return labels, centres


def _assigner(centres: list[Tensor]) -> Callable[[Tensor], np.ndarray]:
    """Return a function: features (N, D) -> the nearest of each codebook's centres, (N, codebooks)."""
    return lambda x: torch.stack([kmeans.assign(x, own) for own in centres], dim=1).cpu().numpy()


def _extractor(model: nn.Module, layer: int, device: str, teacher: str | None) -> Features:
    """Features for targets: the teacher's; without one MFCC for layer 0, else a copy of the model as it is now."""
    if teacher is not None:
        return open_features(teacher, layer, device)
    if layer == 0:
        return MfccFeatures()
    return HubertFeatures(copy.deepcopy(model), layer, f"layer {layer}").to(device)

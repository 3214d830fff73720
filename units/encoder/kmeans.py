"""k-means over features: a seeded fit (scikit-learn) and assignment as one matrix product on the features' device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from units.runtime.files.json_files import FileError, FileReason


@dataclass(frozen=True)
class Fit:
    """A fitted k-means.

    centres: float32 (K, D). inertia: mean squared distance of frames to their centres. dead: centres without frames.
    frames: those that it was fitted on.
    """

    centres: Tensor
    inertia: float
    dead: int
    frames: int


def sample_frames(features: Iterable[Tensor], limit: int, seed: int) -> Tensor:
    """A uniform sample of at most `limit` frames (limit, D) from a stream of (N, D), in memory of that size.

    Reservoir sampling with random keys: the frames with the `limit` smallest keys stay.
    """
    generator = torch.Generator().manual_seed(seed)
    pieces: list[Tensor] = []
    keys: list[Tensor] = []
    count = 0
    for piece in features:
        pieces.append(piece.cpu())
        keys.append(torch.rand(len(piece), generator=generator, dtype=torch.float64))
        count += len(piece)
        if count > 2 * limit:
            kept, kept_keys = _smallest(pieces, keys, limit)
            pieces, keys, count = [kept], [kept_keys], limit
    if not pieces:
        raise ValueError("no features to cluster: the corpus is empty or every file was refused")
    return _smallest(pieces, keys, limit)[0]


def _smallest(pieces: list[Tensor], keys: list[Tensor], limit: int) -> tuple[Tensor, Tensor]:
    """The frames with the smallest keys, in their order, and their keys."""
    frames, key = torch.cat(pieces), torch.cat(keys)
    best = key.topk(min(limit, len(key)), largest=False).indices.sort().values
    return frames[best], key[best]


def fit(frames: Tensor, size: int, seed: int = 0) -> Fit:
    """Fit `size` centres to frames (M, D). Same frames and seed, same centres.

    Raises: ValueError if there are fewer frames than centres.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(frames) < size:
        raise ValueError(f"{len(frames)} frames cannot make {size} centres; give more audio or fewer units")
    model = MiniBatchKMeans(size, batch_size=8192, n_init=3, max_iter=100, random_state=seed)
    model.fit(frames.numpy())
    centres = torch.from_numpy(np.ascontiguousarray(model.cluster_centers_, dtype=np.float32))
    chosen = assign(frames, centres)
    inertia = (frames - centres[chosen]).square().sum(1).mean().item()
    return Fit(centres, inertia, size - len(chosen.unique()), len(frames))


def assign(features: Tensor, centres: Tensor, squared: Tensor | None = None) -> Tensor:
    """Nearest centre of each frame: (N, D), (K, D) -> int64 (N,). |x|^2 is the same for all centres, and left out.

    Args:
        squared: `squares(centres)`, if it is at hand.
    """
    squared = squares(centres) if squared is None else squared
    return torch.addmm(squared, features, centres.T, beta=1, alpha=-2).argmin(1)


def squares(centres: Tensor) -> Tensor:
    """|c|^2 of each centre: (K, D) -> (K,)."""
    return centres.square().sum(1)


def save_centres(path: Path, centres: Tensor) -> None:
    """Write centres (K, D) as safetensors."""
    from safetensors.torch import save_file

    save_file({"centres": centres.contiguous().float().cpu()}, path)


def load_centres(path: Path) -> Tensor:
    """Read centres (K, D) that save_centres wrote.

    Raises: FileError naming the file if it is damaged, or holds no centres.
    """
    from safetensors.torch import load_file

    try:
        centres = load_file(path)["centres"]
        if centres.dim() != 2 or not centres.is_floating_point() or not bool(centres.isfinite().all()):
            raise ValueError(f"centres are {centres.dtype} of shape {tuple(centres.shape)}, or not finite")
    except Exception as error:  # safetensors and torch have errors of their own for a damaged header
        if isinstance(error, OSError):
            raise
        raise FileError(
            FileReason.DAMAGED, f"{path}: damaged, or no centres (K, D) ({' '.join(str(error).split())[:200]})"
        ) from error
    return centres

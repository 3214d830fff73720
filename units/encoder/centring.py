"""Mean normalisation of features before k-means: it takes away much of the speaker and of the room."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CENTRINGS = {
    "utterance": "subtracts its mean from each utterance",
    "frame": "subtracts the utterance's mean, then scales each frame to deviation 1",
    "none": "changes nothing",
}


def centred(features: Tensor, centring: str, mean: Tensor | None = None) -> Tensor:
    """Features (N, D) of an utterance, or of a part of it, made ready for k-means.

    Args:
        centring: one of CENTRINGS.
        mean: of the whole utterance, (D,), where `features` are a part of it.

    Raises: ValueError for an unknown centring.
    """
    if centring not in CENTRINGS:
        raise ValueError(f"centring is {centring!r}; it is one of {', '.join(CENTRINGS)}")
    if centring == "none":
        return features
    features = features - (features.mean(0) if mean is None else mean)
    return features / features.std(1, keepdim=True, unbiased=False).clamp(min=1e-5) if centring == "frame" else features


def takes_mean(centring: str) -> bool:
    """Whether the mean of the whole utterance is needed."""
    return centring != "none"

"""Packed blocks as a batch: token rows, and the sounds in them.

B blocks of a batch, L tokens of a block, S sounds, N frames of a sound, D width of the encoder's states.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.packing.attention import bounds
from units.audio import FrameGrid, load_wav
from units.dataset.feature_set import FeatureSet, Span
from variants.listening import padded
from variants.speech_in.documents import TO_THE_END

Block = dict[str, Tensor]


def collate(
    blocks: list[Block], one_row: bool, with_bounds: bool, grid: FrameGrid, features: FeatureSet | None = None
) -> dict[str, Any]:
    """Blocks as a batch.

    Args:
        one_row: put all blocks end to end in one row, as attention by document and flash-attention take them.
        with_bounds: also give the bounds of documents.
        grid: frames of the encoder, to read wavs by (features: live).
        features: where the states lie (features: FOLDER).

    Returns: input_ids, labels and position_ids, int64 (B, L) or (1, B * L); where there are sounds, frames int64 (S,),
        places int64 counted over all rows, and states float (S, N, D) or wavs, a list of (T,).
    """
    join = joined if one_row else torch.stack
    batch: dict[str, Any] = {name: join([block[name] for block in blocks]) for name in COMMON}
    batch |= bounds(batch["position_ids"]) if with_bounds else {}
    spoken = [(number, block) for number, block in enumerate(blocks) if len(block.get("frames", ()))]
    if spoken:
        length = len(blocks[0]["input_ids"])
        batch["frames"] = torch.cat([block["frames"] for _, block in spoken])
        batch["places"] = torch.cat(
            [block["places"] + block["places_start"] + number * length for number, block in spoken]
        )
        if "audio" in spoken[0][1]:
            batch["wavs"] = [torch.from_numpy(wav) for _, block in spoken for wav in wavs_of(block, grid)]
        elif features is not None:
            batch["states"] = padded([one for _, block in spoken for one in states_of(block, features)])[0]
        else:
            states = torch.cat([block["states"] for _, block in spoken])
            batch["states"] = padded(states.float().split(batch["frames"].tolist()))[0]
    return batch


COMMON = ("input_ids", "labels", "position_ids")


def joined(rows: list[Tensor]) -> Tensor:
    """Rows end to end, as one row of a batch."""
    return torch.cat(rows)[None]


def states_of(block: Block, features: FeatureSet) -> Iterator[Tensor]:
    """The states of a block's recordings in a feature set, in order, float32 (N, D) each."""
    for (shard, start), frames in zip(block["rows"].tolist(), block["frames"].tolist(), strict=True):
        yield torch.from_numpy(features.states(Span(shard, start, frames)).astype(np.float32))


def wavs_of(block: Block, grid: FrameGrid) -> Iterator[np.ndarray]:
    """The recordings of a block, in order."""
    paths: list[str] = []
    for document in block["audio"].split(lengths_of(block["audio_start"])):
        paths += document.numpy().tobytes().decode("utf-8", "surrogateescape").split("\0")
    for path, (start, duration) in zip(paths, block["span"].tolist(), strict=True):
        yield load_wav(path, start, None if duration == TO_THE_END else duration, grid)


def lengths_of(starts: Tensor) -> list[int]:
    """Rows of each document in a side column, from where each row's document begins."""
    edges = torch.nonzero(starts.diff()).flatten() + 1
    return torch.cat([edges.new_zeros(1), edges, edges.new_tensor([len(starts)])]).diff().tolist()

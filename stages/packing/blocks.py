"""Tokens to packed blocks.

A block holds several documents with positions that restart at each; transformers then keeps attention within documents
(if use_cache is off, as the Trainer sets it), so the packed loss equals the unpacked one. The seed decides before
training which documents a block holds, so a resumed stage continues with the next block.

B blocks of a batch, L tokens of a block.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from stages.config import StageConfig
from stages.packing.attention import bounds
from stages.packing.tokens import Tokenised, tokenise
from stages.system import Augmentation, Opened

IGNORED = -100  # label of a token that the loss does not count


def best_fit(lengths: list[int], size: int) -> list[list[int]]:
    """Pack documents of given lengths (each at most `size`) into blocks of `size`: longest first, into the fullest
    block it fits.

    Returns: indices of the documents of each block.
    """
    blocks: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, block), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(rooms, (lengths[index], -1))
        if at == len(rooms):
            blocks.append([index])
            bisect.insort(rooms, (size - lengths[index], len(blocks) - 1))
        else:
            room, block = rooms.pop(at)
            blocks[block].append(index)
            bisect.insort(rooms, (room - lengths[index], block))
    return blocks


class PackedBlocks(torch.utils.data.Dataset):
    """Blocks of documents: their order is a function of the seed alone.

    For training, documents are drawn from weighted sources without replacement; an exhausted source is shuffled again
    (its next epoch). `window` documents at a time are packed. For evaluation, each document comes once.
    Item: {"input_ids", "labels", "position_ids"}, int64 (L,). For each side column NAME also NAME, the rows of all its
    documents (n, ...), and NAME_start, int64 (n,): for each row, where its document begins in the block.
    """

    def __init__(
        self,
        sources: list[tuple[Tokenised, np.ndarray, float]],
        size: int,
        blocks: int | None,
        pad: int,
        seed: int,
        window: int = 512,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Draw and pack.

        Args:
            sources: tokens, the indices of the documents to use, and the weight of each.
            size: tokens of a block, L.
            blocks: how many to draw; None for every document once, whatever the weights.
            pad: token id of the padding.
            augmentation: changes a block in place each time it is read, by random numbers of its index.
        """
        self.sources, self.size, self.pad = [tokenised for tokenised, _, _ in sources], size, pad
        self.seed, self.augmentation = seed, augmentation
        self.task_names = sorted({name for tokenised in self.sources for name in tokenised.task_names})
        self.columns = sorted({name for tokenised in self.sources for name in tokenised.columns})
        draw = np.random.default_rng(seed)
        if blocks is None:
            members, counts = self._each_once([chosen for _, chosen, _ in sources], draw)
        else:
            members, counts = self._drawn([(chosen, weight) for _, chosen, weight in sources], blocks, window, draw)
        self._bounds = np.cumsum([0, *counts])
        self._members = np.concatenate(members)[: self._bounds[-1]] if members else np.empty((0, 2), int)

    def _drawn(
        self, sources: list[tuple[np.ndarray, float]], blocks: int, window: int, draw: np.random.Generator
    ) -> tuple[list[np.ndarray], list[int]]:
        """(source, document) of what is drawn, (n, 2) of each window, and how many documents each block has."""
        stream = self._stream(sources, draw)
        members: list[np.ndarray] = []
        counts: list[int] = []
        while len(counts) < blocks:
            drawn = np.array([next(stream) for _ in range(window)])
            packed = best_fit([int(self.sources[s].lengths[d]) for s, d in drawn.tolist()], self.size)
            draw.shuffle(packed)
            members.append(drawn[[i for block in packed for i in block]])
            counts += map(len, packed)
        return members, counts[:blocks]

    def _each_once(self, sources: list[np.ndarray], draw: np.random.Generator) -> tuple[list[np.ndarray], list[int]]:
        """(source, document) of every document, (n, 2) of each block, and the n of each. A block has documents of one
        source; sources alternate from the start, so that the first blocks represent each source by its share."""
        placed: list[tuple[float, int, np.ndarray]] = []
        for source, chosen in enumerate(sources):
            packed = best_fit(self.sources[source].lengths[chosen].tolist(), self.size)
            draw.shuffle(packed)
            for place, block in enumerate(packed):
                members = np.stack([np.full(len(block), source), chosen[block]], axis=1)
                placed.append((place / len(packed), source, members))
        blocks = [members for _, _, members in sorted(placed, key=lambda entry: entry[:2])]
        return blocks, [len(members) for members in blocks]

    @staticmethod
    def _stream(sources: list[tuple[np.ndarray, float]], draw: np.random.Generator) -> Iterator[tuple[int, int]]:
        shares = np.array([len(chosen) * weight for chosen, weight in sources], float)
        shares /= shares.sum()
        orders = [np.empty(0, int) for _ in sources]
        left = [0] * len(sources)
        while True:
            for source in draw.choice(len(sources), size=256, p=shares).tolist():
                if not left[source]:
                    orders[source] = draw.permutation(sources[source][0])
                    left[source] = len(orders[source])
                left[source] -= 1
                yield source, int(orders[source][left[source]])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def documents_of(self, index: int) -> list[tuple[int, int]]:
        """(source, document) of each document of a block, in order."""
        members = self._members[self._bounds[index] : self._bounds[index + 1]]
        return [(source, document) for source, document in members.tolist()]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = np.full(self.size, self.pad, np.int64)
        labels = np.full(self.size, IGNORED, np.int64)
        positions = np.empty(self.size, np.int64)
        starts: list[int] = []
        at = 0
        for source, document in self.documents_of(index):
            ids, train = self.sources[source].document(document)
            end = at + len(ids)
            tokens[at:end] = ids
            labels[at:end] = np.where(train, ids, IGNORED)
            labels[at] = IGNORED  # the token before it belongs to another document
            positions[at:end] = np.arange(len(ids))
            starts.append(at)
            at = end
        positions[at:] = np.arange(self.size - at)
        columns = {"input_ids": tokens, "labels": labels, "position_ids": positions}
        columns |= self._side_columns(index, starts)
        if self.augmentation:
            self.augmentation(columns, np.random.default_rng((self.seed, index)))
        return {name: torch.from_numpy(column) for name, column in columns.items()}

    def _side_columns(self, index: int, starts: list[int]) -> dict[str, np.ndarray]:
        """Side columns of a block's documents, which begin at `starts`."""
        found: dict[str, np.ndarray] = {}
        for name in self.columns:
            parts = [
                self.sources[source].column(name, document)
                for source, document in self.documents_of(index)
                if name in self.sources[source].columns
            ]
            at = [
                start
                for start, (source, _) in zip(starts, self.documents_of(index), strict=True)
                if name in self.sources[source].columns
            ]
            if parts:
                found[name] = np.concatenate(parts)
                found[f"{name}_start"] = np.repeat(np.array(at, np.int64), [len(part) for part in parts])
        return found

    def tasks(self, index: int) -> torch.Tensor:
        """For each token of a block, the index of its document's task in `task_names`; -1 for padding, int64 (L,)."""
        found = np.full(self.size, -1, np.int64)
        at = 0
        for source, document in self.documents_of(index):
            tokenised = self.sources[source]
            end = at + int(tokenised.lengths[document])
            found[at:end] = self.task_names.index(tokenised.task_names[tokenised.tasks[document]])
            at = end
        return torch.from_numpy(found)

    @property
    def fill(self) -> float:
        """Share of the blocks' tokens that are documents."""
        return float(self._lengths.sum()) / (len(self) * self.size)

    @property
    def mean_length(self) -> float:
        """Tokens of the document that a token stands in, on average over tokens."""
        lengths = self._lengths.astype(float)
        return float((lengths**2).sum() / lengths.sum())

    @property
    def _lengths(self) -> np.ndarray:
        """Tokens of each document, (n,), in no order."""
        each = [
            tokenised.lengths[self._members[self._members[:, 0] == source, 1]]
            for source, tokenised in enumerate(self.sources)
        ]
        return np.concatenate(each)


def load_blocks(opened: Opened, blocks: int, quiet: bool = False) -> tuple[PackedBlocks, PackedBlocks]:
    """Training blocks and held-out blocks of a stage.

    Args:
        opened: the system at the start of the stage.
        blocks: how many training blocks to draw.
        quiet: for processes after the first: do not print how many documents were used, held out and too long, and
            do not verify the checksums of cached tokens.

    Returns: training blocks; blocks in which each held-out document that fits a block comes once.
    Raises: ValueError if there is no source, or one has no document that fits a block.
    """
    config, pad = opened.config, opened.tokenizer.eos_token_id or 0  # no loss covers padding
    if not config.data:
        raise ValueError(f"data of {config.stage} is empty; name at least one source: data: [{{path: ...}}]")
    report = (lambda line: None) if quiet else print
    train, held_out = [], []
    total = 0
    sharing = [source for source in config.data if source.hold_out]
    loaded = [(source, tokenise(source, opened, config.run / "cache", verify=not quiet)) for source in config.data]
    for source, tokenised in loaded:
        tokenised, long = _fit_lengths(tokenised, config)
        held = _held_out(tokenised, config.dev_documents // len(sharing) if source.hold_out else 0)
        keep = np.flatnonzero((tokenised.lengths <= config.block_size) & ~held)
        if not len(keep):
            raise ValueError(
                f"{source.path} has no document of at most {config.block_size} tokens ({long} are longer, and "
                f"{int(held.sum())} are held out); raise block_size, set too_long: cut, or lower dev_documents"
            )
        train.append((tokenised, keep, source.weight))
        held_out.append((tokenised, np.flatnonzero(held & (tokenised.lengths <= config.block_size)), 1.0))
        total += int(tokenised.lengths[keep].sum())
        tasks = np.bincount(tokenised.tasks[keep], minlength=len(tokenised.task_names)).tolist()
        counts = Counter({name: count for name, count in zip(tokenised.task_names, tasks) if count})
        report(
            f"{source.path}: {dict(counts)} documents, {int(held.sum())} held out, "
            f"{long} longer than a block ({config.too_long})"
        )
    packed = PackedBlocks(train, config.block_size, blocks, pad, config.seed, augmentation=opened.augmentation())
    report(f"{total:,} tokens; {len(packed)} blocks of {config.block_size}, filled to {packed.fill:.1%}")
    return packed, PackedBlocks(held_out, config.block_size, None, pad, config.seed)


def _fit_lengths(tokenised: Tokenised, config: StageConfig) -> tuple[Tokenised, int]:
    """Count documents longer than a block; cut or split them if the config says so. No token is copied.

    Documents that are skipped are left out where documents are chosen.
    """
    size, lengths = config.block_size, tokenised.lengths
    long = int((lengths > size).sum())
    if not long or config.too_long == "skip":
        return tokenised, long
    if tokenised.columns:
        raise ValueError(
            f"{long} documents are longer than a block, and documents with speech, or of two replies, cannot be "
            f"{config.too_long}; "
            "raise block_size, or set too_long: skip"
        )
    if config.too_long == "cut":
        return dataclasses.replace(tokenised, lengths=np.minimum(lengths, size)), long
    pieces = -(-lengths // size)
    owner = np.repeat(np.arange(len(lengths)), pieces)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of a piece in its document
    split = dataclasses.replace(
        tokenised,
        starts=tokenised.starts[owner] + place * size,
        lengths=np.minimum(lengths[owner] - place * size, size),
        tasks=tokenised.tasks[owner],
        hashes=tokenised.hashes[owner],  # so all pieces of a document are in one split
    )
    return split, long


def _held_out(tokenised: Tokenised, count: int) -> np.ndarray:
    """About `count` documents, at most a tenth, chosen by a hash of their tokens: equal documents are in one split."""
    share = min(0.1, count / len(tokenised))
    return np.asarray(tokenised.hashes) / 2**64 < share


def stacked(blocks: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Blocks as rows of a batch: each column (B, L)."""
    return {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}


def flattened(blocks: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Blocks end to end as one row, (1, B * L), with the bounds of their documents, as flash-attention needs them."""
    row = {name: torch.cat([block[name] for block in blocks])[None] for name in blocks[0]}
    return row | bounds(row["position_ids"])


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A batch on a device."""
    return {name: part.to(device) if isinstance(part, torch.Tensor) else part for name, part in batch.items()}

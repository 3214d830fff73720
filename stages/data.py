"""Tokens to packed blocks.

A block holds several documents with positions that restart at each; transformers then keeps attention within documents
(if use_cache is off, as the Trainer sets it), so the packed loss is the unpacked one. Which documents a block holds is
decided by the seed before training starts, so a resumed stage reads on where it stopped.

L tokens of a block.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from speechgpt.vocab import UnitVocab
from stages.attention import bounds
from stages.config import StageConfig
from stages.tokens import Tokenised, tokenise
from units.codebook import Codebook

IGNORED = -100  # label of a token that the loss leaves out


def best_fit(lengths: list[int], size: int) -> list[list[int]]:
    """Pack documents of given lengths (each at most `size`) into blocks of `size`: longest first, into the fullest block it fits.

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
    """Blocks of documents: the order is a function of the seed alone.

    To train on, documents are drawn from weighted sources without replacement, source after source exhausted and shuffled
    anew (its next epoch), and packed `window` at a time. To look at, each stands in one block, once.
    Item: {"input_ids", "labels", "position_ids"}, int64 (L,).
    """

    def __init__(
        self,
        sources: list[tuple[Tokenised, np.ndarray, float]],
        size: int,
        blocks: int | None,
        pad: int,
        seed: int,
        window: int = 512,
        noise: float = 0.0,
        vocab: UnitVocab | None = None,
    ) -> None:
        """Draw and pack.

        Args:
            sources: tokens, the indices of the documents to use, and the weight of each.
            size: tokens of a block, L.
            blocks: how many to draw; None for every document once, whatever the weights.
            noise: share of the units in prompts that a look at a block replaces by others.
            vocab: which tokens are units; needed for noise.
        """
        self.sources, self.size, self.pad = [tokenised for tokenised, _, _ in sources], size, pad
        self.seed, self.noise, self.vocab = seed, noise, vocab
        self.task_names = sorted({name for tokenised in self.sources for name in tokenised.task_names})
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
        """(source, document) of every document, (n, 2) of each block, and the n of each. A source has blocks of its own;
        they begin with one of each source and go on by turns, so that a look at the first of them sees each source's
        share."""
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
        at = 0
        for source, document in self.documents_of(index):
            ids, train = self.sources[source].document(document)
            end = at + len(ids)
            tokens[at:end] = ids
            labels[at:end] = np.where(train, ids, IGNORED)
            labels[at] = IGNORED  # the token before it belongs to another document
            positions[at:end] = np.arange(len(ids))
            at = end
        positions[at:] = np.arange(self.size - at)
        if self.noise and self.vocab:
            heard = np.flatnonzero((labels == IGNORED) & self.vocab.is_unit(tokens))
            draw = np.random.default_rng((self.seed, index))
            wrong = heard[draw.random(len(heard)) < self.noise]
            tokens[wrong] = self.vocab.first_unit_id + draw.integers(self.vocab.size, size=len(wrong))
        columns = {"input_ids": tokens, "labels": labels, "position_ids": positions}
        return {name: torch.from_numpy(column) for name, column in columns.items()}

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
        each = [tokenised.lengths[self._members[self._members[:, 0] == source, 1]]
                for source, tokenised in enumerate(self.sources)]  # fmt: skip
        return np.concatenate(each)


def load_blocks(
    config: StageConfig, tokenizer: PreTrainedTokenizerBase, codebook: Codebook | None, blocks: int, quiet: bool = False
) -> tuple[PackedBlocks, PackedBlocks]:
    """Training blocks of a stage, so many, and dev blocks, in which each held-out document that fits a block stands once;
    unless quiet, prints what was kept, held out and too long."""
    say = (lambda line: None) if quiet else print
    pad = tokenizer.eos_token_id
    train, dev = [], []
    total = 0
    watched = [source for source in config.data if source.hold_out]
    loaded = [(source, tokenise(source, tokenizer, config, codebook, config.run / "cache")) for source in config.data]
    for source, tokenised in loaded:
        tokenised, long = _fit_lengths(tokenised, config)
        held = _held_out(tokenised, config.dev_documents // len(watched) if source.hold_out else 0)
        keep = np.flatnonzero((tokenised.lengths <= config.block_size) & ~held)
        if not len(keep):
            raise ValueError(
                f"{source.path} has no document of at most {config.block_size} tokens ({long} are longer); "
                "raise block_size, or set too_long: cut"
            )
        train.append((tokenised, keep, source.weight))
        dev.append((tokenised, np.flatnonzero(held & (tokenised.lengths <= config.block_size)), 1.0))
        total += int(tokenised.lengths[keep].sum())
        tasks = np.bincount(tokenised.tasks[keep], minlength=len(tokenised.task_names)).tolist()
        counts = Counter({name: count for name, count in zip(tokenised.task_names, tasks) if count})
        say(
            f"{source.path}: {dict(counts)} documents, {int(held.sum())} held out, {long} longer than a block ({config.too_long})"
        )
    vocab = UnitVocab.from_words(tokenizer.get_vocab()) if config.unit_noise else None
    packed = PackedBlocks(train, config.block_size, blocks, pad, config.seed, noise=config.unit_noise, vocab=vocab)
    held_blocks = PackedBlocks(dev, config.block_size, None, pad, config.seed)
    say(f"{total:,} tokens; {len(packed)} blocks of {config.block_size}, filled to {packed.fill:.1%}")
    return packed, held_blocks


def _fit_lengths(tokenised: Tokenised, config: StageConfig) -> tuple[Tokenised, int]:
    """Count documents longer than a block; cut or split them if the config says so (skipping happens where documents are
    chosen). No token is copied."""
    size, lengths = config.block_size, tokenised.lengths
    long = int((lengths > size).sum())
    if not long or config.too_long == "skip":
        return tokenised, long
    if config.too_long == "cut":
        return dataclasses.replace(tokenised, lengths=np.minimum(lengths, size)), long
    pieces = -(-lengths // size)
    owner = np.repeat(np.arange(len(lengths)), pieces)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # of a piece in its document
    return dataclasses.replace(
        tokenised,
        starts=tokenised.starts[owner] + place * size,
        lengths=np.minimum(lengths[owner] - place * size, size),
        tasks=tokenised.tasks[owner],
        hashes=tokenised.hashes[owner],  # so all pieces of a document are held out, or none
    ), long


def _held_out(tokenised: Tokenised, count: int) -> np.ndarray:
    """About `count` documents, chosen by hash of their tokens, so that equal documents stand on one side; at most a tenth."""
    share = min(0.1, count / len(tokenised))
    return np.asarray(tokenised.hashes) / 2**64 < share


def flattened(blocks: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Blocks end to end as one row, (1, B * L), and the bounds of their documents: what flash-attention takes."""
    row = {name: torch.cat([block[name] for block in blocks])[None] for name in blocks[0]}
    return row | bounds(row["position_ids"])

"""Training data: documents to tokens, tokens to packed blocks.

A document is a conversation, an utterance of a unit set, or a line of text. Documents are tokenised once into flat
arrays, cached under a key of everything that went in. A block holds several documents with positions that restart at
each; transformers then keeps attention within documents (if use_cache is off, as the Trainer sets it), so the packed
loss is the unpacked one.

L tokens of a block.
"""

from __future__ import annotations

import bisect
import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from instruct_data.records import read_conversations
from speechgpt import dialogue as template
from speechgpt.dialogue import Dialogue, Rendered
from stages.config import Source, StageConfig
from units.codebook import Codebook
from units.manifest import written_whole
from units.progress import progress
from units.unit_set import MARKER, read_unit_set

IGNORED = -100  # label of a token that the loss leaves out


@dataclass(frozen=True)
class Tokenised:
    """Documents of one source. tokens, train: flat arrays; offsets (documents + 1,); tasks: index into task_names."""

    tokens: np.ndarray
    train: np.ndarray
    offsets: np.ndarray
    tasks: np.ndarray
    task_names: list[str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and train mask of one document."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.train[span]


def documents(
    source: Source, path: Path, tokenizer: PreTrainedTokenizerBase, config: StageConfig, codebook: Codebook | None
) -> Iterator[tuple[str, Rendered]]:
    """(task, tokens) of each document of a source.

    Raises: CodebookMismatch if its units are not the model's; FileNotFoundError if it is not there.
    """
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    ids = tokenizer.encode(line.strip(), split_special_tokens=True) + [tokenizer.eos_token_id]
                    yield "text", Rendered(ids, [True] * len(ids))
        return
    dialogue = Dialogue(tokenizer, config.prefix)
    if path.is_dir():
        unit_set = read_unit_set(path)
        _check(codebook, unit_set.codebook, path)
        for record in unit_set:
            ids = dialogue.vocab.encode(record.units.ids)
            if tokenizer.bos_token_id is not None:
                ids.insert(0, tokenizer.bos_token_id)
            yield "units", Rendered(ids, [True] * len(ids))
        return
    conversations = read_conversations(path)
    _check(codebook, conversations.codebook, path)
    for conversation in conversations:
        if source.tasks is None or conversation.task in source.tasks:
            yield conversation.task, dialogue.render(conversation, config.train_on_prompt)


def _check(mine: Codebook | None, theirs: Codebook | None, path: Path) -> None:
    if theirs is not None:
        if mine is None:
            raise ValueError(
                f"{path} holds units of {theirs.name!r}, but the model has none; set widen, or start from stage 1"
            )
        mine.check_same(theirs, "the model", str(path))


def tokenise(
    source: Source, tokenizer: PreTrainedTokenizerBase, config: StageConfig, codebook: Codebook | None, cache: Path
) -> Tokenised:
    """Tokenise a source, or read it from the cache if the same source met the same tokenizer and settings before."""
    path = config.at(source.path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; it is named under data: in the config of {config.stage}")
    saved = cache / f"{_content_key(source, path, tokenizer, config, codebook)}.npz"
    if not saved.exists():
        tokens, train, lengths, tasks, names = [], [], [], [], []
        for task, rendered in progress(
            documents(source, path, tokenizer, config, codebook), desc=f"tokens of {source.path}", unit="documents"
        ):
            if task not in names:
                names.append(task)
            tasks.append(names.index(task))
            lengths.append(len(rendered.ids))
            tokens.append(np.asarray(rendered.ids, np.int32))
            train.append(np.asarray(rendered.train, bool))
        if not tokens:
            raise ValueError(f"{path} holds no documents{f' of the tasks {source.tasks}' if source.tasks else ''}")
        with written_whole(saved, "wb") as file:
            np.savez(file, tokens=np.concatenate(tokens), train=np.concatenate(train), offsets=np.cumsum([0, *lengths]),
                     tasks=np.asarray(tasks), task_names=np.asarray(names))  # fmt: skip
    with np.load(saved, allow_pickle=False) as found:
        return Tokenised(
            found["tokens"], found["train"], found["offsets"], found["tasks"], found["task_names"].tolist()
        )


def _content_key(
    source: Source, path: Path, tokenizer: PreTrainedTokenizerBase, config: StageConfig, codebook: Codebook | None
) -> str:
    settings = [source.tasks, config.prefix, config.train_on_prompt, codebook and codebook.fingerprint]
    digest = hashlib.sha256(json.dumps(settings).encode())
    digest.update(inspect.getsource(template).encode())  # another template means other tokens
    for word, token in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        digest.update(f"{token} {word}\n".encode())
    for part in sorted(path.glob("*.parquet")) + [path / MARKER] if path.is_dir() else [path]:
        digest.update(part.read_bytes())
    return digest.hexdigest()[:24]


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
    """Blocks of documents drawn from weighted sources: the order is a function of the seed alone.

    Documents are drawn without replacement, source after source exhausted and shuffled anew, and packed `window` at a
    time. Item: {"input_ids", "labels", "position_ids"}, int64 (L,).
    """

    def __init__(
        self,
        sources: list[tuple[Tokenised, np.ndarray, float]],
        size: int,
        blocks: int,
        pad: int,
        seed: int,
        window: int = 512,
    ) -> None:
        """sources: tokens, the indices of the documents to use, and the weight of each."""
        self.sources, self.size, self.pad = [tokenised for tokenised, _, _ in sources], size, pad
        self.blocks: list[list[tuple[int, int]]] = []
        draw = np.random.default_rng(seed)
        stream = self._stream([(chosen, weight) for _, chosen, weight in sources], draw)
        while len(self.blocks) < blocks:
            drawn = [next(stream) for _ in range(window)]
            lengths = [int(self.sources[s].lengths[d]) for s, d in drawn]
            packed = best_fit(lengths, size)
            draw.shuffle(packed)
            self.blocks += [[drawn[i] for i in block] for block in packed]
        self.blocks = self.blocks[:blocks]

    @staticmethod
    def _stream(sources: list[tuple[np.ndarray, float]], draw: np.random.Generator) -> Iterator[tuple[int, int]]:
        shares = np.array([len(chosen) * weight for chosen, weight in sources], float)
        shares /= shares.sum()
        queues: list[list[int]] = [[] for _ in sources]
        while True:
            for source in draw.choice(len(sources), size=256, p=shares):
                if not queues[source]:
                    queues[source] = draw.permutation(sources[source][0]).tolist()
                yield int(source), queues[source].pop()

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens, labels, positions = [], [], []
        for source, document in self.blocks[index]:
            ids, train = self.sources[source].document(document)
            train = train.copy()
            train[0] = False  # the token before it belongs to another document
            tokens.append(ids)
            labels.append(np.where(train, ids, IGNORED))
            positions.append(np.arange(len(ids)))
        room = self.size - sum(map(len, tokens))
        tokens.append(np.full(room, self.pad))
        labels.append(np.full(room, IGNORED))
        positions.append(np.arange(room))
        columns = {"input_ids": tokens, "labels": labels, "position_ids": positions}
        return {name: torch.from_numpy(np.concatenate(column).astype(np.int64)) for name, column in columns.items()}

    @property
    def fill(self) -> float:
        """Share of the blocks' tokens that are documents."""
        used = sum(int(self.sources[s].lengths[d]) for block in self.blocks for s, d in block)
        return used / (len(self.blocks) * self.size)


def load_blocks(
    config: StageConfig, tokenizer: PreTrainedTokenizerBase, codebook: Codebook | None, blocks: int, quiet: bool = False
) -> tuple[PackedBlocks, PackedBlocks]:
    """Training blocks and dev blocks of a stage; unless quiet, prints what was kept, held out and too long."""
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
        counts = Counter(tokenised.task_names[t] for t in tokenised.tasks[keep])
        say(
            f"{source.path}: {dict(counts)} documents, {int(held.sum())} held out, {long} longer than a block ({config.too_long})"
        )
    packed = PackedBlocks(train, config.block_size, blocks, pad, config.seed)
    dev_tokens = sum(int(t.lengths[chosen].sum()) for t, chosen, _ in dev)
    dev_blocks = max(1, dev_tokens // config.block_size) if dev_tokens else 0
    held_blocks = PackedBlocks(dev, config.block_size, dev_blocks, pad, config.seed)
    say(f"{total:,} tokens; {len(packed)} blocks of {config.block_size}, filled to {packed.fill:.1%}")
    return packed, held_blocks


def _fit_lengths(tokenised: Tokenised, config: StageConfig) -> tuple[Tokenised, int]:
    """Count documents longer than a block; cut them if the config says so (skipping happens where documents are chosen)."""
    long = np.flatnonzero(tokenised.lengths > config.block_size)
    if not len(long) or config.too_long == "skip":
        return tokenised, len(long)
    kept = np.minimum(tokenised.lengths, config.block_size)
    index = np.concatenate([np.arange(start, start + n) for start, n in zip(tokenised.offsets[:-1], kept)])
    cut = Tokenised(
        tokenised.tokens[index], tokenised.train[index], np.cumsum([0, *kept]), tokenised.tasks, tokenised.task_names
    )
    return cut, len(long)


def _held_out(tokenised: Tokenised, count: int) -> np.ndarray:
    """About `count` documents, chosen by hash of their tokens, so that equal documents stand on one side; at most a tenth."""
    share = min(0.1, count / len(tokenised))
    hashes = [
        hashlib.blake2b(tokenised.document(i)[0].tobytes(), digest_size=8).digest() for i in range(len(tokenised))
    ]
    return np.array([int.from_bytes(h, "big") / 2**64 for h in hashes]) < share

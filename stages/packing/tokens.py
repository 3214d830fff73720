"""Documents to tokens: each source is tokenised once, into flat arrays on disk that are then memory-mapped.

The name of a cache folder is a hash of everything that decides the tokens: a change of the source, the tokenizer or the
settings gives another folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.config import Source
from stages.system import Column, Documents, Opened
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import read_json
from units.runtime.progress import progress

FACTS = "facts.json"  # completion file of a cache folder
DIGESTS = "digests.json"  # hashes of the files that were read
CACHE_VERSION = 5  # of the files in a cache folder; raise it when they change
PIECE = 1 << 22  # bytes that are read at once
KINDS = {"tokens": np.int32, "train": bool, "lengths": np.int64, "tasks": np.int16, "hashes": np.uint64}


@dataclass(frozen=True)
class Tokenised:
    """Documents of one source, n of them.

    tokens, train: ids, and whether the loss counts them, flat. starts, lengths (n,): where each document lies.
    tasks (n,): index into task_names. hashes (n,): uint64 of each document's ids. columns: side columns by name.
    """

    tokens: np.ndarray
    train: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    tasks: np.ndarray
    hashes: np.ndarray
    task_names: list[str]
    columns: Mapping[str, Column] = field(default_factory=dict)
    _offsets: dict[str, np.ndarray] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name, column in self.columns.items():
            self._offsets[name] = np.concatenate([[0], np.cumsum(column.counts)])

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and train mask of one document."""
        span = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return self.tokens[span], self.train[span]

    def column(self, name: str, index: int) -> np.ndarray:
        """Rows of a side column that belong to one document."""
        start, end = self._offsets[name][index : index + 2]
        return self.columns[name].values[start:end]


def tokenise(source: Source, opened: Opened, cache: Path, verify: bool = True) -> Tokenised:
    """Tokenise a source, or map it from the cache if it was tokenised before with the same settings.

    Args:
        verify: compare the cache with its checksums, which reads all of it; a damaged one is made again. Processes
            after the first need not.

    Raises: FileNotFoundError if the source, or a file that it needs, does not exist; ValueError if it has no documents
        or does not fit the model.
    """
    config = opened.config
    path = config.at(source.path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; it is named under data: in the config of {config.stage}")
    saved = cache / _cache_name(source, path, opened, cache / DIGESTS)
    found = _mapped(saved, verify)
    if found is None:
        part = cache / f".{saved.name}.{os.getpid()}.part"
        try:
            shards = progress(
                opened.documents(source, path), desc=f"tokens of {source.path}", unit="shards or documents"
            )
            if not _write(part, iter(shards)):
                raise ValueError(f"{path} holds no documents{f' of the tasks {source.tasks}' if source.tasks else ''}")
            shutil.rmtree(saved, ignore_errors=True)  # a folder that exists here is damaged
            part.rename(saved)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        found = _mapped(saved, verify)
    if found is None:
        raise OSError(f"{saved} could not be written; is the disk full?")
    return found


class _Writer:
    """Appends arrays to the files of a cache folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.files: dict[str, IO[bytes]] = {}
        self.sizes: dict[str, int] = {}
        self.checksums: dict[str, int] = {}  # CRC-32 of each file

    def append(self, name: str, array: np.ndarray) -> None:
        if name not in self.files:
            self.files[name] = (self.folder / f"{name}.bin").open("wb")
            self.sizes[name] = self.checksums[name] = 0
        content = np.ascontiguousarray(array).data
        self.sizes[name] += self.files[name].write(content)
        self.checksums[name] = zlib.crc32(content, self.checksums[name])

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def _write(folder: Path, shards: Iterator[Documents]) -> int:
    """Stream documents into a cache folder; returns how many there were."""
    tasks: list[str] = []
    shapes: dict[str, tuple[str, list[int]]] = {}  # of side columns: type, and shape of a row
    writer = _Writer(folder)
    count = 0
    try:
        for shard in shards:
            if shard.task not in tasks:
                tasks.append(shard.task)
            if count and shard.columns.keys() != shapes.keys():
                raise ValueError(f"documents have the side columns {sorted(shard.columns)} and {sorted(shapes)}")
            count += len(shard.lengths)
            writer.append("tokens", shard.ids)
            writer.append("train", shard.train)
            writer.append("lengths", shard.lengths.astype(np.int64))
            writer.append("tasks", np.full(len(shard.lengths), tasks.index(shard.task), np.int16))
            writer.append("hashes", _hashes(shard))
            for name, column in shard.columns.items():
                shapes[name] = (str(column.values.dtype), list(column.values.shape[1:]))
                writer.append(f"{name}.values", column.values)
                writer.append(f"{name}.counts", column.counts.astype(np.int64))
    finally:
        writer.close()
    facts: dict[str, Any] = {"task_names": tasks, "bytes": writer.sizes, "columns": shapes}
    facts["crc32"] = {**writer.checksums, FACTS: _checksum(facts)}
    (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return count


def _hashes(shard: Documents) -> np.ndarray:
    """Hash of each document's ids, and of the side columns that identify it, uint64 (n,)."""
    columns = [column for column in shard.columns.values() if column.identifies]
    parts = [(shard.ids, shard.lengths), *((column.values, column.counts) for column in columns)]
    digests = [hashlib.blake2b(digest_size=8) for _ in range(len(shard.lengths))]
    for values, counts in parts:
        raw = np.ascontiguousarray(values).data.cast("B") if values.size else memoryview(b"")
        width = values.itemsize * int(np.prod(values.shape[1:], dtype=np.int64))
        ends = np.cumsum(counts) * width
        for digest, end, size in zip(digests, ends.tolist(), (np.asarray(counts) * width).tolist()):
            digest.update(raw[end - size : end])
    return np.frombuffer(b"".join(digest.digest() for digest in digests), ">u8").astype(np.uint64)


def _mapped(folder: Path, verify: bool = True) -> Tokenised | None:
    """The arrays of a cache folder, or None if it does not exist, is not complete, or is damaged."""
    if not (folder / FACTS).exists():
        return None
    try:
        facts = read_json(folder / FACTS, {"task_names": list, "bytes": dict, "crc32": dict, "columns": dict})
        if verify:
            _verify(folder, facts)
        return _arrays(folder, facts)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        print(f"{folder} is damaged ({type(error).__name__}: {error}); its documents are tokenised again")
        return None


def _verify(folder: Path, facts: dict[str, Any]) -> None:
    """Compare the files of a cache folder with their checksums. Raises ValueError naming one that differs."""
    if facts["crc32"].get(FACTS) != _checksum(facts):
        raise ValueError(f"{FACTS} is not what was written: its checksum differs")
    for name in facts["bytes"]:
        found, path = 0, folder / f"{name}.bin"
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                found = zlib.crc32(piece, found)
        if found != facts["crc32"].get(name):
            raise ValueError(f"{path.name} is not what was written: its checksum differs")


def _checksum(facts: dict[str, Any]) -> int:
    """CRC-32 of the facts of a cache folder, without the checksums that they hold."""
    plain = json.dumps({name: value for name, value in facts.items() if name != "crc32"}, sort_keys=True)
    return zlib.crc32(plain.encode())


def _arrays(folder: Path, facts: dict[str, Any]) -> Tokenised | None:
    """The arrays that the facts of a cache folder name; None if a file is missing or of another size."""
    paths = {name: folder / f"{name}.bin" for name in facts["bytes"]}
    if any(not path.exists() or path.stat().st_size != facts["bytes"][name] for name, path in paths.items()):
        return None

    def mapped(name: str, kind: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
        if not facts["bytes"][name]:
            return np.empty((0, *shape), kind)
        return np.memmap(paths[name], kind, "r").reshape(-1, *shape)

    tokens, train, lengths, tasks, hashes = (mapped(name, kind) for name, kind in KINDS.items())
    columns = {
        name: Column(mapped(f"{name}.values", kind, tuple(shape)), np.asarray(mapped(f"{name}.counts", np.int64)))
        for name, (kind, shape) in facts["columns"].items()
    }
    starts = np.cumsum(lengths) - lengths
    names = facts["task_names"]
    if not all(isinstance(name, str) for name in names) or tasks.max(initial=0) >= len(names):
        raise ValueError(f"task_names is {names!r:.60}")
    return Tokenised(tokens, train, starts, np.asarray(lengths), tasks, hashes, names, columns)


def _cache_name(source: Source, path: Path, opened: Opened, digests: Path) -> str:
    """Hash of everything that decides a source's tokens.

    Args:
        digests: file that keeps the hashes of files.
    """
    settings = [CACHE_VERSION, source.tasks, opened.cache_key(source), _tokenizer_key(opened.tokenizer)]
    files = opened.files(source, path)
    settings += [
        [file.name for file in files],
        _digests(files, digests),
    ]  # a TextGrid's name is the id of its utterance
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What decides how a tokenizer splits text; calls change its truncation and padding, which do not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else {"words": tokenizer.get_vocab()}
    rules = {name: rules[name] for name in rules.keys() - {"truncation", "padding"}}
    return [tokenizer.bos_token_id, tokenizer.eos_token_id, rules]


def _digests(paths: list[Path], kept: Path) -> list[str]:
    """sha256 of each file.

    Args:
        kept: JSON file that remembers hashes by path, size and modification time, so that a second start, and each rank
            after the first, reads no data. If it is damaged or cannot be written, files are read again.
    """
    found: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError, RecursionError):
        found.update(json.loads(kept.read_text(encoding="utf-8")))
    stamps = [f"{path.absolute()} {(facts := path.stat()).st_size} {facts.st_mtime_ns}" for path in paths]
    new = [(stamp, path) for stamp, path in zip(stamps, paths) if stamp not in found]
    for stamp, path in progress(new, desc=f"hashes of {paths[0].parent}", unit="files") if new else ():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        found[stamp] = digest.hexdigest()
    if new:
        with suppress(OSError), written_whole(kept) as file:
            json.dump(found, file)
    return [found[stamp] for stamp in stamps]

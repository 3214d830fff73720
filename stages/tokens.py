"""Documents to tokens: each source is tokenised once, into flat arrays on disk that are then only mapped into memory.

A document is a conversation, an utterance of a unit set, or a line of text. The cache's key is a hash of everything
that decides the tokens, so another source, tokenizer, template or prefix never meets a stale one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from instruct_data.build.records import read_conversations
from speechgpt import dialogue as template
from speechgpt.dialogue import Dialogue
from speechgpt.vocab import UnitVocab
from stages import interleave
from stages.config import Interleaving, Source, StageConfig
from stages.interleave import Part, interleaved
from units.codebook import Codebook
from units.corpus.alignments import Alignments
from units.dataset.unit_set import COMPLETION_FILE, UnitSet, read_unit_set
from units.notation import EOSP, SOSP
from units.runtime.ahead import worked_ahead
from units.runtime.atomic import written_whole
from units.runtime.progress import progress

FACTS = "facts.json"
DIGESTS = "digests.json"  # of the files that were read
LAYOUT = 3  # of the cache; another number makes caches anew
MOST_THREADS = 8  # that read shards ahead
COLUMNS = ("tokens", "train", "lengths", "tasks", "hashes")


@dataclass(frozen=True)
class Tokenised:
    """Documents of one source, n of them.

    tokens, train: ids, and whether the loss counts them, flat. starts, lengths (n,): where each document lies.
    tasks (n,): index into task_names. hashes (n,): uint64 of each document's ids.
    """

    tokens: np.ndarray
    train: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    tasks: np.ndarray
    hashes: np.ndarray
    task_names: list[str]

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and train mask of one document."""
        span = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return self.tokens[span], self.train[span]


@dataclass(frozen=True)
class Documents:
    """Some documents of one task, end to end: ids and train mask, flat, and the length of each."""

    task: str
    ids: np.ndarray
    train: np.ndarray
    lengths: np.ndarray


def documents(
    source: Source, path: Path, tokenizer: PreTrainedTokenizerBase, config: StageConfig, codebook: Codebook | None
) -> Iterator[Documents]:
    """The documents of a source; a plain unit set gives a shard at a time, everything else one document.

    Raises: CodebookMismatch if its units are not the model's; FileNotFoundError if it is not there; ValueError for
    interleaving what is no unit set, or with alignments that fit no utterance.
    """
    if source.interleave and not path.is_dir():
        raise ValueError(f"{source.path}: interleave is for unit sets, which are folders; leave it out here")
    if path.suffix == ".txt":
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.strip():
                    ids = tokenizer.encode(line.strip(), split_special_tokens=True) + [tokenizer.eos_token_id]
                    yield _one("text", ids, [True] * len(ids))
        return
    dialogue = Dialogue(tokenizer, config.prefix)
    if path.is_dir():
        unit_set = read_unit_set(path)
        _check(codebook, unit_set.codebook, path)
        if source.interleave:
            aligned = config.at(source.interleave.alignments)
            yield from _interleave(unit_set, source.interleave, aligned, config.seed, dialogue)
            return
        bos = tokenizer.bos_token_id
        yield from worked_ahead(
            lambda index: _spell(unit_set.table(index, ["units"])["units"], dialogue.vocab, bos, path),
            range(unit_set.shards),
            min(MOST_THREADS, os.cpu_count() or 1),
        )
        return
    conversations = read_conversations(path)
    _check(codebook, conversations.codebook, path)
    for conversation in conversations:
        if source.tasks is None or conversation.task in source.tasks:
            rendered = dialogue.render(conversation, config.train_on_prompt)
            yield _one(conversation.task, rendered.ids, rendered.train)


def _one(task: str, ids: list[int], train: list[bool]) -> Documents:
    return Documents(task, np.asarray(ids, np.int32), np.asarray(train, bool), np.array([len(ids)]))


def _interleave(
    unit_set: UnitSet, how: Interleaving, aligned: Path, seed: int, dialogue: Dialogue
) -> Iterator[Documents]:
    """Every utterance of a unit set; one without words in the alignments, or that they do not fit, stays units."""
    alignments = Alignments.open(aligned, how.tier)
    mixed, unaligned, misfits = 0, 0, []
    for record in unit_set:
        parts: list[Part] = []
        try:
            words = alignments.segments(record.id)
            parts = interleaved(record, words, how, seed) if words else []
            unaligned += not parts
        except ValueError as error:  # AlignmentError is one
            misfits.append(str(error))
        mixed += bool(parts)
        yield _mix(parts or [record.units.ids], dialogue)
    first = f"; the first: {misfits[0]}" if misfits else ""
    if not mixed:
        raise ValueError(
            f"not one utterance of {unit_set.folder} could be interleaved by {aligned}: it has no words for "
            f"{unaligned}, and does not fit {len(misfits)}{first}"
        )
    print(f"{mixed} utterances interleaved; {unaligned} without words in {aligned} and {len(misfits)} that it does not fit "
          f"stay units{first}", flush=True)  # fmt: skip


def _mix(parts: list[Part], dialogue: Dialogue) -> Documents:
    """One utterance in units and text by turns."""
    bos = dialogue.tokenizer.bos_token_id
    ids = [] if bos is None else [bos]
    for part in parts:
        ids += dialogue.encode_text(part) if isinstance(part, str) else dialogue.vocab.encode(part)
    return _one("interleaved" if any(isinstance(part, str) for part in parts) else "units", ids, [True] * len(ids))


def _spell(column: pa.ChunkedArray, vocab: UnitVocab, bos: int | None, path: Path) -> Documents:
    """Every utterance of a shard as `<s><sosp>units<eosp>`: what `vocab.encode` does, for all at once."""
    arrays = column.chunks
    units = np.concatenate([array.flatten().to_numpy(zero_copy_only=False) for array in arrays]).astype(np.int32)
    counts = np.concatenate([array.value_lengths().to_numpy(zero_copy_only=False) for array in arrays]).astype(np.int64)
    if len(units) and units.max() >= vocab.size:
        raise ValueError(f"{path} holds unit {units.max()}; this vocabulary has units 0 to {vocab.size - 1}")
    opening = [vocab.marker(SOSP)] if bos is None else [bos, vocab.marker(SOSP)]
    lengths = counts + len(opening) + 1
    ends = np.cumsum(lengths)
    ids = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
    body = np.ones(len(ids), bool)
    for offset, token in enumerate(opening):
        ids[ends - lengths + offset] = token
        body[ends - lengths + offset] = False
    ids[ends - 1] = vocab.marker(EOSP)
    body[ends - 1] = False
    ids[body] = units + vocab.first_unit_id
    return Documents("units", ids, np.ones(len(ids), bool), lengths)


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
    """Tokenise a source, or map it from the cache if the same source met the same tokenizer and settings before."""
    path = config.at(source.path)
    for needed in [path] + ([config.at(source.interleave.alignments)] if source.interleave else []):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is not there; it is named under data: in the config of {config.stage}")
    saved = cache / _content_key(source, path, tokenizer, config, codebook, cache / DIGESTS)
    found = _mapped(saved)
    if found is None:
        part = cache / f".{saved.name}.{os.getpid()}.part"
        try:
            shards = documents(source, path, tokenizer, config, codebook)
            if not _write(part, progress(shards, desc=f"tokens of {source.path}", unit="shards or documents")):
                raise ValueError(f"{path} holds no documents{f' of the tasks {source.tasks}' if source.tasks else ''}")
            shutil.rmtree(saved, ignore_errors=True)  # one that is there was damaged
            part.rename(saved)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        found = _mapped(saved)
    if found is None:
        raise OSError(f"{saved} could not be written whole; is the disk full?")
    return found


def _write(folder: Path, shards: Iterator[Documents]) -> int:
    """Stream documents into a cache folder; returns how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    names: list[str] = []
    sizes = dict.fromkeys(COLUMNS, 0)
    files = {name: (folder / f"{name}.bin").open("wb") for name in COLUMNS}
    try:
        for shard in shards:
            if shard.task not in names:
                names.append(shard.task)
            bounds = np.cumsum(shard.lengths) * shard.ids.itemsize
            raw = shard.ids.data.cast("B")
            digests = b"".join(
                hashlib.blake2b(raw[end - size : end], digest_size=8).digest()
                for end, size in zip(bounds.tolist(), (shard.lengths * shard.ids.itemsize).tolist())
            )
            columns: tuple[np.ndarray, ...] = (
                shard.ids,
                shard.train,
                shard.lengths.astype(np.int64),
                np.full(len(shard.lengths), names.index(shard.task), np.int16),
                np.frombuffer(digests, ">u8").astype(np.uint64),
            )
            for name, column in zip(COLUMNS, columns):
                sizes[name] += files[name].write(column.data)
    finally:
        for file in files.values():
            file.close()
    (folder / FACTS).write_text(json.dumps({"task_names": names, "bytes": sizes}), encoding="utf-8")
    return sizes["hashes"] // 8


def _mapped(folder: Path) -> Tokenised | None:
    """A cache folder's arrays, or None if it is not there or not whole."""
    if not (folder / FACTS).exists():
        return None
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    paths = {name: folder / f"{name}.bin" for name in COLUMNS}
    if any(not path.exists() or path.stat().st_size != facts["bytes"][name] for name, path in paths.items()):
        return None
    kinds = (np.int32, bool, np.int64, np.int16, np.uint64)
    tokens, train, lengths, tasks, hashes = (
        np.memmap(path, kind, "r") for path, kind in zip(paths.values(), kinds, strict=True)
    )
    starts = np.cumsum(lengths) - lengths
    return Tokenised(tokens, train, starts, np.asarray(lengths), tasks, hashes, facts["task_names"])


def _content_key(
    source: Source, path: Path, tokenizer: PreTrainedTokenizerBase, config: StageConfig, codebook: Codebook | None,
    known: Path,
) -> str:  # fmt: skip
    """Hash of everything that decides a source's tokens. known: where files' digests are remembered."""
    settings: list = [LAYOUT, source.tasks, config.prefix, config.train_on_prompt, codebook and codebook.fingerprint]
    settings += [inspect.getsource(template), tokenizer.bos_token_id, tokenizer.eos_token_id]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else {"words": tokenizer.get_vocab()}
    settings.append({name: rules[name] for name in rules.keys() - {"truncation", "padding"}})  # which calls change
    read = sorted(path.glob("*.parquet")) + [path / COMPLETION_FILE] if path.is_dir() else [path]
    if source.interleave:
        settings += [dataclasses.asdict(source.interleave), config.seed, inspect.getsource(interleave)]
        aligned = config.at(source.interleave.alignments)
        read += sorted(part for part in aligned.rglob("*") if part.is_file()) if aligned.is_dir() else [aligned]
    settings += [[part.name for part in read], _digests(read, known)]  # a TextGrid's name says whose it is
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def _digests(paths: list[Path], known: Path) -> list[str]:
    """sha256 of each file. `known` remembers them by path, size and time of change, so that a second start, and each
    rank after the first, reads no data; where it is broken or cannot be written, files are read again."""
    found: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):
        found.update(json.loads(known.read_text(encoding="utf-8")))
    stamps = [f"{path.absolute()} {(facts := path.stat()).st_size} {facts.st_mtime_ns}" for path in paths]
    new = [(stamp, path) for stamp, path in zip(stamps, paths) if stamp not in found]
    for stamp, path in progress(new, desc=f"hashes of {paths[0].parent}", unit="files") if new else ():
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
        found[stamp] = digest.hexdigest()
    if new:
        with suppress(OSError), written_whole(known) as file:
            json.dump(found, file)
    return [found[stamp] for stamp in stamps]

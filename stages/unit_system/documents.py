"""Token rows of SpeechGPT's sources: conversations, unit sets with or without word alignments, and text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from instruct_data.build.records import read_conversations
from speechgpt.dialogue import Dialogue
from speechgpt.vocab import UnitVocab
from stages.config import Interleaving, Source, StageConfig
from stages.system import Documents
from stages.unit_system.interleave import Stretch, interleaved
from units.codebook import Codebook
from units.corpus.alignments import Alignments
from units.dataset.unit_set import UnitSet, read_unit_set
from units.notation import EOSP, SOSP
from units.runtime.ahead import worked_ahead
from units.runtime.files.json_files import BOM, as_text

DOCUMENTS_VERSION = 1  # for caches of tokens: raise it when speechgpt.dialogue, or this file, gives other tokens
MOST_THREADS = 8  # that read shards ahead


def documents(
    source: Source, path: Path, tokenizer: PreTrainedTokenizerBase, config: StageConfig, codebook: Codebook | None
) -> Iterator[Documents]:
    """The documents of a source; a unit set gives a shard at a time, everything else one document.

    Raises: CodebookMismatch if its units are not the model's; ValueError if it cannot be interleaved.
    """
    if path.suffix == ".txt":
        yield from _lines(path, tokenizer if codebook is None else Dialogue(tokenizer).text.tokenizer)
        return
    dialogue = Dialogue(tokenizer, config.prefix, interleaving=config.interleave_replies)
    if path.is_dir():
        unit_set = read_unit_set(path)
        check_codebook(codebook, unit_set.codebook, path)
        if source.interleave:
            aligned = config.at(source.interleave.alignments)
            yield from _interleave(unit_set, source.interleave, aligned, config.seed, dialogue)
            return
        bos = tokenizer.bos_token_id
        yield from worked_ahead(
            lambda index: _encode_shard(unit_set.table(index, ["units"])["units"], dialogue.vocab, bos, path),
            range(unit_set.shards),
            min(MOST_THREADS, os.cpu_count() or 1),
        )
        return
    conversations = read_conversations(path)
    check_codebook(codebook, conversations.codebook, path)
    for conversation in conversations:
        if source.tasks is None or conversation.task in source.tasks:
            rendered = dialogue.render(conversation, config.train_on_prompt)
            yield _one(conversation.task, rendered.ids, rendered.train)


def check_codebook(model: Codebook | None, found: Codebook | None, path: Path) -> None:
    """Raise ValueError, or CodebookMismatch, if a source holds units that are not the model's."""
    if found is None:
        return
    if model is None:
        raise ValueError(
            f"{path} holds units of {found.name!r}, but the model has none; set widen, or start from a model with units"
        )
    model.check_same(found, "the model", str(path))


def _one(task: str, ids: list[int], train: list[bool]) -> Documents:
    return Documents(task, np.asarray(ids, np.int32), np.asarray(train, bool), np.array([len(ids)]))


def _lines(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[Documents]:
    """Each line of a text file that is not empty.

    Raises: FileError naming the line if it is not UTF-8.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    with path.open("rb") as lines:
        for number, content in enumerate(lines, 1):
            text = as_text(content.removeprefix(BOM) if number == 1 else content, f"{path}:{number}")
            for line in filter(None, map(str.strip, text.split("\r"))):
                ids = tokenizer.encode(line, split_special_tokens=True) + end
                yield _one("text", ids, [True] * len(ids))


def _interleave(
    unit_set: UnitSet, how: Interleaving, aligned: Path, seed: int, dialogue: Dialogue
) -> Iterator[Documents]:
    """Every utterance of a unit set; one without alignments, or with alignments that do not fit it, stays units."""
    alignments = Alignments.open(aligned, how.tier)
    mixed, unaligned, misfits = 0, 0, []
    for record in unit_set:
        parts: list[Stretch] = []
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
            f"no utterance of {unit_set.folder} could be interleaved by {aligned}: {unaligned} have no words in it, "
            "and "
            f"the words of {len(misfits)} do not fit{first}"
        )
    print(
        f"{mixed} utterances interleaved; {unaligned} without words in {aligned} and {len(misfits)} with words that do "
        f"not fit stay units{first}",
        flush=True,
    )


def _mix(parts: list[Stretch], dialogue: Dialogue) -> Documents:
    """One utterance that alternates between units and text."""
    bos = dialogue.tokenizer.bos_token_id
    ids = [] if bos is None else [bos]
    for part in parts:
        ids += dialogue.encode_text(part) if isinstance(part, str) else dialogue.vocab.encode(part)
    return _one("interleaved" if any(isinstance(part, str) for part in parts) else "units", ids, [True] * len(ids))


def _encode_shard(column: pa.ChunkedArray, vocab: UnitVocab, bos: int | None, path: Path) -> Documents:
    """Every utterance of a shard as `<s><sosp>units<eosp>`: the same as `vocab.encode`, for all at once."""
    arrays = column.chunks
    units = np.concatenate([array.flatten().to_numpy(zero_copy_only=False) for array in arrays]).astype(np.int32)
    counts = np.concatenate([array.value_lengths().to_numpy(zero_copy_only=False) for array in arrays]).astype(np.int64)
    if len(units) and units.max() >= vocab.size:
        raise ValueError(f"{path} holds unit {units.max()}; this vocabulary has units 0 to {vocab.size - 1}")
    opening = [vocab.special_id(SOSP)] if bos is None else [bos, vocab.special_id(SOSP)]
    lengths = counts + len(opening) + 1
    ends = np.cumsum(lengths)
    ids = np.empty(int(ends[-1]) if len(ends) else 0, np.int32)
    body = np.ones(len(ids), bool)
    for offset, token in enumerate(opening):
        ids[ends - lengths + offset] = token
        body[ends - lengths + offset] = False
    ids[ends - 1] = vocab.special_id(EOSP)
    body[ends - 1] = False
    ids[body] = units + vocab.first_unit_id
    return Documents("units", ids, np.ones(len(ids), bool), lengths)

"""Sets built part by part: in parallel, with bounded memory, resumable; any number of workers gives the same bytes.

A part is a range of the input, such as a shard of a unit set. Building it writes one file for each split, then
`NUMBER.json`, whose presence means complete; a killed run continues with the parts that have none. The set is its
parts end to end, each a separate gzip member where the set is compressed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from instruct_data.build.records import conversation_line, header_line
from speechgpt.dialogue import Conversation
from units.codebook import Codebook
from units.runtime.files.atomic import written_whole
from units.runtime.files.gzipped import compressed
from units.runtime.files.json_files import read_json
from units.runtime.pool import Workers
from units.runtime.progress import progress
from units.runtime.provenance import file_stamp
from units.runtime.refusals import Refusals

CACHE_VERSION = 2  # bump it when the code writes other parts from the same input, so that old ones are not resumed
INLINE_ROWS = 40_000  # fewer input records are built faster than worker processes start


class InputPart(Protocol):
    """A range of the input: a small frozen dataclass, which can be sent to a worker process."""

    @property
    def rows(self) -> int:
        """About how many input records it has."""
        ...

    def sources(self) -> Iterable[Path]:
        """The files it reads."""
        ...

    def conversations(self, refusals: Refusals) -> Iterator[tuple[str, Conversation]]:
        """Each conversation with its split."""
        ...


@dataclass(frozen=True)
class BuildCounts:
    """What some parts hold: conversations by split and task, refusals by reason code."""

    counts: dict[str, Counter[str]]
    refused: Counter[str]

    def total(self) -> int:
        return sum(tasks.total() for tasks in self.counts.values())


@dataclass(frozen=True)
class PartFolder:
    """A folder of finished parts of one set. splits: the possible ones. zipped: whether the set is compressed."""

    folder: Path
    splits: tuple[str, ...]
    zipped: bool = True

    def build(self, parts: Sequence[InputPart], name: str, workers: Workers) -> BuildCounts:
        """Build the parts that are not there yet.

        Args:
            name: of these parts within the set; parts of an earlier build with other input or settings are deleted.
        """
        home = self.folder / name
        self._check_plan(home, parts)
        todo = [i for i in range(len(parts)) if not _facts(home, i).exists()]
        rows = sum(parts[i].rows for i in todo)
        job = functools.partial(_build_part, home=home, splits=self.splits, zipped=self.zipped)
        with progress(total=rows, desc=f"building {self.folder.name.strip('.')}/{name}", unit="records") as bar:
            for done in workers.run(job, [(i, parts[i]) for i in todo], rows > INLINE_ROWS):
                bar.update(parts[done].rows)
        built = BuildCounts({split: Counter() for split in self.splits}, Counter())
        for i in range(len(parts)):
            facts = read_json(_facts(home, i), {"refused": dict, "counts": dict})
            built.refused.update(facts["refused"])
            for split, tasks in facts["counts"].items():
                built.counts[split].update(tasks)
        return built

    def _check_plan(self, home: Path, parts: Sequence[InputPart]) -> None:
        """Delete the parts of an earlier build with other input, settings or cache version."""
        plan = hashlib.sha256(repr((CACHE_VERSION, self.splits, self.zipped)).encode())
        for part in parts:
            plan.update(repr(part).encode())
        for source in sorted({source for part in parts for source in part.sources()}):
            plan.update(file_stamp(source).encode())
        path = home / "plan"
        # a plan may be missing because a run was killed while it deleted the old parts
        if home.exists() and (not path.exists() or path.read_text() != plan.hexdigest()):
            shutil.rmtree(home)
        with written_whole(path) as file:
            file.write(plan.hexdigest())

    def assemble(
        self, out: Path, split: str, names: Sequence[str], built: BuildCounts, codebook: Codebook | None, seed: int
    ) -> None:
        """Join the finished parts of one split in one file, to a temporary name first."""
        with written_whole(out, "wb") as file:
            header = header_line(codebook, seed, built.counts[split])
            if self.zipped:
                with compressed(file) as member:
                    member.write(header)
            else:
                file.write(header)
            for name in names:
                for facts in sorted((self.folder / name).glob("*.json")):
                    with facts.with_suffix(f".{split}").open("rb") as part:
                        shutil.copyfileobj(part, file, 1 << 20)

    def list_refusals(self, out: Path, names: Sequence[str]) -> None:
        """Join the refusals of all parts in one file; without refusals there is no file."""
        with written_whole(out, "wb") as file:
            for name in names:
                for part in sorted((self.folder / name).glob("*.refused")):
                    file.write(part.read_bytes())
            none = not file.tell()
        if none:
            out.unlink()


@dataclass(frozen=True)
class WithoutRefusals:
    """A part whose refusals are already counted by another part of the same input."""

    part: InputPart

    @property
    def rows(self) -> int:
        return self.part.rows

    def sources(self) -> Iterable[Path]:
        return self.part.sources()

    def conversations(self, _: Refusals) -> Iterator[tuple[str, Conversation]]:
        return self.part.conversations(Refusals())


def merge_counts(several: Iterable[BuildCounts]) -> BuildCounts:
    """The counts of all parts of one set."""
    whole = BuildCounts({}, Counter())
    for built in several:
        whole.refused.update(built.refused)
        for split, tasks in built.counts.items():
            whole.counts.setdefault(split, Counter()).update(tasks)
    return whole


def _facts(home: Path, index: int) -> Path:
    return home / f"{index:06d}.json"


def _build_part(job: tuple[int, InputPart], home: Path, splits: tuple[str, ...], zipped: bool) -> int:
    """Write the files of one part; returns its number."""
    index, part = job
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    facts = _facts(home, index)
    with ExitStack() as stack:
        refusals = Refusals(file=stack.enter_context(written_whole(facts.with_suffix(".refused"))))
        files = {}
        for split in splits:
            raw = stack.enter_context(written_whole(facts.with_suffix(f".{split}"), "wb"))
            files[split] = stack.enter_context(compressed(raw)) if zipped else raw
        for split, conversation in part.conversations(refusals):
            files[split].write(conversation_line(conversation))
            counts[split][conversation.task] += 1
    with written_whole(facts) as file:
        json.dump({"counts": counts, "refused": refusals.counts}, file)
    return index

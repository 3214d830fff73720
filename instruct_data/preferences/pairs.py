"""The `instruct-preferences` command: pairs of spoken replies, of which one is understood and the other is not.

    instruct-preferences runs/toy/stage3 runs/toy/data/chain.jsonl.gz runs/toy/preferences.jsonl.gz
    instruct-preferences runs/toy/stage3 runs/toy/corpus/to_read.txt runs/toy/preferences_read.jsonl.gz
    instruct-preferences runs/toy/model chain.jsonl.gz pairs.jsonl.gz --asr whisper:openai/whisper-small --candidates 8
    instruct-preferences runs/toy/stage1 runs/toy/units/train pairs.jsonl.gz --judge http://localhost:8000/v1#my-model

Each spoken reply of a conversation set (answers in chains, texts that are read aloud) is spoken several times by the
model, after the reply's own text; or each line of a text file is read aloud, which needs no recordings. The model
transcribes what it said, and an evaluation ASR listens too if one is given. The candidate with the fewest wrong words
becomes the chosen reply of a pair, the one with the most the rejected reply. A judge may grade the transcripts as well.
Of a unit set, each utterance is continued several times after its beginning, and the judge alone decides. What gives no
pair is listed in OUT.refused.jsonl, with the reason.

The work is done in shards, each with random numbers of its own, by one thread each: any number of workers gives the
same pairs for the same seed. A killed run continues with the shards that it has.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from instruct_data.preferences.config import Pairing
from units.runtime.command import check_range, command

if TYPE_CHECKING:
    from instruct_data.build.preference_sets import Pair
    from instruct_data.preferences.drawing import PairDrawer
    from instruct_data.preferences.spoken import Spoken
    from units.codebook import Codebook

BEGUN = "begun.json"
JUDGED = "judge.cache"  # what a judge said of all shards
CONTINUATIONS = Path(__file__).parents[1] / "prompts" / "judge_continuation.txt"


@command("instruct-preferences", flat=True)
def main(
    model: Path,
    source: Path,
    out: Path,
    device: str = "cpu",
    workers: int | None = None,
    rank: int | None = None,
    world: int | None = None,
    how: Pairing = Pairing(),
) -> None:
    """Have a model speak several times, and pair what is understood with what is not.

    Args:
        model: a model folder, or the folder of a stage; with --asr it needs a vocoder
        source: a conversation set with spoken replies, a .txt file of texts to be read aloud, one a line, or a unit
            set, whose utterances are continued
        out: the preference set to write: .jsonl or .jsonl.gz
        device: cpu, cuda, or cuda:N
        workers: processes; default: one for each core of a CPU, one on a GPU
        rank: of this process, from 0; torchrun and SLURM give it
        world: number of processes that were started
        how: how candidates are drawn, scored and chosen
    """
    from speechgpt.checkpoint import CheckpointFacts
    from units.runtime.files.atomic import check_begun
    from units.runtime.pool import Workers
    from units.runtime.progress import progress
    from units.runtime.provenance import fingerprint
    from units.runtime.ranks import this_rank

    check_range("workers", workers, 1)
    ranks = this_rank(rank, world)
    codebook = CheckpointFacts.load(model).units
    spoken, recorded_in = to_be_spoken(source, how)
    if recorded_in is not None:
        codebook.check_same(recorded_in, f"the model in {model}", str(source))
    parts = out.with_name(f"{out.name}.parts")
    if out.exists() and not parts.exists():
        print(f"{out} is done already")
        return
    plan = {"model": fingerprint(model), "source": str(source), "spoken": len(spoken), **asdict(how)}
    check_begun(parts / BEGUN, json.loads(json.dumps(plan, default=str)))
    shards = [spoken[start : start + how.shard_size] for start in range(0, len(spoken), how.shard_size)]
    todo = [
        (number, shard)
        for number, shard in enumerate(shards)
        if number % ranks.world == ranks.rank and not part_files(parts, number)[1].exists()
    ]
    place = ranks.device(device)
    if source.is_dir():
        how = replace(how, judge_prompt=how.judge_prompt or CONTINUATIONS)
    by = DrawnBy(model.absolute(), replace(how, tasks=None), place, parts.absolute())  # tasks are chosen already
    job = functools.partial(draw_shard, by)
    with Workers(workers or (os.cpu_count() if place == "cpu" else 1)) as pool:
        for _ in progress(pool.run(job, todo), desc="pairs", unit="shards", total=len(todo)):
            pass
    if missing := sum(not part_files(parts, number)[1].exists() for number in range(len(shards))):
        print(f"{missing} of {len(shards)} shards are left to other processes")
        return
    finish(parts, len(shards), out, codebook, how.seed)


def to_be_spoken(source: Path, how: Pairing) -> tuple[Sequence[Spoken], Codebook | None]:
    """What the model is to speak: replies of a conversation set, lines of a text file, or utterances of a unit set.

    Returns: those, and the codebook of the source's own units; None if it has none.

    Raises:
        ValueError: there are none; no judge would grade continuations; or recordings of a text file are asked for.
        RecordError, UnitSetError, FileError: the source cannot be read.
    """
    from instruct_data.build.records import read_conversations
    from instruct_data.preferences.spoken import continuations, spoken_reply, texts_to_read
    from units.dataset.unit_set import read_unit_set

    found: list[Spoken]
    codebook: Codebook | None = None
    if source.is_dir():
        if how.judge is None:
            raise ValueError(
                f"{source} is a unit set: nothing says which of two continuations is better; give --judge, or a "
                "conversation set"
            )
        unit_set = read_unit_set(source)
        found, codebook = list(continuations(unit_set, how.beginning)), unit_set.codebook
        none = f"{source} holds no utterance of more than {how.beginning} units; give --beginning"
    elif source.suffix == ".txt":
        if how.recorded or how.tasks:
            raise ValueError(
                f"{source} is a text file: it has no recordings and no tasks; leave out recorded and tasks"
            )
        found = list(texts_to_read(source))
        none = f"{source} holds no text; it has one on each line"
    else:
        conversations = read_conversations(source)
        codebook = conversations.codebook
        chosen = (one for one in conversations if how.tasks is None or one.task in how.tasks)
        found = [reply for reply in map(spoken_reply, chosen) if reply]
        of = f" of the tasks {', '.join(how.tasks)}" if how.tasks else ""
        none = f"{source} holds no conversation{of} that ends with a spoken reply and its text"
    if not found:
        raise ValueError(none)
    if how.limit and how.limit < len(found):
        found = [found[i * len(found) // how.limit] for i in range(how.limit)]
    return found, codebook


@dataclass(frozen=True)
class DrawnBy:
    """What a worker needs for every shard."""

    model: Path
    how: Pairing
    device: str
    parts: Path


def draw_shard(by: DrawnBy, work: tuple[int, Sequence[Spoken]]) -> None:
    """Write the pairs of one shard, then what gave none."""
    import torch

    from instruct_data.build.preference_sets import write_preferences
    from units.runtime.files.atomic import written_whole

    number, spoken = work
    threads = torch.get_num_threads()
    if by.device == "cpu":
        torch.set_num_threads(1)  # more would add up numbers in another order, and so now and then draw another unit
    try:
        drawer = _drawer(by)
        pairs, refused = drawer.pairs(spoken, number)
    finally:
        torch.set_num_threads(threads)
    file, last = part_files(by.parts, number)
    write_preferences(file, pairs, drawer.gpt.codebook, by.how.seed)
    with written_whole(last) as lines:
        lines.writelines(refusal.line() for refusal in refused)


@functools.lru_cache(maxsize=1)
def _drawer(by: DrawnBy) -> PairDrawer:
    """Opened once in each worker."""
    from instruct_data.preferences.drawing import PairDrawer

    return PairDrawer(by.model, by.how, by.parts / JUDGED, by.device)


def part_files(parts: Path, number: int) -> tuple[Path, Path]:
    """Pairs of a shard, and what gave none, which is written last."""
    return parts / f"shard-{number:05d}.jsonl", parts / f"shard-{number:05d}.refused"


def finish(parts: Path, shards: int, out: Path, codebook: Codebook, seed: int) -> None:
    """Join all shards, and remove them."""
    from instruct_data.build.preference_sets import read_preferences, write_preferences
    from units.runtime.files.atomic import written_whole
    from units.runtime.files.json_files import json_lines
    from units.runtime.refusals import counted, read_refusals

    files = [part_files(parts, number) for number in range(shards)]
    listed = out.with_name(f"{out.name}.refused.jsonl")
    with written_whole(listed) as lines:
        for _, refused in files:
            lines.write(refused.read_text(encoding="utf-8"))

    def pairs() -> Iterator[Pair]:
        for file, _ in files:
            yield from read_preferences(file)

    counts = write_preferences(out, pairs(), codebook, seed)
    reasons = Counter(reason for _, reason, _ in read_refusals(row for _, row in json_lines(listed)))
    shutil.rmtree(parts)
    print(f"{sum(counts.values())} pairs {counts} -> {out}; {counted(reasons)}")


if __name__ == "__main__":
    main.cli()

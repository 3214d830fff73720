"""Let a stage-2 model speak a text set as units, without audio in between, as the paper made its spoken answers.

    python -m instruct_data.speech.unit_voice chats.jsonl units/answers runs/toy/stage2
    torchrun --nproc_per_node 8 -m instruct_data.speech.unit_voice chats.jsonl units/answers runs/7b/stage2 \
      --device cuda

Writes a unit set, one shard at a time; a killed run continues at the first missing shard. A language model writes units
without durations, so the set has none.
Source: Zhang et al. 2023 (arXiv 2305.11000, section 3.1), whose text-to-unit generator spoke the questions too.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_data.text.chats import TextChat, read_chats, text_key
from speechgpt.sampling import Sampling
from units.runtime.ahead import own_cores
from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.files.atomic import check_begun
from units.runtime.pool import Workers
from units.runtime.progress import progress
from units.runtime.ranks import Ranks, this_rank
from units.runtime.refusals import Refusals
from units.runtime.settings import check_types

if TYPE_CHECKING:
    from units.codebook import Codebook

SPOKEN_PARTS = {"answers", "questions", "both"}


@dataclass(frozen=True)
class UnitVoiceConfig:
    """How a text set is spoken as units."""

    said: str = "answers"
    """Which texts are spoken: answers, questions or both."""
    speaker: str | None = None
    """The speaker that the unit set states; model:NAME if not given."""
    device: str = "cpu"
    """The device: cpu or cuda."""
    batch: int = 16
    """Texts spoken together."""
    shard_size: int = 500
    """Texts in a shard."""
    sampling: Sampling = Sampling()
    """How units are drawn."""
    workers: int | None = None
    """Processes; if not given, on a CPU one for each core, as long as their models fit into half the memory."""
    rank: int | None = None
    """Number of this process among `world`, for several GPUs: each takes every world-th shard; read from the
    environment of torchrun or SLURM if not given."""
    world: int | None = None
    """Number of processes that share the work over one folder; read from the same environment if not given."""

    def __post_init__(self) -> None:
        check_types(self)
        _check_said(self.said)
        for name in ("batch", "shard_size", "workers"):
            check_range(name, getattr(self, name), 1)
        check_range("world", self.world, 1)
        check_range("rank", self.rank, 0)  # this_rank checks it against the world


def _check_said(said: str) -> None:
    if said not in SPOKEN_PARTS:
        raise ValueError(f"--said is {said!r}; it is one of {', '.join(sorted(SPOKEN_PARTS))}")


def texts_of(chats: Iterable[TextChat], said: str) -> Iterator[str]:
    """The texts of chats, each once.

    Args:
        said: answers, questions or both.

    Raises:
        ValueError: if `said` is something else.
    """
    _check_said(said)
    seen: set[bytes] = set()
    for turn in itertools.chain.from_iterable(chat.turns for chat in chats):
        questions = (turn.question,) if said != "answers" else ()
        answers = (turn.answer,) if said != "questions" else ()
        for text in questions + answers:
            key = text_key(text)
            if key not in seen:
                seen.add(key)
                yield text


@command("instruct-speak-units", flat=True)
def main(chats: Path, out: Path, model: Path, config: UnitVoiceConfig = UnitVoiceConfig()) -> int:
    """Speak a text set as units with a stage-2 model.

    Args:
        chats: the text set
        out: folder for the unit set
        model: a checkpoint of stage 2 or 3
        config: how it is spoken
    """
    from speechgpt.checkpoint import CheckpointFacts
    from units.dataset.unit_set import shard_path

    ranks = this_rank(config.rank, config.world)
    codebook = CheckpointFacts.load(model).units
    refusals = Refusals(file=(lines := io.StringIO()))
    texts = list(texts_of(read_chats(chats, refusals), config.said))
    _begin(out, model, texts, config)
    starts = range(0, len(texts), config.shard_size)
    groups = [tuple(texts[start : start + config.shard_size]) for start in starts]
    _speak(groups, out, model, config, ranks)
    if left := sum(not shard_path(out, i).exists() for i in range(len(groups))):
        print(f"rank {ranks.rank} of {ranks.world} is done; {left} shards are left to the other ranks")
        return 0
    return _finish(out, codebook, len(groups), lines.getvalue().splitlines(True), f"of {chats.name}: {refusals}")


def _begin(out: Path, model: Path, texts: Sequence[str], config: UnitVoiceConfig) -> None:
    """Check that the folder was begun with the same texts, model and settings, and mark the set as incomplete."""
    from units.dataset.unit_set import COMPLETION_FILE

    plan: dict[str, Any] = {
        "texts": _fingerprint("\n".join(texts).encode()),
        "model": _fingerprint((model / "speechgpt.json").read_bytes()),
        "shard_size": config.shard_size,
        "sampling": repr(config.sampling),
        "speaker": config.speaker,
    }
    old_sampling = plan["sampling"].replace("candidates=", "takes=")  # the field's name in release 0.1.0
    check_begun(out / "plan.json", plan, {"sampling": lambda: old_sampling})
    (out / COMPLETION_FILE).unlink(missing_ok=True)


def _speak(groups: Sequence[tuple[str, ...]], out: Path, model: Path, config: UnitVoiceConfig, ranks: Ranks) -> None:
    """Write the missing shards of this rank."""
    from instruct_data.speech.unit_synthesis import TextShard, speak_shard
    from units.dataset.unit_set import shard_path

    device = ranks.device(config.device)
    missing = [i for i in range(len(groups)) if not shard_path(out, i).exists()]
    mine = [i for i in missing if i % ranks.world == ranks.rank]
    count = min(config.workers or model_copies(model, device, ranks.local_world), max(1, len(mine)))
    shards = [
        TextShard(
            index=i,
            texts=groups[i],
            out=out,
            model=model,
            device=device,
            speaker=config.speaker or f"model:{model.name}",
            batch=config.batch,
            sampling=config.sampling,
            threads=max(1, own_cores(ranks.local_world) // count),
        )
        for i in mine
    ]
    total = sum(len(shard.texts) for shard in shards)
    with Workers(count) as pool, progress(total=total, desc="speaking in units", unit="texts") as bar:
        for done in pool.run(speak_shard, shards):
            bar.update(done)


def _finish(out: Path, codebook: Codebook, shards: int, refused_chats: list[str], report: str) -> int:
    """Join the shards to a unit set."""
    from units.dataset.unit_set import join_shards

    made = join_shards(out, shards, codebook, refused_chats)
    print(f"{out}: {len(made)} texts spoken; {made.refused} refused, see {out / 'refused.jsonl'}; {report}")
    return SOME_REFUSED if made.refused else 0


def model_copies(model: Path, device: str, processes: int) -> int:
    """The number of worker processes: one for each core, as long as their copies in float32 fit into half the memory.

    Args:
        processes: ranks on this machine, each with its own workers. A GPU holds one copy.
    """
    if device != "cpu":
        return 1
    weights = 2 * sum(path.stat().st_size for path in model.glob("*.safetensors"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 0
    return max(1, min(own_cores(processes), memory // max(1, processes * weights)))


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    main.cli()

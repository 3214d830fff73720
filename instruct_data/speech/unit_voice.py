"""The stage-2 model as a voice: text to units without any sound in between, as the paper made its spoken answers.

    python -m instruct_data.speech.unit_voice chats.jsonl units/answers runs/toy/stage2
    torchrun --nproc_per_node 8 -m instruct_data.speech.unit_voice chats.jsonl units/answers runs/7b/stage2 --device cuda

Writes a unit set, a shard at a time; a killed run goes on at the first missing shard. Nobody knows the durations of
units that a language model wrote, so the set has none.
Source: Zhang et al. 2023 (arXiv 2305.11000, section 3.1), whose text-to-unit generator spoke the questions too.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.text.chats import TextChat, read_chats
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.generation.candidates import choose_candidates
from speechgpt.generation.generate import generate
from speechgpt.inference import SpeechGPT
from speechgpt.prompts import tts_prompt
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA
from units.codebook import Units
from units.dataset.unit_set import COMPLETION_FILE, UnitRecord, join_shards, refusals_path, shard_path, write_shard
from units.runtime.ahead import own_cores
from units.runtime.atomic import check_begun, written_whole
from units.runtime.pool import Workers
from units.runtime.progress import progress
from units.runtime.ranks import this_rank
from units.runtime.refusals import Refusals

SAID = {"answers", "questions", "both"}


@dataclass(frozen=True)
class SpokenUnits:
    """Units of a text, or why there are none."""

    text: str
    ids: tuple[int, ...] | None
    reason: str = ""


class UnitVoice:
    """A model of stage 2 or 3 that reads texts out as units."""

    def __init__(self, model: str | Path, device: str = "cpu", sampling: Sampling = Sampling()) -> None:
        """Open a checkpoint; it needs neither ears nor a vocoder."""
        self.gpt, self.sampling = SpeechGPT.from_pretrained(model, device), sampling

    def speak(self, texts: Sequence[str]) -> list[SpokenUnits]:
        """Units of each text; a text that is too long, or of which the model found no end, has none."""
        model, dialogue = self.gpt.model, self.gpt.dialogue
        prompts = [dialogue.prompt([tts_prompt(text)]) for text in texts]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < model.config.max_position_embeddings]
        replies = generate(model, dialogue, [prompts[i] for i in fitting], "units", self.sampling)
        written = dict(zip(fitting, replies))
        spoken = [self._read(text, written.get(i)) for i, text in enumerate(texts)]
        whole = {i: one.ids for i, one in enumerate(spoken) if one.ids}
        if self.sampling.candidates > 1 and whole:
            after, meant = [prompts[i] for i in whole], [texts[i] for i in whole]
            chosen = choose_candidates(model, dialogue, after, meant, list(whole.values()), self.sampling)
            for i, candidate in zip(whole, chosen):
                spoken[i] = SpokenUnits(texts[i], candidate.units)
        return spoken

    def _read(self, text: str, ids: list[int] | None) -> SpokenUnits:
        if ids is None:
            return SpokenUnits(text, None, "the text is longer than the model's context")
        if self.gpt.dialogue.vocab.special_id(EOA) not in ids:
            return SpokenUnits(text, None, "the model found no end")
        units = self.gpt.dialogue.parse_reply(ids).units
        return SpokenUnits(text, units, "") if units else SpokenUnits(text, None, "the model said nothing")


def texts_of(chats: Iterable[TextChat], said: str) -> Iterator[str]:
    """Each text once. Raises ValueError unless `said` is answers, questions or both."""
    if said not in SAID:
        raise ValueError(f"said is {said!r}; it is one of {', '.join(sorted(SAID))}")
    seen: set[bytes] = set()
    for turn in itertools.chain.from_iterable(chat.turns for chat in chats):
        for text in ((turn.question,) if said != "answers" else ()) + ((turn.answer,) if said != "questions" else ()):
            key = _digest(text)
            if key not in seen:
                seen.add(key)
                yield text


def _fingerprint(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=10).digest()


@dataclass(frozen=True)
class Shard:
    """The texts of one shard, and all that a process needs to speak them."""

    index: int
    texts: tuple[str, ...]
    out: Path
    model: Path
    device: str
    speaker: str
    batch: int
    sampling: Sampling
    threads: int


_opened: dict[tuple[Path, str, Sampling], UnitVoice] = {}


def speak_shard(shard: Shard) -> int:
    """Write one shard and its refusals; returns how many texts it had."""
    key = (shard.model, shard.device, shard.sampling)
    if key not in _opened:
        if multiprocessing.parent_process() is not None:
            import torch

            torch.set_num_threads(shard.threads)
        _opened[key] = UnitVoice(*key)
    voice, records = _opened[key], []
    with written_whole(refusals_path(shard.out, shard.index)) as file:
        refusals = Refusals(file=file)
        # texts of like length together: a batch takes as long as its longest
        order = sorted(range(len(shard.texts)), key=lambda i: len(shard.texts[i]))
        spoken: dict[int, SpokenUnits] = {}
        for first in range(0, len(order), shard.batch):
            group = order[first : first + shard.batch]
            spoken |= dict(zip(group, voice.speak([shard.texts[i] for i in group])))
        for _, one in sorted(spoken.items()):
            name = f"said-{_digest(one.text).hex()}"
            if one.ids is None:
                refusals.add(name, f"{one.reason}: {one.text[:60]!r}")
            else:
                units = Units(one.ids, None, voice.gpt.codebook)
                records.append(UnitRecord(name, units, None, one.text, shard.speaker))
    write_shard(shard_path(shard.out, shard.index), records, voice.gpt.codebook)
    return len(shard.texts)


def main(
    pairs: Path,
    out: Path,
    model: Path,
    said: str = "answers",
    speaker: str | None = None,
    device: str = "cpu",
    batch: int = 16,
    shard_size: int = 500,
    sampling: Sampling = Sampling(),
    workers: int | None = None,
    rank: int | None = None,
    world: int | None = None,
) -> None:
    """Read a text set out as units.

    Args:
        pairs: the text set
        out: folder for the unit set
        model: a checkpoint of stage 2 or 3
        said: answers, questions or both
        speaker: what the set calls the voice; model:NAME if not given
        device: cpu or cuda
        batch: texts at once
        shard_size: texts in a shard
        sampling: how units are drawn
        workers: processes; on a CPU one for each core, of a large model as many as half the memory holds, if not given
        rank: this process among world, for several GPUs: each takes every world-th shard; from torchrun's environment if not given
        world: how many processes share the work over one folder; likewise
    """
    ranks = this_rank(rank, world)
    device = ranks.device(device)
    refusals = Refusals(file=(lines := io.StringIO()))
    texts = list(texts_of(read_chats(pairs, refusals), said))
    plan = {"texts": _fingerprint("\n".join(texts).encode()), "model": _fingerprint((model / "speechgpt.json").read_bytes()),
            "shard_size": shard_size, "sampling": repr(sampling), "speaker": speaker}  # fmt: skip
    check_begun(out / "plan.json", plan)
    (out / COMPLETION_FILE).unlink(missing_ok=True)
    starts = range(0, len(texts), shard_size)
    missing = [i for i in range(len(starts)) if not shard_path(out, i).exists()]
    mine = [i for i in missing if i % ranks.world == ranks.rank]
    count = min(workers or _copies(model, device, ranks.local_world), max(1, len(mine)))
    shards = [
        Shard(i, tuple(texts[starts[i] : starts[i] + shard_size]), out, model, device, speaker or f"model:{model.name}", batch,
              sampling, max(1, own_cores(ranks.local_world) // count))
        for i in mine
    ]  # fmt: skip
    with (
        Workers(count) as pool,
        progress(total=sum(len(one.texts) for one in shards), desc="speaking in units", unit="texts") as bar,
    ):
        for done in pool.run(speak_shard, shards):
            bar.update(done)
    if left := sum(not shard_path(out, i).exists() for i in range(len(starts))):
        print(f"rank {ranks.rank} of {ranks.world} is done; {left} shards are left to the other ranks")
        return
    made = join_shards(out, len(starts), CheckpointFacts.load(model).units, lines.getvalue().splitlines(True))
    print(
        f"{out}: {len(made)} texts spoken; {made.refused} refused, see {out / 'refused.jsonl'}; of {pairs.name}: {refusals}"
    )


def _copies(model: Path, device: str, beside: int) -> int:
    """One for each core, as long as half the memory holds them in float32; a GPU holds one."""
    if device != "cpu":
        return 1
    weights = 2 * sum(path.stat().st_size for path in model.glob("*.safetensors"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 0
    return max(1, min(own_cores(beside), memory // max(1, beside * weights)))


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

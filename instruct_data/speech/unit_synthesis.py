"""A stage-2 or stage-3 model as a text-to-speech engine whose output is units."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instruct_data.text.chats import text_key
from instruct_data.text.reasons import TextReason
from speechgpt.generation.candidates import choose_candidates
from speechgpt.generation.generate import generate
from speechgpt.inference import SpeechGPT
from speechgpt.prompts import tts_prompt
from speechgpt.sampling import Sampling
from units.codebook import Units
from units.dataset.unit_set import UnitRecord, refusals_path, shard_path, write_shard
from units.runtime.files.atomic import written_whole
from units.runtime.refusals import Refusals

EXCERPT = 60  # characters of a text that a refusal shows


@dataclass(frozen=True)
class SynthesizedUnits:
    """The units of a text, or the reason why it has none.

    ids: units in [0, K).
    """

    text: str
    ids: tuple[int, ...] | None
    reason: TextReason | None = None


class UnitSynthesizer:
    """A checkpoint of stage 2 or 3 that reads texts aloud as units."""

    def __init__(self, model: str | Path, device: str = "cpu", sampling: Sampling = Sampling()) -> None:
        """Open a checkpoint; it needs neither a unit encoder nor a vocoder."""
        self.gpt, self.sampling = SpeechGPT.from_pretrained(model, device), sampling

    def speak(self, texts: Sequence[str]) -> list[SynthesizedUnits]:
        """The units of each text. A text that is too long, or whose reply reached no end, has none."""
        model, dialogue = self.gpt.model, self.gpt.dialogue
        prompts = [dialogue.prompt([tts_prompt(text)]) for text in texts]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < model.config.max_position_embeddings]
        replies = generate(model, dialogue, [prompts[i] for i in fitting], "units", self.sampling)
        written = dict(zip(fitting, replies))
        spoken = [self._read(text, written.get(i)) for i, text in enumerate(texts)]
        whole = {i: one.ids for i, one in enumerate(spoken) if one.ids}
        if self.sampling.candidates > 1 and whole:
            chosen = choose_candidates(
                model,
                dialogue,
                [prompts[i] for i in whole],
                [texts[i] for i in whole],
                list(whole.values()),
                self.sampling,
            )
            for i, candidate in zip(whole, chosen):
                spoken[i] = SynthesizedUnits(texts[i], candidate.units)
        return spoken

    def _read(self, text: str, ids: list[int] | None) -> SynthesizedUnits:
        """The units in the token ids of a reply; None stands for a text that does not fit."""
        if ids is None:
            return SynthesizedUnits(text, None, TextReason.LONGER_THAN_CONTEXT)
        if not self.gpt.dialogue.ended(ids):
            return SynthesizedUnits(text, None, TextReason.NO_END)
        units = self.gpt.dialogue.parse_reply(ids).units
        return SynthesizedUnits(text, units, None if units else TextReason.NO_UNITS)


@dataclass(frozen=True)
class TextShard:
    """The texts of one shard, and all that a worker process needs to speak them.

    out: folder of the unit set. batch: texts spoken together. threads: of a worker process.
    """

    index: int
    texts: tuple[str, ...]
    out: Path
    model: Path
    device: str
    speaker: str
    batch: int
    sampling: Sampling
    threads: int


_opened: dict[tuple[Path, str, Sampling], UnitSynthesizer] = {}  # of this worker process


def speak_shard(shard: TextShard) -> int:
    """Write one shard and its refusals. Returns the number of its texts."""
    synthesizer = _opened_once(shard)
    records = []
    with written_whole(refusals_path(shard.out, shard.index)) as file:
        refusals = Refusals(file=file)
        for one in _speak_by_length(synthesizer, shard.texts, shard.batch):
            name = f"said-{text_key(one.text).hex()}"
            if one.ids is None:
                refusals.add(name, one.reason or TextReason.NO_UNITS, one.text[:EXCERPT])
            else:
                units = Units(one.ids, None, synthesizer.gpt.codebook)
                records.append(UnitRecord(name, units, None, one.text, shard.speaker))
    write_shard(shard_path(shard.out, shard.index), records, synthesizer.gpt.codebook)
    return len(shard.texts)


def _opened_once(shard: TextShard) -> UnitSynthesizer:
    key = (shard.model, shard.device, shard.sampling)
    if key not in _opened:
        if multiprocessing.parent_process() is not None:
            import torch

            torch.set_num_threads(shard.threads)
        _opened[key] = UnitSynthesizer(*key)
    return _opened[key]


def _speak_by_length(synthesizer: UnitSynthesizer, texts: Sequence[str], batch: int) -> list[SynthesizedUnits]:
    """Speak texts of similar length together, since a batch takes as long as its longest text. Order is kept."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    spoken: dict[int, SynthesizedUnits] = {}
    for first in range(0, len(order), batch):
        group = order[first : first + batch]
        spoken |= dict(zip(group, synthesizer.speak([texts[i] for i in group])))
    return [spoken[i] for i in range(len(texts))]

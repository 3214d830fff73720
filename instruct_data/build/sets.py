"""Build the instruction sets of a run from its unit sets and, if it has one, its text set.

    python -m instruct_data.build --units runs/toy/units/train --pairs runs/toy/corpus/chats.jsonl --voice flite:slt --out runs/toy/data
    python -m instruct_data.build --config build.yaml --splits.dev 0.01 --chat_ratio 0.1
    python -m instruct_data.build --units units/librispeech --tts_of all --out data           # an ASR corpus is enough for stage 2

Writes `cross_modal.jsonl.gz` (ASR of every voice, TTS of the answer voice or of all, text chats if asked for), and of a
text set `text.jsonl.gz` (text chats, and the same with the question said back first) and `chain.jsonl.gz`; for the other
sides `.._dev` and `.._test`, and last `build.json` with the counts of everything kept and refused; `.refused.jsonl`
beside a set lists what it lacks. All of it streams; a killed build goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from instruct_data.build.chain import ChainChatPart, ChainOptions, ChainPart, ChainSettings
from instruct_data.build.cross_modal import INSTRUCTIONS, read_instructions, shard_parts
from instruct_data.build.parts import Built, Part, PartFolder, Untold, together
from instruct_data.build.splits import Splits
from instruct_data.build.spoken import SetSplits, index_questions, index_spoken
from instruct_data.build.text_parts import BalancedPart, ChatPart, chat_parts
from units.codebook import Codebook
from units.dataset.unit_set import COMPLETION_FILE, UnitSet, read_unit_set
from units.runtime.atomic import written_whole
from units.runtime.pool import Workers


@dataclass
class UnitSource:
    """A unit set and how much of it is used."""

    path: Path
    """Its folder."""
    weight: float = 1.0
    """How often each of its utterances stands in the cross-modal set: 0.5 draws half of them, 2 takes each twice."""


@dataclass
class Build:
    """The sets of one build, and what came of them so far."""

    sources: Sequence[tuple[UnitSet, float]]
    pairs: Path | None
    voice: str
    out: Path
    seed: int
    splits: SetSplits
    instructions: Path
    compress: bool
    workers: Workers
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, *others = (unit_set for unit_set, _ in self.sources)
        for other in others:
            first.codebook.check_same(other.codebook, str(first.folder), str(other.folder))
        self.codebook, self.home = first.codebook, self.out / ".parts"
        speakers = {speaker for unit_set, _ in self.sources for speaker in unit_set.speakers()}
        if self.voice and self.voice not in speakers:
            raise SystemExit(f"{first.folder} has no utterance of the voice {self.voice!r}; it has {sorted(speakers)}")
        if unheard := set(self.splits.held_out_speakers) - speakers:
            raise SystemExit(f"held_out_speakers {sorted(unheard)} say nothing here; there are {sorted(speakers)}")
        if self.pairs:
            self.splits = index_questions(self.pairs, self.home, self.splits)

    def text(self, least: int, most: int | None) -> None:
        """Text chats, and the same with the question said back first, if there is a text set."""
        if self.pairs is None:
            return
        chats, repeats = (self._lines(task) for task in ("chat", "repeat"))
        parts: list[Part] = [*chats, *map(Untold, repeats)]
        if least > 1 or most is not None:
            rows = sum(part.rows for part in chats)
            parts = [BalancedPart(self.pairs, rows, least, most, self.seed, self.splits, self.instructions)]
        self._write("text", {"text": self._parts("text", "text", parts)}, None)

    def cross_modal(self, chat_ratio: float, read_by: str | None) -> None:
        """ASR of everybody, TTS of one speaker, of all (None) or of nobody (""), and so many text chats for each of them."""
        built = {}
        for task, speaker in (("asr", None), ("tts", read_by)):
            if speaker == "":
                continue
            parts: list[Part] = []
            for unit_set, weight in self.sources:
                parts += shard_parts(
                    unit_set, task, self.seed, self.splits, weight=weight, speaker=speaker, instructions=self.instructions
                )  # fmt: skip
            built[task] = self._parts("cross_modal", task, parts)
        there = sum(part.rows for part in self._lines("chat"))
        if chat_ratio > 0 and there:
            wanted = chat_ratio * sum(one.total() for one in built.values())
            built["chat"] = self._parts("cross_modal", "chat", self._lines("chat", wanted / there))
        self._write("cross_modal", built, self.codebook)

    def chain(self, options: ChainOptions) -> None:
        """Every spoken question of the text set, and every chat of several turns that one speaker asks; typed, all others."""
        if self.pairs is None:
            return
        if not self.voice and any(kind.endswith("speech") for kind, _ in options.shares):
            print("no chain is built: --voice says who answers")
            return
        spoken = index_spoken([unit_set for unit_set, _ in self.sources], self.splits, self.home, self.voice)
        chain = ChainSettings(spoken, self.voice, options.shares, options.wording, self.seed, self.splits)
        reads = (self.pairs, *(unit_set.folder / COMPLETION_FILE for unit_set, _ in self.sources))
        parts: list[Part] = [
            ChainPart(unit_set.folder, i, unit_set.rows(i), chain, reads)
            for unit_set, _ in self.sources
            for i in range(unit_set.shards)
        ]
        parts += [ChainChatPart(part, chain, reads) for part in self._lines("chat")]
        self._write("chain", {"chain": self._parts("chain", "chain", parts)}, self.codebook)

    def finish(self) -> None:
        """Write `build.json`, and forget the parts."""
        facts = {"counts": self.counts, "refused": self.refused, "codebook": self.codebook.name, "sides": self.sides}
        with written_whole(self.out / "build.json") as file:
            json.dump(facts, file, indent=1)
        shutil.rmtree(self.home)
        print(f"conversations: {self.counts}; left out: {self.refused}")

    def _lines(self, task: str, weight: float = 1.0) -> list[ChatPart]:
        return (
            []
            if self.pairs is None
            else chat_parts(self.pairs, task, self.seed, self.splits, weight, self.instructions)
        )

    def _folder(self, name: str) -> PartFolder:
        return PartFolder(self.home / name, tuple(self.splits.sides), self.compress)

    def _parts(self, name: str, parts_name: str, parts: Sequence[Part]) -> Built:
        return self._folder(name).build(parts, parts_name, self.workers)

    def _write(self, name: str, built: dict[str, Built], codebook: Codebook | None) -> None:
        """Put a set's parts together, one file for each side."""
        whole = together(built.values())
        if whole.refused:
            self.refused[name] = dict(whole.refused)
        self._folder(name).list_refusals(self.out / f"{name}.refused.jsonl", list(built))
        for side in self.splits.sides:
            stem = name if side == "train" else f"{name}_{side}"
            path = self.out / f"{stem}.jsonl{'.gz' if self.compress else ''}"
            self._folder(name).assemble(path, side, list(built), whole, codebook, self.seed)
            self.counts[stem], self.sides[stem] = dict(whole.counts[side]), side


def main(
    units: Path | list[UnitSource],
    pairs: Path | None = None,
    voice: str = "",
    out: Path = Path("data"),
    seed: int = 0,
    least_of_a_family: int = 1,
    most_of_a_family: int | None = None,
    splits: Splits = Splits(),
    tts_of: Literal["voice", "all"] = "voice",
    chat_ratio: float = 0.0,
    chain: ChainOptions = ChainOptions(),
    instructions: Path = INSTRUCTIONS,
    compress: bool = True,
    workers: int | None = None,
) -> None:
    """Build the instruction sets.

    Args:
        units: unit set of the training utterances, with text and speaker; or several with weights
        pairs: jsonl of text questions and answers; they become text chats too. Without it there is the cross-modal set alone
        voice: the speaker that answers, without whom there is no chain
        out: folder for the sets
        seed: decides the task descriptions and every other draw
        least_of_a_family: text chats of one family of questions: a smaller family is repeated about as often
        most_of_a_family: text chats of one family of questions, so that a large one does not drown the others; all of
            them if not given
        splits: which utterances stand on the development and test sides
        tts_of: whose way to speak is learned: the answer `voice`'s alone, or `all`
        chat_ratio: text chats in the cross-modal set, for each other conversation in it
        chain: which kinds of chain, and in whose words
        instructions: folder of the task descriptions; for another language, write asr.txt, tts.txt and repeat.txt
        compress: gzip the sets
        workers: processes, one for each core if not given
    """
    sources = units if isinstance(units, list) else [UnitSource(units)]
    opened = [(read_unit_set(source.path.resolve()), source.weight) for source in sources]
    with Workers(workers) as pool:
        of_set = SetSplits(**vars(splits))
        text_set = pairs and pairs.resolve()
        build = Build(opened, text_set, voice, out, seed, of_set, instructions, compress, pool)
        build.text(least_of_a_family, most_of_a_family)
        build.cross_modal(chat_ratio, voice if tts_of == "voice" else None)
        build.chain(chain)
    build.finish()
    for missing in untaught(instructions):
        print(f"warning: {missing}")


def untaught(instructions: Path) -> list[str]:
    """Task descriptions with which a model is asked when it is used, and which those of a folder would not teach it."""
    if instructions.resolve().is_relative_to(INSTRUCTIONS.resolve()):
        return []  # a test holds that those that ship have them
    from speechgpt.prompts import ASR_TASK, TTS_TASK  # brings torch, which building needs not

    return [
        f"{instructions / task}.txt has no line {asked!r}, with which a model is asked in use; add it, and build again"
        for task, asked in (("asr", ASR_TASK), ("tts", TTS_TASK))
        if asked not in read_instructions(task, instructions)
    ]

"""How the conversation sets of one build are made; instruct_data/build/sets.py is its command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from instruct_data.build.chain import ChainChatPart, ChainPart, ChainSettings
from instruct_data.build.config import INSTRUCTIONS, BuildConfig, ChainConfig, UnitSource
from instruct_data.build.cross_modal import read_instructions, shard_parts
from instruct_data.build.halves import ANSWER, TRANSCRIPT, AnswerPart, HalvesSettings, TranscriptPart
from instruct_data.build.parts import BuildCounts, InputPart, PartFolder, WithoutRefusals, merge_counts
from instruct_data.build.spoken import SetSplits, SpeechWriter, index_questions, index_spoken
from instruct_data.build.text_parts import BalancedPart, ChatPart, chat_parts
from units.codebook import Codebook
from units.dataset.unit_set import COMPLETION_FILE, UnitSet, read_unit_set
from units.runtime.files.atomic import written_whole
from units.runtime.pool import Workers


@dataclass
class Build:
    """The sets of one build, and what came of them so far."""

    sources: Sequence[tuple[UnitSet, float]]
    pairs: Path | None
    voice: str
    out: Path
    seed: int
    splits: SetSplits
    speech: SpeechWriter
    instructions: Path
    compress: bool
    workers: Workers
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    split_of_set: dict[str, str] = field(default_factory=dict)
    refused: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, *others = (unit_set for unit_set, _ in self.sources)
        for other in others:
            first.codebook.check_same(other.codebook, str(first.folder), str(other.folder))
        self.codebook, self.home = first.codebook, self.out / ".parts"
        speakers = {speaker for unit_set, _ in self.sources for speaker in unit_set.speakers()}
        if self.voice and self.voice not in speakers:
            raise ValueError(f"--voice is {self.voice!r}; the unit sets have only the speakers {sorted(speakers)}")
        if unknown := set(self.splits.held_out_speakers) - speakers:
            raise ValueError(
                f"--splits.held_out_speakers has {sorted(unknown)}; the unit sets have only the speakers "
                f"{sorted(speakers)}"
            )
        if self.pairs:
            self.splits = index_questions(self.pairs, self.home, self.splits)

    def text(self, least: int, most: int | None) -> None:
        """Text chats, and the same with the question said back first, if there is a text set."""
        if self.pairs is None:
            return
        chats, repeats = (self._balanced(task, least, most) for task in ("chat", "repeat"))
        parts = [*chats, *map(WithoutRefusals, repeats)]
        self._write("text", {"text": self._parts("text", "text", parts)}, None)

    def cross_modal(self, chat_ratio: float, read_by: str | None) -> None:
        """ASR of every speaker, TTS of one speaker, of all (None) or of none (""), and text chats by ratio."""
        built = {}
        for task, speaker in (("asr", None), ("tts", read_by)):
            if speaker == "":
                continue
            parts: list[InputPart] = []
            for unit_set, weight in self.sources:
                parts += shard_parts(
                    unit_set,
                    task,
                    self.seed,
                    self.splits,
                    speech=self.speech,
                    weight=weight,
                    speaker=speaker,
                    instructions=self.instructions,
                )
            built[task] = self._parts("cross_modal", task, parts)
        there = sum(part.rows for part in self._lines("chat"))
        if chat_ratio > 0 and there:
            wanted = chat_ratio * sum(one.total() for one in built.values())
            built["chat"] = self._parts("cross_modal", "chat", self._lines("chat", wanted / there))
        self._write("cross_modal", built, self.codebook)

    def chain(self, options: ChainConfig) -> None:
        """Every spoken question of the text set, chats of several turns that one speaker asks; the rest is typed."""
        if self.pairs is None:
            return
        if not self.voice and any(kind.endswith("speech") for kind, _ in options.shares):
            print("no chain is built: --voice says who answers")
            return
        spoken = index_spoken([unit_set for unit_set, _ in self.sources], self.splits, self.home, self.voice)
        chain = ChainSettings(spoken, self.voice, options.shares, options.wording, self.seed, self.splits, self.speech)
        reads = (self.pairs, *(unit_set.folder / COMPLETION_FILE for unit_set, _ in self.sources))
        parts: list[InputPart] = [
            ChainPart(unit_set.folder, i, unit_set.rows(i), chain, reads)
            for unit_set, _ in self.sources
            for i in range(unit_set.shards)
        ]
        parts += [ChainChatPart(part, chain, reads) for part in self._lines("chat")]
        self._write("chain", {"chain": self._parts("chain", "chain", parts)}, self.codebook)

    def chain_halves(self, least: int, most: int | None) -> None:
        """Transcripts of the utterances that begin no chain, and answers after transcripts that are given."""
        if self.pairs is None:
            return
        halves = HalvesSettings(self.voice, self.seed, self.splits, self.speech)
        shards = tuple((unit_set.folder, i) for unit_set, _ in self.sources for i in range(unit_set.shards))
        transcripts = [
            TranscriptPart(unit_set.folder, i, unit_set.rows(i), halves, (self.pairs,))
            for unit_set, _ in self.sources
            for i in range(unit_set.shards)
        ]
        chats = self._balanced("chat", least, most)
        answers = [AnswerPart(part, i, shards, halves) for i, part in enumerate(chats)]
        built = {
            TRANSCRIPT: self._parts("chain_halves", TRANSCRIPT, transcripts),
            ANSWER: self._parts("chain_halves", ANSWER, answers),
        }
        self._write("chain_halves", built, self.codebook)

    def finish(self) -> None:
        """Write `build.json`, and forget the parts."""
        facts = {
            "counts": self.counts,
            "refused": self.refused,
            "codebook": self.codebook.name,
            "sides": self.split_of_set,  # the format's name for splits
        }
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

    def _balanced(self, task: str, least: int, most: int | None) -> list[InputPart]:
        """The text set in parts, or as one part if its families are to be balanced."""
        parts = self._lines(task)
        if self.pairs is None or (least == 1 and most is None):
            return [*parts]
        rows = sum(part.rows for part in parts)
        return [BalancedPart(self.pairs, rows, task, least, most, self.seed, self.splits, self.instructions)]

    def _folder(self, name: str) -> PartFolder:
        return PartFolder(self.home / name, tuple(self.splits.possible), self.compress)

    def _parts(self, name: str, parts_name: str, parts: Sequence[InputPart]) -> BuildCounts:
        return self._folder(name).build(parts, parts_name, self.workers)

    def _write(self, name: str, built: dict[str, BuildCounts], codebook: Codebook | None) -> None:
        """Put a set's parts together, one file for each split."""
        whole = merge_counts(built.values())
        if whole.refused:
            self.refused[name] = dict(whole.refused)
        self._folder(name).list_refusals(self.out / f"{name}.refused.jsonl", list(built))
        for split in self.splits.possible:
            stem = name if split == "train" else f"{name}_{split}"
            path = self.out / f"{stem}.jsonl{'.gz' if self.compress else ''}"
            self._folder(name).assemble(path, split, list(built), whole, codebook, self.seed)
            self.counts[stem], self.split_of_set[stem] = dict(whole.counts[split]), split


def build_sets(sources: Sequence[UnitSource], pairs: Path | None, voice: str, out: Path, config: BuildConfig) -> None:
    """Build the sets of one run in the folder `out`. The arguments are those of the command instruct-build."""
    opened = [(read_unit_set(source.path.resolve()), source.weight) for source in sources]
    with Workers(config.workers) as pool:
        build = Build(
            sources=opened,
            pairs=pairs and pairs.resolve(),
            voice=voice,
            out=out,
            seed=config.seed,
            splits=SetSplits(**vars(config.splits)),
            speech=SpeechWriter(config.speech, out.resolve()),
            instructions=config.instructions,
            compress=config.compress,
            workers=pool,
        )
        build.text(config.least_of_a_family, config.most_of_a_family)
        build.cross_modal(config.chat_ratio, voice if config.tts_of == "voice" else None)
        build.chain(config.chain)
        if config.chain.halves:
            build.chain_halves(config.least_of_a_family, config.most_of_a_family)
    build.finish()
    for missing in untaught(config.instructions):
        print(f"warning: {missing}")


def untaught(instructions: Path) -> list[str]:
    """Warnings about the task descriptions that a system uses later and that this folder does not hold."""
    if instructions.resolve().is_relative_to(INSTRUCTIONS.resolve()):
        return []  # tests check those that come with the package
    from speechgpt.prompts import ASR_TASK, TTS_TASK  # imports torch, which building does not need

    return [
        f"{instructions / task}.txt has no line {asked!r}, with which a model is asked in use; add it, and build again"
        for task, asked in (("asr", ASR_TASK), ("tts", TTS_TASK))
        if asked not in read_instructions(task, instructions)
    ]

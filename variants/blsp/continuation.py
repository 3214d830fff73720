"""Labels by the LLM itself: what it writes about transcripts, to be learned from the recordings of them.

    python -m variants.blsp.continuation runs/toy/corpus/train.jsonl runs/toy/blsp_labels --llm runs/toy/blsp_llm
    python -m variants.blsp.continuation asr.jsonl labels --llm meta-llama/Llama-2-7b-hf --device cuda
    python -m variants.blsp.continuation asr.jsonl labels --llm M --behaviours '{"continue": 1, "repeat": 1}'

The source has recordings and their transcripts: a manifest with texts, the published code's lines, or a conversation
set. Each utterance gets one behaviour, drawn by weight and by its id. The output is a folder of shards, each of a fixed
range of rows; ranks share them, a killed run resumes, and `labels.json` is written last. What is left out is listed in
`refused.jsonl`.

Source: data_process/asr_text_generation.py of github.com/cwang621/blsp (f7bf52f), whose instruction, length and limits
are the defaults.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.refusals import Reason
from units.runtime.settings import check_types
from variants.blsp.config import CONTINUE

if TYPE_CHECKING:
    from units.corpus.manifest import Utterance
    from units.runtime.refusals import Refusal
    from variants.blsp.data.labels import Label

INSTRUCTIONS: Mapping[str, str] = {
    "continue": CONTINUE,
    "repeat": "Please repeat the following words.",
    "answer": "",
    "translate": "Please translate the following text into German text.",
}
BEGUN = "begun.json"
Repeats = Literal["exact", "any", "transcript"]


class LabelReason(Reason):
    """Why an utterance gets no label."""

    NO_TRANSCRIPT = "no_transcript"
    """it has no text, or one without a word"""
    LONG_PROMPT = "long_prompt"
    """its prompt has too many tokens"""
    EMPTY = "empty_response"
    """the LLM wrote nothing, or no word"""
    UNFINISHED = "unfinished_response"
    """the response was cut at its longest, and --finished asks for whole ones"""
    NOT_REPEATED = "not_repeated"
    """the LLM did not repeat the transcript, and --repeats exact asks for that"""


@dataclass(frozen=True)
class Labelling:
    """How labels are written."""

    behaviours: dict[str, float] = field(default_factory=lambda: {"continue": 1.0})
    """What the LLM is asked for, and how often, relative to the others: continue, repeat, answer, translate, or names
    of `instructions`."""
    instructions: dict[str, str] = field(default_factory=dict)
    """Instruction of each behaviour, where it is not the usual one."""
    template: Literal["blsp", "chat"] = "blsp"
    """How turns are written: as by the published code, or by the tokenizer's chat template."""
    normalise: bool = False
    """Write transcripts in Whisper's English normal form, lower case without punctuation, as the published code."""
    max_new_tokens: int = 64
    """The longest response, in tokens."""
    longest_prompt: int = 191
    """The longest prompt, in tokens."""
    finished: bool = False
    """Leave out responses that are cut at `max_new_tokens`."""
    repeats: Repeats = "exact"
    """Responses of the behaviour repeat. exact leaves out those that are not the transcript, any keeps them, and
    transcript takes the transcript itself without asking the LLM: for one that could repeat it, and mostly says
    something else first."""
    batch: int = 32
    """Prompts at once."""
    shard_size: int = 1000
    """Rows of a shard."""
    limit: int = 0
    """The most utterances, evenly spaced; 0 takes all."""
    dtype: str | None = None
    """Of the LLM's weights: float32, bfloat16 or float16. By default the one that they are stored in, but float32 for
    half-precision weights on a device that would only emulate it."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("max_new_tokens", "longest_prompt", "batch", "shard_size"):
            check_range(name, getattr(self, name), 1)
        check_range("limit", self.limit, 0)
        if not self.behaviours:
            raise ValueError(f"behaviours are {self.behaviours}; at least one is needed")
        for behaviour, weight in self.behaviours.items():
            check_range(f"behaviours.{behaviour}", weight, 0, exclusive=True)
        if self.repeats not in get_args(Repeats):
            raise ValueError(f"repeats is {self.repeats!r}; it is exact, any or transcript")
        if unknown := sorted(self.behaviours.keys() - {**INSTRUCTIONS, **self.instructions}.keys()):
            raise ValueError(
                f"behaviours: {', '.join(unknown)} has no instruction; known are {', '.join(INSTRUCTIONS)}, and "
                "--instructions names others"
            )

    def instruction(self, behaviour: str) -> str:
        """The instruction of a behaviour."""
        return {**INSTRUCTIONS, **self.instructions}[behaviour]

    def behaviour(self, id: str) -> str:
        """The behaviour of an utterance: the same in every run."""
        import numpy as np

        from units.runtime.provenance import digest

        share = int(digest([id], 13), 16) / 16**13
        edges = np.cumsum(list(self.behaviours.values())) / sum(self.behaviours.values())
        return list(self.behaviours)[min(int(np.searchsorted(edges, share, side="right")), len(edges) - 1)]


@command("blsp-continuation", flat=True)
def main(
    source: Path,
    out: Path,
    llm: str = "",
    device: str = "cpu",
    rank: int | None = None,
    world: int | None = None,
    how: Labelling = Labelling(),
) -> int | None:
    """Have the LLM write what it would respond to the transcripts of a corpus.

    Args:
        source: a manifest with texts, the {"audio", "text"} lines of the published code, or a conversation set with
            recordings and transcripts
        out: folder for the labels
        llm: a Hugging Face folder or hub id: the LLM that will listen; needed
        device: cpu, cuda, or cuda:N
        rank: of this process, from 0; torchrun and SLURM give it
        world: number of processes
        how: how labels are written
    """
    from eval.test_set import spread
    from units.runtime.files.atomic import check_begun
    from units.runtime.progress import progress
    from units.runtime.ranks import this_rank
    from variants.blsp.data.examples import utterances_of
    from variants.blsp.data.labels import COMPLETION_FILE
    from variants.references import fingerprint, located

    if not llm:
        raise ValueError("--llm is needed: the folder or hub id of the LLM that will listen")
    ranks = this_rank(rank, world)
    utterances = utterances_of(source)
    if not utterances:
        raise ValueError(f"{source} holds no utterances")
    utterances = spread(utterances, how.limit or None)
    starts = range(0, len(utterances), how.shard_size)
    if (out / COMPLETION_FILE).exists():
        print(f"the labels in {out} are done already")
        return None
    plan = {"source": str(source), "utterances": len(utterances), "llm": fingerprint(located(llm)), **asdict(how)}
    check_begun(out / BEGUN, plan | {"batch": None})
    mine = [number for number in range(len(starts)) if number % ranks.world == ranks.rank]
    todo = [number for number in mine if not shard_files(out, number)[1].exists()]
    writer = LabelWriter(llm, ranks.device(device), how) if todo else None
    shards = [utterances[starts[number] : starts[number] + how.shard_size] for number in todo]
    with progress(total=sum(map(len, shards)), desc="labels", unit="utterances") as bar:
        for number, rows in zip(todo, shards):
            assert writer
            write_shard(writer, rows, out, number, bar.update)
    return finish(out, len(starts), plan)


def shard_files(out: Path, number: int) -> tuple[Path, Path]:
    """Labels of a shard, and what it left out, which is written last."""
    return out / f"shard-{number:05d}.jsonl", out / f"shard-{number:05d}.refused"


def write_shard(
    writer: LabelWriter, rows: Sequence[Utterance], out: Path, number: int, advance: Callable[[int], Any]
) -> None:
    """Write the labels of some utterances, then what was left out. advance: as for LabelWriter.labels."""
    from units.runtime.files.atomic import written_whole
    from variants.blsp.data.labels import write_labels

    labels, refused = writer.labels(rows, advance)
    file, last = shard_files(out, number)
    write_labels(file, labels)
    with written_whole(last) as lines:
        lines.writelines(refusal.line() for refusal in refused)


def finish(out: Path, shards: int, plan: dict[str, Any]) -> int | None:
    """Write `refused.jsonl` and `labels.json`, once all shards of all ranks are there."""
    from units.runtime.files.atomic import written_whole
    from units.runtime.files.json_files import json_lines
    from units.runtime.refusals import counted, read_refusals
    from variants.blsp.data.labels import COMPLETION_FILE

    files = [shard_files(out, number) for number in range(shards)]
    if missing := sum(not last.exists() for _, last in files):
        print(f"{missing} of {shards} shards are left to other processes")
        return None
    with written_whole(out / "refused.jsonl") as refused:
        for _, last in files:
            refused.write(last.read_text(encoding="utf-8"))
    refusals = read_refusals(row for _, row in json_lines(out / "refused.jsonl"))
    reasons = Counter(reason for _, reason, _ in refusals)
    behaviours: Counter[str] = Counter()
    for file, _ in files:
        behaviours.update(row["behaviour"] for _, row in json_lines(file, {"behaviour": str}))
    with written_whole(out / COMPLETION_FILE) as facts:
        json.dump({"labels": dict(sorted(behaviours.items())), "refused": dict(sorted(reasons.items())), **plan}, facts)
    print(f"{behaviours.total()} labels ({dict(behaviours)}) in {out}; {counted(reasons)}")
    return SOME_REFUSED if reasons else None


class LabelWriter:
    """The LLM that responds to transcripts."""

    def __init__(self, llm: str, device: str, how: Labelling) -> None:
        from variants.blsp.template import open_template
        from variants.listening import ends_of
        from variants.references import located
        from variants.speech_in.listener import open_llm

        self.how = how
        model, self.tokenizer = open_llm(located(llm), device, how.dtype)
        self.model = model.to(device).eval()
        self.template = open_template(how.template, self.tokenizer)
        self.ends = ends_of(self.model, self.tokenizer)

    def labels(
        self, rows: Sequence[Utterance], advance: Callable[[int], Any] = lambda count: None
    ) -> tuple[list[Label], list[Refusal]]:
        """Labels of some utterances in their order, and those that were left out.

        Args:
            advance: called with the number of utterances that were labelled or left out since the last call.
        """
        from units.corpus.manifest import has_word
        from units.runtime.refusals import refusal_of

        asked: list[tuple[int, list[int]]] = []
        found: dict[int, Label] = {}
        refused: dict[int, Refusal] = {}
        for place, utterance in enumerate(rows):
            transcript = self._transcript(utterance)
            if not has_word(transcript):
                refused[place] = refusal_of(utterance.id, LabelReason.NO_TRANSCRIPT, audio=utterance.audio)
                continue
            prompt = self.template.read_aloud(self._instruction(utterance), transcript)
            if len(prompt) > self.how.longest_prompt:
                detail = f"{len(prompt)} tokens; at most {self.how.longest_prompt} are allowed"
                refused[place] = refusal_of(utterance.id, LabelReason.LONG_PROMPT, detail)
                continue
            if self.how.repeats == "transcript" and self.how.behaviour(utterance.id) == "repeat":
                found[place] = self._label(utterance, transcript)
                continue
            asked.append((place, prompt))
        asked.sort(key=lambda one: len(one[1]))  # so that a batch has little padding
        advance(len(rows) - len(asked))
        for start in range(0, len(asked), self.how.batch):
            some = asked[start : start + self.how.batch]
            for (place, _), ids in zip(some, self.written([prompt for _, prompt in some])):
                text = self.tokenizer.decode(
                    [token for token in ids if token not in self.ends], skip_special_tokens=True
                )
                label = self._label(rows[place], text.strip())
                if (reason := self._left_out(label, finished=ids[-1] in self.ends)) is not None:
                    refused[place] = refusal_of(rows[place].id, reason, label.response)
                else:
                    found[place] = label
            advance(len(some))
        return [label for _, label in sorted(found.items())], [refusal for _, refusal in sorted(refused.items())]

    def written(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """What the LLM writes after some prompts, greedily: token ids, with the one that ended it."""
        from speechgpt.generation.generate import embedded_draws
        from speechgpt.sampling import Sampling

        found: list[list[int]] = [[] for _ in prompts]
        sampling = Sampling(max_new_tokens=self.how.max_new_tokens)
        embed = self.model.get_input_embeddings()
        for tokens in embedded_draws(self.model, prompts, embed, self.ends, sampling):
            for reply, token in zip(found, tokens):
                if token is not None:
                    reply.append(token)
        return found

    def _instruction(self, utterance: Utterance) -> str:
        return self.how.instruction(self.how.behaviour(utterance.id))

    def _transcript(self, utterance: Utterance) -> str:
        text = (utterance.text or "").strip()
        if self.how.normalise and text:
            from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

            text = EnglishTextNormalizer({})(text)
        return text

    def _label(self, utterance: Utterance, response: str) -> Label:
        from speechgpt.dialogue import Speech
        from variants.blsp.data.labels import Label

        speech = Speech(str(utterance.audio), utterance.start, utterance.duration)
        behaviour, transcript = self.how.behaviour(utterance.id), self._transcript(utterance)
        return Label(utterance.id, speech, response, behaviour, self._instruction(utterance), transcript)

    def _left_out(self, label: Label, finished: bool) -> LabelReason | None:
        """Why a label is left out, if it is. finished: whether the LLM ended the response itself."""
        from units.corpus.manifest import has_word

        if not has_word(label.response):
            return LabelReason.EMPTY
        if self.how.finished and not finished:
            return LabelReason.UNFINISHED
        if label.behaviour == "repeat" and self.how.repeats == "exact" and label.response != label.transcript:
            return LabelReason.NOT_REPEATED
        return None


if __name__ == "__main__":
    main.cli()

"""How far hearing is from reading: the loss of labels when the LLM hears a recording, and when it reads its transcript.

    python -m variants.blsp.label_loss runs/b/blsp heldout_labels
    python -m variants.blsp.label_loss runs/b/blsp heldout_labels --before runs/b/scratch

The labels are those of recordings that were not trained on (`blsp-continuation` on a test manifest). No adapter is
expected to do better than the LLM that reads. With --before, the table also says which share of the distance from an
earlier adapter to the LLM that reads was closed.

Recordings that cannot be used are counted by reason, and the exit code is 3.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from units.runtime.command import SOME_REFUSED, command
from units.runtime.refusals import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from units.runtime.refusals import Refusals
    from variants.blsp.data.labels import Label
    from variants.blsp.inference import BLSP


class LossReason(Reason):
    """Why a label has no loss."""

    NO_TRANSCRIPT = "no_transcript"
    """nothing is known that the LLM could read"""
    UNUSABLE = "unusable_recording"
    """the recording cannot be read, is silent or too short, or does not fit the context"""


@dataclass
class LabelLoss:
    """Losses of the labels of one behaviour, summed over their tokens, in nats.

    before: of an earlier adapter; 0 where there is none.
    """

    labels: int = 0
    tokens: int = 0
    sums: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "heard": 0.0, "before": 0.0})

    def __add__(self, other: LabelLoss) -> LabelLoss:
        """The losses of both."""
        sums = {way: value + other.sums[way] for way, value in self.sums.items()}
        return LabelLoss(self.labels + other.labels, self.tokens + other.tokens, sums)

    def mean(self, way: str) -> float:
        """Nats a token: `read`, `heard`, or `before`."""
        return self.sums[way] / self.tokens

    @property
    def closed(self) -> float | None:
        """Share of the distance from `before` to `read` that was closed; None where there was none to close."""
        distance = self.sums["before"] - self.sums["read"]
        return (self.sums["before"] - self.sums["heard"]) / distance if distance > 0 else None


@command("blsp-label-loss")
def main(model: Path, labels: Path, before: Path | None = None, device: str = "cpu") -> int | None:
    """Compare the loss of labels that are heard with that of labels that are read.

    Args:
        model: a BLSP folder
        labels: labels with transcripts: a folder of blsp-continuation, or a file
        before: a BLSP folder with the adapter to compare with, on the same LLM
        device: cpu, cuda, or cuda:N
    """
    from units.runtime.progress import progress
    from units.runtime.refusals import Refusals
    from variants.blsp.data.labels import read_labels
    from variants.blsp.inference import BLSP

    models = {"heard": BLSP.from_pretrained(model, device)}
    if before is not None:
        models["before"] = BLSP.from_pretrained(before, device)
        check_same_llm(models["heard"], models["before"])
    refusals = Refusals()
    chosen = list(read_labels(labels))
    found = label_losses(models, progress(chosen, desc="losses", unit="labels"), refusals)
    if not found:
        raise ValueError(f"{labels} has no label that can be scored: {refusals}")
    print("\n".join(summary(found, before is not None)))
    if refusals.counts:
        print(f"{refusals} of {len(chosen)} labels")
    return SOME_REFUSED if refusals.counts else None


def check_same_llm(model: BLSP, before: BLSP) -> None:
    """Raise ValueError unless two models have one LLM and one template."""
    one, two = ((facts.llm.fingerprint, facts.template) for facts in (model.facts, before.facts))
    if one != two:
        raise ValueError(f"{before.folder} has another LLM or template than {model.folder}; only adapters are compared")


def label_losses(models: Mapping[str, BLSP], labels: Iterable[Label], refusals: Refusals) -> dict[str, LabelLoss]:
    """Losses of labels by behaviour.

    Args:
        models: `heard`, and `before` if there is one.
        refusals: are given the labels that cannot be scored.
    """
    from speechgpt.dialogue import Message

    found: dict[str, LabelLoss] = defaultdict(LabelLoss)
    reader = models["heard"]
    for label in labels:
        if not label.transcript:
            refusals.add(label.id, LossReason.NO_TRANSCRIPT, "the label has no transcript", label.speech.audio)
            continue
        asked, reply = label.messages(reader.facts.instructions["continue"])
        written = tuple(label.transcript if part is label.speech else part for part in asked.parts)
        try:
            losses = {name: model.losses([asked, reply]) for name, model in models.items()}
            losses["read"] = reader.losses([Message("human", written), reply])
        except (OSError, ValueError) as error:
            refusals.add(label.id, LossReason.UNUSABLE, str(error), label.speech.audio)
            continue
        one = found[label.behaviour]
        one.labels += 1
        one.tokens += len(losses["read"])
        for name, each in losses.items():
            one.sums[name] += each.sum().item()
    return dict(found)


def summary(found: Mapping[str, LabelLoss], compared: bool) -> list[str]:
    """The lines of a table, in nats a token, the last one of all behaviours, where there are several.

    Args:
        compared: whether there is an earlier adapter.
    """
    from eval.report.markdown import table

    rows = []
    every = [("all", sum(found.values(), LabelLoss()))] if len(found) > 1 else []
    for behaviour, one in [*sorted(found.items()), *every]:
        cells = [behaviour, str(one.labels), str(one.tokens), f"{one.mean('read'):.3f}", f"{one.mean('heard'):.3f}"]
        if compared:
            cells += [f"{one.mean('before'):.3f}", "-" if one.closed is None else f"{one.closed:.0%}"]
        rows.append(cells)
    return table(["behaviour", "labels", "tokens", "read", "heard", *(["before", "closed"] if compared else [])], rows)


if __name__ == "__main__":
    main.cli()

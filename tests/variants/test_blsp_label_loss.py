"""The loss of labels that are heard, beside that of labels that are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_blsp import blsp_config, make_blsp_run, saying_words
from transformers import AutoModelForCausalLM

from speechgpt.dialogue import Message, Speech
from stages.train import train
from units.runtime.command import SOME_REFUSED
from units.runtime.refusals import Refusals
from variants.blsp import label_loss
from variants.blsp.data.labels import Label, read_labels, write_labels
from variants.blsp.inference import BLSP
from variants.blsp.label_loss import LabelLoss, label_losses, summary
from variants.blsp.stages.system import BLSP_SYSTEM


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with an adapter before training, and one after it."""
    run = make_blsp_run(tmp_path_factory.mktemp("losses"))
    train(blsp_config(run, out="before", training={"max_steps": 1, "learning_rate": 0.0}), system=BLSP_SYSTEM)
    train(blsp_config(run, training={"max_steps": 40}), system=BLSP_SYSTEM)
    return run


@pytest.fixture(scope="module")
def model(run) -> BLSP:
    return BLSP.from_pretrained(run / "blsp")


def test_what_is_read_costs_what_the_llm_alone_says(run, model) -> None:
    label = next(read_labels(run / "labels.jsonl"))
    prompt = model.template.read_aloud("my cat", "red dog")
    reply = [*model.template.text(label.response), model.tokenizer.eos_token_id]
    ids = torch.tensor([prompt + reply])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(run / "text_llm")(input_ids=ids, labels=labels).loss
    losses = model.losses([Message("human", ("my cat", "red dog")), Message("assistant", (label.response,))])
    assert len(losses) == len(reply)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_heard_costs_what_the_stage_says(run, model) -> None:
    """Of the labels that the stage held out, which its log gives the mean loss of."""

    held_out = [json.loads(line) for line in (run / "blsp/log.jsonl").read_text().splitlines()]
    said = [row["dev_text_loss"] for row in held_out if "dev_text_loss" in row][-1]
    losses = [model.losses(label.messages("")) for label in read_labels(run / "labels.jsonl")]
    # three labels of the thirty are held out, and all are of one length
    means = torch.stack([one.mean() for one in losses])
    threes = torch.combinations(means, 3).mean(1)
    assert (threes - said).abs().min() < 1e-4


def test_by_behaviour_and_with_the_share_that_was_closed(run, capsys) -> None:
    assert label_loss.main(run / "blsp", run / "labels.jsonl", run / "before") is None
    *_, head, _, row = capsys.readouterr().out.strip().split("\n")
    assert head == "| behaviour | labels | tokens | read | heard | before | closed |"
    behaviour, labels, _, read, heard, before, closed = [cell.strip() for cell in row.strip("|").split("|")]
    assert (behaviour, labels) == ("answer", "30")
    share = (float(before) - float(heard)) / (float(before) - float(read))
    assert float(closed.rstrip("%")) / 100 == pytest.approx(share, rel=0.02)


def test_a_share_by_hand() -> None:
    assert LabelLoss(1, 4, {"read": 4.0, "heard": 6.0, "before": 12.0}).closed == 0.75
    assert LabelLoss(1, 4, {"read": 4.0, "heard": 6.0, "before": 4.0}).closed is None
    found = {
        "repeat": LabelLoss(1, 4, {"read": 4.0, "heard": 6.0, "before": 12.0}),
        "answer": LabelLoss(2, 6, {"read": 1.0, "heard": 4.0, "before": 3.0}),
    }
    assert summary(found, True)[-1] == "| all | 3 | 10 | 0.500 | 1.000 | 1.500 | 50% |"
    assert len(summary({"repeat": found["repeat"]}, True)) == 3


def test_labels_that_cannot_be_scored_are_counted(run, model, tmp_path, capsys) -> None:
    good = next(read_labels(run / "labels.jsonl"))
    missing = Label("gone", Speech(str(tmp_path / "gone.wav")), "one", "answer", "my", "red dog")
    unknown = Label("unknown", good.speech, "one", "answer", "my", None)
    endless = Label("endless", good.speech, "red " * 500, "answer", "my", "red dog")
    refusals = Refusals()
    found = label_losses({"heard": model}, [missing, good, unknown, endless], refusals)
    assert found["answer"].labels == 1
    assert refusals.counts == {"unusable_recording": 2, "no_transcript": 1}

    write_labels(tmp_path / "labels.jsonl", [good, missing])
    assert label_loss.main(run / "blsp", tmp_path / "labels.jsonl") == SOME_REFUSED
    assert "1 unusable_recording" in capsys.readouterr().out
    write_labels(tmp_path / "none.jsonl", [missing])
    with pytest.raises(ValueError, match="none.jsonl has no label that can be scored: 1 refused .1 unusable_recording"):
        label_loss.main(run / "blsp", tmp_path / "none.jsonl")


def test_adapters_of_two_llms_are_not_compared(run, tmp_path) -> None:
    saying_words(run / "text_llm", run / "other_llm")
    changed = blsp_config(run, model="other_llm", out="foreign", training={"max_steps": 1})
    train(changed, system=BLSP_SYSTEM)
    with pytest.raises(ValueError, match="another LLM or template .* only adapters are compared"):
        label_loss.main(run / "blsp", run / "labels.jsonl", run / "foreign")

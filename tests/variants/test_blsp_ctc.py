"""BLSP's stage of kind ctc: the loss, what is heard, the stage in the one trainer, and feature sets in training."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_blsp import blsp_config, make_blsp_run
from transformers import TrainerCallback

from stages import stage
from stages.config import Source
from stages.packing.blocks import load_blocks
from stages.planning.cluster import Cluster
from stages.planning.plan import make_plan
from stages.train import train
from units.dataset import extract
from variants.blsp import hear
from variants.blsp.inference import BLSP
from variants.blsp.records import ADAPTER_FILE, read_adapter
from variants.blsp.stages.system import BLSP_SYSTEM
from variants.speech_in.config import Disturbance
from variants.speech_in.hearing.ctc import HEAD_FILE, TokenHead, ctc_loss, heard, places_needed
from variants.speech_in.stage import disturbed

LONG = {"max_steps": 60, "save_steps": 30, "eval_steps": 30}
ASR = [Source("asr.jsonl")]
STATES = ("--features", "--layer", "1", "--processes", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_blsp_run(tmp_path_factory.mktemp("ctc"))
    extract.main.cli([str(run / "asr.jsonl"), str(run / "features"), *STATES])
    return run


@pytest.fixture(scope="module")
def listened(run) -> Path:
    stated = blsp_config(run, kind="ctc", out="heard", data=ASR, features="features", training=LONG)
    return train(stated, system=BLSP_SYSTEM)


# --- the loss


def test_the_loss_is_the_sum_over_all_paths() -> None:
    scores = torch.randn(7, 4, generator=torch.manual_seed(0))
    counts, said, said_counts = [4, 3], torch.tensor([1, 3, 2]), [2, 1]
    expected = 0.0
    for part, target in zip(scores.log_softmax(-1).split(counts), ([1, 3], [2])):
        total = 0.0
        for path in itertools.product(range(4), repeat=len(part)):
            merged = [column for column, _ in itertools.groupby(path)]
            if [column for column in merged if column] == target:
                total += float(torch.stack([part[place, column] for place, column in enumerate(path)]).sum().exp())
        expected -= np.log(total)
    assert ctc_loss(scores, counts, said, said_counts).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])  # of the scores: nothing is known, to nearly all is
def test_gradients_are_those_of_ctc_over_all_columns(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    counts, said, said_counts = [9, 6, 4], torch.tensor([3, 3, 40, 7, 5, 9, 5, 2]), [4, 3, 1]
    scores = scale * torch.randn(sum(counts), 60, generator=draw)
    scores[torch.arange(9), torch.tensor([3, 0, 3, 40, 40, 0, 7, 7, 0])] += 2 * scale
    own, whole = scores.clone().requires_grad_(), scores.double().requires_grad_()
    loss = ctc_loss(own, counts, said, said_counts)
    rows = torch.nn.utils.rnn.pad_sequence(list(whole.log_softmax(-1).split(counts)))
    lengths = torch.tensor(counts), torch.tensor(said_counts)
    expected = torch.nn.functional.ctc_loss(rows, said, *lengths, reduction="sum")
    (loss + expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.grad is not None and whole.grad is not None
    assert (own.grad - whole.grad).abs().max() < 3e-5  # of float32, as that of log_softmax


def test_repeats_are_merged_and_blanks_left_out() -> None:
    columns = torch.tensor([0, 2, 2, 0, 2, 1, 0, 3, 3])
    assert heard(torch.eye(4)[columns], [6, 3], torch.tensor([10, 20, 30])) == [[20, 20, 10], [30]]
    assert [places_needed(tokens) for tokens in ([], [5], [5, 5], [5, 6, 6, 6])] == [0, 1, 3, 6]


def test_scores_are_cosines_with_the_llm_s_rows() -> None:
    rows = torch.randn(3, 8, generator=torch.manual_seed(0))
    head = TokenHead(torch.tensor([4, 7, 9]), rows)
    found = head(torch.stack([rows[1] * 5, head.blank * 3]))
    scale = head.log_scale.exp()
    assert found[0, 2].item() == pytest.approx(scale.item(), rel=1e-5)
    assert found[1, 0].item() == pytest.approx((scale + head.bias).item(), rel=1e-5)
    assert found.shape == (2, 4) and found[0].argmax() == 2 and found[1].argmax() == 0
    assert head.columns(torch.tensor([9, 4])).tolist() == [3, 1]
    for unknown in (5, 100):
        with pytest.raises(ValueError, match="does not know"):
            head.columns(torch.tensor([unknown]))


# --- the stage


def test_the_adapter_learns_to_hear_words(run, listened, tmp_path, capsys) -> None:
    records = [json.loads(line) for line in (listened / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.3 * losses[0]
    assert [record["dev_wer"] for record in records if "dev_wer" in record][-1] == 0
    assert {path.name for path in listened.glob("*.safetensors")} == {ADAPTER_FILE, HEAD_FILE}
    assert json.loads((listened / "speechgpt.json").read_text())["config"]["kind"] == "ctc"
    hear.main(listened, run / "asr.jsonl", tmp_path / "heard.jsonl")
    assert "word error rate 0." in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    short = 4  # of the recordings have fewer places than words, and were left out
    assert len(rows) == 30 and sum(row["response"] == row["reference"] for row in rows) >= 29 - short


def test_a_stage_of_kind_speech_starts_from_it(run, listened) -> None:
    stated = blsp_config(run, model="heard", out="after", training={"max_steps": 1, "learning_rate": 1e-12})
    folder = train(stated, system=BLSP_SYSTEM)
    begun = read_adapter(listened)
    for name, weight in read_adapter(folder).items():
        torch.testing.assert_close(weight, begun[name])
    assert not (folder / HEAD_FILE).exists()
    assert BLSP.from_pretrained(listened).transcribe(run / "wav/t0.wav") is not None  # the folder opens as any other


class Kill(TrainerCallback):
    """A process that dies after a step."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_killed_stage_resumes_to_the_same_weights(run, monkeypatch) -> None:
    stated = blsp_config(
        run, kind="ctc", out="whole", data=ASR, features="features", disturbance=Disturbance(0.1, 0.2, 0.1)
    )
    whole = read_adapter(train(stated, system=BLSP_SYSTEM))
    usual, killed = stage.StageTrainer, dataclasses.replace(stated, out="killed")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "StageTrainer", lambda *a, callbacks, **k: usual(*a, callbacks=[*callbacks, Kill()], **k))
        with pytest.raises(KeyboardInterrupt):
            train(killed, system=BLSP_SYSTEM)
    for name, weight in read_adapter(train(killed, system=BLSP_SYSTEM)).items():
        torch.testing.assert_close(weight, whole[name], atol=1e-6, rtol=0)


def test_transcripts_that_do_not_fit_are_counted(run, tmp_path, capsys) -> None:
    rows = [{"id": "a", "audio": str(run / "wav/t0.wav"), "text": "red"}]
    rows += [{"id": "b", "audio": str(run / "wav/t1.wav"), "text": "blue dog " * 60}]
    rows += [{"id": "c", "audio": str(run / "wav/t2.wav")}]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = BLSP_SYSTEM.open(blsp_config(run, kind="ctc", data=[Source(str(path))], dev_documents=0))
    blocks, _ = load_blocks(opened, 1, quiet=True)
    assert len(blocks.sources[0]) == 1
    assert "1 refused (1 too_short)" in capsys.readouterr().out
    rows = [{"id": "c", "audio": str(run / "wav/t2.wav")}]
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ValueError, match="transcript"):
        BLSP_SYSTEM.open(blsp_config(run, kind="ctc", data=[Source(str(path))]))


def test_labels_give_their_transcripts(run) -> None:
    opened = BLSP_SYSTEM.open(blsp_config(run, kind="ctc", features="features"))
    blocks, _ = load_blocks(opened, 2, quiet=True)
    said = blocks[0]["said"].split(1)
    assert opened.tokenizer.decode(torch.cat(said).tolist()).count("dog") == len(blocks.documents_of(0))


def test_a_head_of_another_llm_is_refused(listened, tmp_path) -> None:
    for path in listened.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    facts = json.loads((tmp_path / "speechgpt.json").read_text())
    facts["extra"]["llm"]["path"] = str(listened.parent / "text_llm")
    (tmp_path / "speechgpt.json").write_text(json.dumps(facts))
    weights = load_file(listened / HEAD_FILE)
    save_file({**weights, "blank": weights["blank"][:5].clone()}, tmp_path / HEAD_FILE)
    with pytest.raises(ValueError, match="another LLM"):
        hear.open_hearer(tmp_path)
    (tmp_path / HEAD_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="learns to hear words"):
        hear.open_hearer(tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"), [({"trainable": "all"}, "runs no LLM"), ({"kind": "words"}, "text, ctc or speech")]
)
def test_configs_that_cannot_be(run, changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        blsp_config(run, **{"kind": "ctc", **changes})


def test_it_is_planned(run) -> None:
    stated = blsp_config(run, kind="ctc", data=ASR)
    size = BLSP_SYSTEM.size(stated, None)
    adapter = sum(weight.numel() for weight in BLSP_SYSTEM.open(stated).model.adapter.parameters())
    assert adapter < size.learning < adapter + 100
    assert make_plan(stated, size, Cluster(1, "A100-80G", 0.4)).fits


# --- states in training


def test_a_disturbance_changes_what_it_says_and_only_in_training(run) -> None:
    states, frames = torch.ones(3, 40, 8), torch.tensor([40, 30, 10])
    torch.manual_seed(0)
    assert torch.equal(disturbed(states, frames, Disturbance(), 4), states)
    noisy = disturbed(torch.randn(3, 40, 8), frames, Disturbance(noise=0.5), 4)
    assert noisy.shape == states.shape
    masked = disturbed(states, frames, Disturbance(time=0.3), 4)
    lost = (masked == 0).all(-1)
    assert torch.equal(lost, (masked == 0).any(-1)) and 0.05 < lost.float().mean() < 0.6
    channels = disturbed(states, frames, Disturbance(channels=0.5), 4)
    assert torch.equal((channels == 0).all(1), (channels == 0).any(1)) and (channels == 0).any()
    opened = BLSP_SYSTEM.open(blsp_config(run, disturbance=Disturbance(noise=1.0)))
    blocks, _ = load_blocks(opened, 1, quiet=True)
    batch = opened.collator()([blocks[0]])
    assert torch.equal(opened.inputs(batch)["states"], batch["states"])
    assert not torch.equal(opened.inputs(batch, learning=True)["states"], batch["states"])


def test_states_of_another_layer_are_refused(run) -> None:
    with pytest.raises(ValueError, match="Extract again"):
        BLSP_SYSTEM.open(blsp_config(run, features="features", encoder_layer=2)).collator()
    with pytest.raises(FileNotFoundError, match="not a complete feature set"):
        BLSP_SYSTEM.open(blsp_config(run, features="nowhere")).collator()


def test_recordings_that_are_not_in_the_feature_set_are_counted(run, tmp_path, capsys) -> None:
    lines = (run / "asr.jsonl").read_text().splitlines()[:8]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(line.replace("wav/", f"{run}/wav/") + "\n" for line in lines))
    extract.main.cli([str(few), str(tmp_path / "few"), *STATES])
    opened = BLSP_SYSTEM.open(blsp_config(run, features=str(tmp_path / "few"), dev_documents=0))
    blocks, _ = load_blocks(opened, 1, quiet=True)
    assert len(blocks.sources[0]) == 8 and "22 refused (22 not_in_set)" in capsys.readouterr().out

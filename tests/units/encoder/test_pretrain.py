"""HuBERT pre-training: a killed run ends where an undisturbed one does; values that are not finite are not kept."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from units.audio import save_wav
from units.corpus.manifest import Utterance, read_manifest, write_manifest
from units.encoder import pretrain
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.pretrain import main
from units.encoder.pretraining import masked_prediction
from units.encoder.pretraining.masked_prediction import IterationTraining, build_model, masked_prediction_loss
from units.encoder.pretraining.pretrain_data import PretrainCorpus
from units.encoder.pretraining.targets import make_targets
from units.encoder.recipes import Iteration, PretrainRecipe
from units.runtime.command import WRONG_CALL, run

RECIPE = PretrainRecipe(
    width=32,
    layers=2,
    heads=2,
    conv_width=16,
    batch_seconds=2.0,
    warmup=2,
    save_every=3,
    iterations=[Iteration(6, {0: [8, 12]}), Iteration(6, {0: [8], 1: [10]})],
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain")
    draw = np.random.default_rng(0)
    utterances = []
    for i in range(8):
        pitch = np.sin(np.arange(16_000 + 800 * i) * (0.05 + 0.01 * i)) * np.sin(np.arange(16_000 + 800 * i) / 900)
        wav = (0.3 * pitch + 0.01 * draw.standard_normal(len(pitch))).astype(np.float32)
        utterances.append(Utterance(f"u{i}", save_wav(folder / f"u{i}.wav", wav)))
    utterances.append(Utterance("bad", folder / "missing.wav"))
    return write_manifest(folder / "m.jsonl", utterances)


def weights(folder):
    return HubertFeatures.from_pretrained(folder / "hubert", 2).model.state_dict()


def test_a_killed_run_ends_where_an_undisturbed_one_does(manifest, tmp_path, monkeypatch):
    main(manifest, tmp_path / "whole", RECIPE, threads=1)
    update, calls = IterationTraining.update, []

    def dying(self, *batch):
        calls.append(1)
        if len(calls) == 11:  # in the second iteration, between two checkpoints
            raise KeyboardInterrupt
        return update(self, *batch)

    monkeypatch.setattr(IterationTraining, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        main(manifest, tmp_path / "cut", RECIPE, threads=1)
    monkeypatch.setattr(IterationTraining, "update", update)
    main(manifest, tmp_path / "cut", RECIPE, threads=1)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.allclose(whole[name], cut[name], atol=1e-3) for name in whole)
    assert json.loads((tmp_path / "cut" / "pretrain.json").read_text())["refused"] == 1


def test_loss_weighs_masked_and_unmasked_frames():
    logits = torch.zeros(1, 4, 5)
    logits[0, :2, 0] = 100.0  # right on the first two frames, undecided on the others
    mask = torch.tensor([[True, True, False, False]])
    loss, accuracy = masked_prediction_loss([logits], torch.zeros(1, 4, 1, dtype=torch.int), mask, 0.5)
    assert accuracy == 1.0
    assert loss.item() == pytest.approx(0.5 * np.log(5), rel=1e-5)


def test_a_changed_corpus_is_refused(manifest, tmp_path):
    short = dataclasses.replace(RECIPE, iterations=[Iteration(1, {0: [8]})])
    main(manifest, tmp_path, short, threads=1)
    fewer = write_manifest(tmp_path / "fewer.jsonl", read_manifest(manifest)[:4])
    with pytest.raises(ValueError, match="it changed"):
        main(fewer, tmp_path, short, threads=1)


def test_an_utterance_that_becomes_readable_after_the_targets_stays_left_out(manifest, tmp_path):
    rows = read_manifest(manifest)
    late = dataclasses.replace(rows[0], id="late", audio=tmp_path / "late.wav")
    more = write_manifest(tmp_path / "more.jsonl", [*rows, late])
    once = dataclasses.replace(RECIPE, iterations=[Iteration(3, {0: [8]})])
    main(more, tmp_path / "out", once, threads=1)
    save_wav(late.audio, np.sin(np.arange(16_000)).astype(np.float32))
    main(more, tmp_path / "out", once, threads=1)
    result = json.loads((tmp_path / "out" / "pretrain.json").read_text())
    assert (result["utterances"], result["refused"]) == (8, 2)


@pytest.mark.parametrize("masked", [True, False])
def test_a_batch_that_is_masked_whole_or_not_at_all_has_a_loss(masked):
    logits = torch.zeros(1, 4, 5, requires_grad=True)
    mask = torch.full((1, 4), masked)
    loss, accuracy = masked_prediction_loss([logits], torch.zeros(1, 4, 1, dtype=torch.int), mask, 0.5)
    assert loss.item() == pytest.approx((1.0 if masked else 0.5) * np.log(5), rel=1e-5)
    loss.backward()
    assert logits.grad.isfinite().all() and accuracy.isfinite()


def test_utterances_too_short_for_a_crop_are_left_out_and_counted(manifest, tmp_path, monkeypatch):
    draw = np.random.default_rng(1)
    brief = [
        Utterance(f"brief{n}", save_wav(tmp_path / f"{n}.wav", 0.1 * draw.standard_normal(n)))
        for n in (400, 2000, 4319)
    ]
    mixed = write_manifest(tmp_path / "mixed.jsonl", read_manifest(manifest) + brief)
    update, losses = IterationTraining.update, []
    monkeypatch.setattr(
        IterationTraining, "update", lambda self, *batch: losses.append(update(self, *batch)) or losses[-1]
    )
    main(mixed, tmp_path / "out", RECIPE, threads=1)
    assert len(losses) == 12 and torch.stack(losses).isfinite().all()
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "out").values())
    result = json.loads((tmp_path / "out" / "pretrain.json").read_text())
    assert (result["utterances"], result["refused"], result["too_short"]) == (8, 1, 3)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(
    manifest, tmp_path, monkeypatch, capsys, broken
):
    loss_of, calls = masked_prediction.masked_prediction_loss, []

    def breaking(logits, *others):
        loss, accuracy = loss_of(logits, *others)
        calls.append(1)
        if len(calls) == 5:
            loss = loss * math.nan if broken == "loss" else loss + (0 * logits[0]).sum().sqrt()
        return loss, accuracy

    monkeypatch.setattr(masked_prediction, "masked_prediction_loss", breaking)
    with pytest.raises(FloatingPointError, match="step 5"):
        main(manifest, tmp_path, RECIPE, threads=1)
    with pytest.raises(SystemExit) as ended:
        calls[:] = [1, 1, 1]  # the run resumes after step 3, and breaks at step 5 again
        run("units-pretrain", lambda: main(manifest, tmp_path, RECIPE, threads=1))
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line.startswith("units-pretrain: ")]
    assert ended.value.code == WRONG_CALL and "peak_lr" in line
    kept = torch.load(tmp_path / "iteration1.pt", weights_only=True)
    assert kept["step"] == 3 and all(weight.isfinite().all() for weight in kept["params"].values())
    main(manifest, tmp_path, RECIPE, threads=1)  # and a run can go on from there
    assert all(weight.isfinite().all() for weight in weights(tmp_path).values())


def test_numbers_are_read_for_reports_and_checkpoints_only(manifest, tmp_path, monkeypatch):
    """Reading a number from a GPU waits for all its work."""
    finite, read = masked_prediction._finite, []
    monkeypatch.setattr(
        masked_prediction, "_finite", lambda history, last: read.append((len(history), last)) or finite(history, last)
    )
    monkeypatch.setattr(masked_prediction, "REPORT_EVERY", 4)
    main(manifest, tmp_path, dataclasses.replace(RECIPE, iterations=[Iteration(6, {0: [8]})]), threads=1)
    assert read == [(3, 3), (4, 4), (2, 6)]  # checkpoints at 3 and 6, a report at 4
    [report] = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert report["step"] == 4 and 0 < report["loss"] < 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_learns_what_a_cpu_learns(manifest, tmp_path):
    for device in ("cpu", "cuda"):
        main(manifest, tmp_path / device, dataclasses.replace(RECIPE, iterations=[Iteration(6, {0: [8]})]), device)
    here, there = (weights(tmp_path / device) for device in ("cpu", "cuda"))
    assert all(torch.allclose(here[name], there[name], atol=0.05) for name in here)


def test_targets_do_not_depend_on_other_codebooks_or_threads(manifest, monkeypatch):
    monkeypatch.setattr(
        "units.encoder.pretraining.pretrain_data.BATCH_FILES", 3
    )  # so that threads have batches to share
    corpus = PretrainCorpus(read_manifest(manifest), RECIPE.shortest)
    torch.manual_seed(0)
    one, two = (MfccFeatures(), [8, 12]), (HubertFeatures(build_model(RECIPE), 1, "layer 1"), [10])
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(make_targets(corpus, [one, two], 0)[0])
            assert torch.get_num_threads() == count
        apart = np.concatenate([make_targets(corpus, [part], 0)[0] for part in (one, two)], axis=1)
    finally:
        torch.set_num_threads(threads)
    assert found[0].shape == (corpus.first_frame[-1], 3) and found[0].dtype == np.uint16
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], apart)


def test_the_network_departs_from_the_paper_as_the_docstring_says():
    config = build_model(RECIPE).config
    dropped = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    assert [getattr(config, name) for name in dropped] == [0.0] * len(dropped)
    assert config.num_conv_pos_embeddings == 32 and "32 wide" in pretrain.__doc__
    assert RECIPE.mask_span == 8 and "spans of 8 frames" in pretrain.__doc__

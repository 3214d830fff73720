"""HuBERT pre-training: the loss falls, a killed run ends where an undisturbed one does, the result opens as an encoder."""

import json

import numpy as np
import pytest
import torch

from units.audio import save_wav
from units.hubert import HubertFeatures
from units.manifest import Utterance, write_manifest
from units.pretrain import main, masked_prediction_loss
from units.pretrain_data import Corpus, Iteration, PretrainRecipe, Steps

RECIPE = PretrainRecipe(
    width=32, layers=2, heads=2, conv_width=16, batch_seconds=2.0, warmup=2, save_every=3,
    iterations=[Iteration(6, {0: [8, 12]}), Iteration(6, {0: [8], 1: [10]})],
)  # fmt: skip


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
    import units.pretrain as room

    update, calls = room.Round.update, []

    def dying(self, *batch):
        calls.append(1)
        if len(calls) == 11:  # in the second iteration, between two checkpoints
            raise KeyboardInterrupt
        return update(self, *batch)

    monkeypatch.setattr(room.Round, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        main(manifest, tmp_path / "cut", RECIPE, threads=1)
    monkeypatch.setattr(room.Round, "update", update)
    main(manifest, tmp_path / "cut", RECIPE, threads=1)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.allclose(whole[name], cut[name], atol=1e-3) for name in whole)
    assert json.loads((tmp_path / "cut" / "pretrain.json").read_text())["refused"] == 1


def test_steps_are_a_function_of_seed_and_number(manifest):
    from units.manifest import read_manifest

    corpus = Corpus(read_manifest(manifest))
    targets = torch.arange(int(corpus.first_frame[-1]))[:, None].int()
    one, two = (Steps(corpus, targets, RECIPE, 1, 10) for _ in range(2))
    for a, b in zip(one[3], two[3]):
        assert torch.equal(a, b)
    wav, labels, mask = one[3]
    assert labels.shape[:2] == mask.shape and mask.any(dim=1).all()
    assert (labels.diff(dim=1) >= 0).all()  # frames of the clean wav, in order, whatever the speed


def test_loss_weighs_masked_and_unmasked_frames():
    logits = torch.zeros(1, 4, 5)
    logits[0, :2, 0] = 100.0  # right on the first two frames, undecided on the others
    mask = torch.tensor([[True, True, False, False]])
    loss, accuracy = masked_prediction_loss([logits], torch.zeros(1, 4, 1, dtype=torch.int), mask, 0.5)
    assert accuracy == 1.0
    assert loss.item() == pytest.approx(0.5 * np.log(5), rel=1e-5)


def test_a_changed_corpus_is_refused(manifest, tmp_path):
    import dataclasses

    from units.manifest import read_manifest

    short = dataclasses.replace(RECIPE, iterations=[Iteration(1, {0: [8]})])
    main(manifest, tmp_path, short, threads=1)
    fewer = write_manifest(tmp_path / "fewer.jsonl", read_manifest(manifest)[:4])
    with pytest.raises(ValueError, match="it changed"):
        main(fewer, tmp_path, short, threads=1)

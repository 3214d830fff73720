"""The unit vocoder with the head "mel": lengths, batches, refusals, and a training that can be resumed."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from refused import refused
from tiny_tone_corpus import make_pairs, write_unit_set
from tiny_vocoders import CODEBOOK, K, draw_units

from units.audio import HOP, load_wav
from units.codebook import Codebook, CodebookMismatch, Units
from units.corpus.manifest import Utterance, write_manifest
from units.dataset.unit_set import UnitRecord
from units.runtime.command import WRONG_CALL
from units.vocoder import train_vocoder
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import MelGeneratorConfig
from units.vocoder.heads.duration_predictors import ConvNeXtDurationPredictor
from units.vocoder.heads.frames import Frames, run_frames
from units.vocoder.heads.mel_generator import MelGenerator
from units.vocoder.mel import MEL_HOP, MelSpectrogram
from units.vocoder.training import loop
from units.vocoder.training.crops import CropBatch, CropDataset, TrainingData, match
from units.vocoder.training.loop import train
from units.vocoder.training.mel_training import MelTraining
from units.vocoder.training.recipe import VocoderRecipe
from units.vocoder.unit_vocoder import UnitVocoder

TINY = MelGeneratorConfig(width=16, slow_blocks=2, fast_blocks=1, kernel=5, griffin_lim_iterations=8)
RECIPE = VocoderRecipe(TINY, steps=12, batch_size=4, crop_frames=24, warmup=2, save_every=5, log_every=3)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vocoder() -> UnitVocoder:
    torch.manual_seed(0)
    return UnitVocoder(CODEBOOK, TINY).eval()


# --- decoding


def test_a_wav_is_as_long_as_its_units(vocoder: UnitVocoder) -> None:
    draw = random.Random(0)
    for _ in range(10):
        units = draw_units(draw)
        wav = vocoder.decode(units)
        assert wav.dtype == np.float32
        assert wav.shape == (sum(units.durations) * HOP,)
        assert np.isfinite(wav).all()
        assert np.abs(wav).max() <= 1


@pytest.mark.parametrize("predict", [False, True])
def test_a_batch_is_its_rows_one_by_one(vocoder: UnitVocoder, predict: bool) -> None:
    draw = random.Random(1)
    batch = [draw_units(draw) for _ in range(12)]
    for units, wav in zip(batch, vocoder.decode_batch(batch, predict_durations=predict)):
        np.testing.assert_allclose(wav, vocoder.decode(units, predict_durations=predict), atol=1e-4)


def test_griffin_lim_in_a_padded_batch_is_its_rows_one_by_one() -> None:
    torch.manual_seed(0)
    spectrogram = MelSpectrogram()
    rows = [torch.randn(count, 80) for count in (2, 60, 17, 200)]
    for row, wav in zip(rows, spectrogram.invert(rows)):
        assert wav.shape == (len(row) * MEL_HOP,)
        torch.testing.assert_close(wav, spectrogram.invert([row])[0], atol=1e-4, rtol=0)


def test_padding_does_not_reach_the_networks_results() -> None:
    torch.manual_seed(0)
    draw = random.Random(2)
    rows = [(torch.tensor(units.ids), torch.tensor(units.durations)) for units in (draw_units(draw) for _ in range(8))]
    generator, predictor = MelGenerator(K, TINY), ConvNeXtDurationPredictor(K)
    padded = generator(Frames.lay_out(rows))
    ids = torch.nn.utils.rnn.pad_sequence([ids for ids, _ in rows], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
    predicted = predictor(ids, mask)
    for i, row in enumerate(rows):
        alone = generator(Frames.lay_out([row]))[0]
        torch.testing.assert_close(padded[i, : len(alone)], alone, atol=1e-5, rtol=1e-5)
        alone = predictor(row[0][None], torch.ones(1, len(row[0]), dtype=torch.bool))[0]
        torch.testing.assert_close(predicted[i, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_griffin_lim_recovers_a_tone() -> None:
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 * torch.arange(100 * MEL_HOP) / 16_000)
    spectrogram = MelSpectrogram()
    log_mels = spectrogram(tone[None])[0]
    assert log_mels.shape == (100, 80)
    wav = spectrogram.invert([log_mels])[0]
    spectrum = torch.fft.rfft(wav).abs()
    assert abs(int(spectrum.argmax()) / len(wav) * 16_000 - 1000) < 30
    assert 0.5 < float(wav.norm() / tone.norm()) < 1.5


def test_given_durations_are_used_and_predicted_ones_differ(vocoder: UnitVocoder) -> None:
    ids = (3, 1, 4, 1, 5)
    long = vocoder.decode(Units(ids, (40,) * 5, CODEBOOK))
    assert len(long) == 200 * HOP
    own = vocoder.decode(Units(ids, None, CODEBOOK))
    np.testing.assert_array_equal(own, vocoder.decode(Units(ids, (40,) * 5, CODEBOOK), predict_durations=True))
    assert len(own) % HOP == 0
    assert 5 * HOP <= len(own) < len(long)


def test_run_features_are_the_position_of_a_frame_in_its_run() -> None:
    ids, runs = run_frames(torch.tensor([7, 2]), torch.tensor([4, 1]))
    assert ids.tolist() == [7, 7, 7, 7, 2]
    torch.testing.assert_close(runs[:, 0], torch.tensor([0.125, 0.375, 0.625, 0.875, 0.5]))
    torch.testing.assert_close(runs[:, 1].exp(), torch.tensor([4.0, 4, 4, 4, 1]))


def test_a_foreign_codebook_and_no_units_are_refused(vocoder: UnitVocoder) -> None:
    foreign = Codebook("other", "mfcc", 0, K, 50.0, "utterance", "ffff0000")
    with pytest.raises(CodebookMismatch, match="'other'.*'tiny'"):
        vocoder.decode(Units((1,), (1,), foreign))
    with refused(VocoderReason.NO_UNITS, error=VocoderError):
        vocoder.decode(Units((), (), CODEBOOK))
    assert vocoder.decode_batch([]) == []


# --- the folder


def test_a_saved_vocoder_is_loaded_unchanged(vocoder: UnitVocoder, tmp_path: Path) -> None:
    vocoder.save_pretrained(tmp_path / "v")
    loaded = UnitVocoder.from_pretrained(tmp_path / "v")
    assert (loaded.codebook, loaded.settings, loaded.sample_rate) == (CODEBOOK, TINY, 16_000)
    units = draw_units(random.Random(5))
    np.testing.assert_array_equal(loaded.decode(units), vocoder.decode(units))
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_of_a_folder_is_named(vocoder: UnitVocoder, tmp_path: Path, missing: str) -> None:
    vocoder.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {missing} in .*units-train-vocoder"):
        UnitVocoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change, values",
    [({"head": "hifi"}, ["hifi", "mel"]), ({"extra": 1}, ["extra"]), ({"generator": {"depth": 3}}, ["depth"])],
)
def test_an_invalid_config_is_refused(vocoder: UnitVocoder, tmp_path: Path, change: dict, values: list[str]) -> None:
    vocoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with refused(VocoderReason.INVALID_CONFIG, *values, error=VocoderError):
        UnitVocoder.from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused(vocoder: UnitVocoder, tmp_path: Path) -> None:
    vocoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["generator"]["width"] = 24
    (tmp_path / "config.json").write_text(json.dumps(config))
    with refused(VocoderReason.OTHER_WEIGHTS, tmp_path, error=VocoderError):
        UnitVocoder.from_pretrained(tmp_path)


# --- training


def test_training_lowers_the_logged_loss(tmp_path: Path) -> None:
    recipe = VocoderRecipe(TINY, steps=60, batch_size=4, crop_frames=24, peak_lr=0.02, log_every=1)
    train(make_pairs(tmp_path), recipe, tmp_path / "v")
    log = [json.loads(line) for line in (tmp_path / "v" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 61))
    first, last = (
        {key: np.mean([line[key] for line in part]) for key in ("mel", "duration")} for part in (log[:5], log[-5:])
    )
    assert last["mel"] < 0.6 * first["mel"]
    assert last["duration"] < first["duration"]
    assert UnitVocoder.from_pretrained(tmp_path / "v").codebook == CODEBOOK


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = make_pairs(tmp_path)
    whole = train(pairs, RECIPE, tmp_path / "whole")
    advance = MelTraining.advance

    def killed_at_8(self: MelTraining, batch: CropBatch):
        if self.step == 8:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MelTraining, "advance", killed_at_8)
        train(pairs, RECIPE, tmp_path / "killed")
    with pytest.raises(FileNotFoundError):
        UnitVocoder.from_pretrained(tmp_path / "killed")
    resumed = train(pairs, RECIPE, tmp_path / "killed")
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0, msg=name)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "killed")
    ]
    assert [(line["step"], line["loss"]) for line in logs[0]] == [(line["step"], line["loss"]) for line in logs[1]]


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path)
    train(pairs, RECIPE, tmp_path / "v")
    with refused(VocoderReason.OTHER_RECIPE, "training.pt", error=VocoderError):
        train(pairs, VocoderRecipe(TINY, steps=13), tmp_path / "v")


def test_crops_are_aligned_and_of_one_shape(tmp_path: Path) -> None:
    corpus = CropDataset(TrainingData(make_pairs(tmp_path)), RECIPE, MelSpectrogram())
    first, again = corpus.batch(4), corpus.batch(4)
    torch.testing.assert_close(first.target, again.target, rtol=0, atol=0)
    for step in range(6):
        batch = corpus.batch(step)
        assert batch.frames.ids.shape == (4, 24) and batch.target.shape == (4, 48, 80) and batch.ids.shape == (4, 24)
        ids, mask = batch.frames.ids.repeat_interleave(2, 1), batch.frames.mask.repeat_interleave(2, 1)
        steady = mask.clone()  # away from changes of unit, the loudest band is the unit's tone
        steady[:, 2:-2] &= (ids[:, 2:-2] == ids[:, :-4]) & (ids[:, 2:-2] == ids[:, 4:]) & mask[:, 4:]
        steady[:, :2] = steady[:, -2:] = False
        for unit in ids[steady].unique().tolist():
            bands = batch.target.argmax(-1)[steady & (ids == unit)]
            assert bands.max() - bands.min() <= 1, f"unit {unit}"
        counts = batch.unit_mask.sum(1)
        assert (batch.durations[batch.unit_mask] >= 1).all() and (counts >= 1).all()
        assert (batch.ids[:, 0] == batch.frames.ids[:, 0]).all()


def test_a_crop_is_the_same_from_memory_and_from_disk(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path)
    kept = CropDataset(TrainingData(pairs), RECIPE, MelSpectrogram())
    fresh = CropDataset(
        TrainingData(pairs), VocoderRecipe(TINY, batch_size=4, crop_frames=24, cache_gib=0), MelSpectrogram()
    )
    for step in (0, 1, 0):
        torch.testing.assert_close(kept.batch(step).target, fresh.batch(step).target, rtol=0, atol=0)


def test_processes_share_the_cache(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path)
    whole = sum(MelSpectrogram()(torch.from_numpy(load_wav(u.audio))[None]).nbytes for u, _ in pairs)
    held = []
    for copies in (1, 4):
        recipe = VocoderRecipe(TINY, batch_size=4, crop_frames=24, cache_gib=whole / 2**30)
        corpus = CropDataset(TrainingData(pairs), recipe, MelSpectrogram(), copies=copies)
        for step in range(30):
            corpus.batch(step)
        held.append(sum(target.nbytes for target in corpus._cache.values()))
    assert 0 < held[1] <= whole / 4 < held[0] <= whole


def test_a_training_divides_the_cache_among_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    corpus = loop.CropDataset
    monkeypatch.setattr(loop, "CropDataset", lambda *args, **how: copies.append(how["copies"]) or corpus(*args, **how))
    for workers in (None, 2):
        recipe = dataclasses.replace(RECIPE, steps=2, workers=workers)
        train(make_pairs(tmp_path), recipe, tmp_path / f"v{workers}")
    assert copies == [1, 2]
    here, there = (UnitVocoder.from_pretrained(tmp_path / f"v{workers}").state_dict() for workers in (None, 2))
    for name, weight in here.items():
        torch.testing.assert_close(there[name], weight, rtol=0, atol=0, msg=name)


def test_all_of_a_batch_moves_to_a_device(tmp_path: Path) -> None:
    batch = CropDataset(TrainingData(make_pairs(tmp_path)), RECIPE, MelSpectrogram()).batch(0)
    there = batch.to("meta")
    for here, moved in ((batch, there), (batch.frames, there.frames)):
        for name, part in vars(here).items():
            if isinstance(part, torch.Tensor):
                found = getattr(moved, name)
                assert (found.device.type, found.shape, found.dtype) == ("meta", part.shape, part.dtype), name


def test_units_of_other_audio_are_refused(tmp_path: Path) -> None:
    utterance, units = make_pairs(tmp_path)[1]
    longer = Units((*units.ids, 3), (*units.durations, 2), CODEBOOK)
    with refused(VocoderReason.OTHER_AUDIO, utterance.audio, error=VocoderError):
        CropDataset(TrainingData([(utterance, longer)]), RECIPE, MelSpectrogram()).batch(0)


def test_match_pairs_one_speaker_by_id(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path, 3)
    other = Utterance(id="s", audio=tmp_path / "0.wav", speaker="other")
    utterances = [other, *(utterance for utterance, _ in pairs)]
    records = [UnitRecord("s", pairs[0][1], 0), *(UnitRecord(u.id, units, 0) for u, units in reversed(pairs[1:]))]
    assert match(records, utterances, "tone") == pairs[1:]
    assert len(match(records, utterances, None)) == 3
    with refused(VocoderReason.NOTHING_TO_TRAIN_ON, "'nobody'", "'other', 'tone'", error=VocoderError):
        match(records, utterances, "nobody")
    with refused(VocoderReason.NOTHING_TO_TRAIN_ON, "3 utterances", error=VocoderError):
        match([], utterances, "tone")


def test_the_command_reads_a_unit_set_and_the_toy_config(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path / "wav")
    manifest = write_manifest(tmp_path / "m.jsonl", [utterance for utterance, _ in pairs])
    records = [UnitRecord(u.id, units, 0, speaker=u.speaker) for u, units in pairs]
    write_unit_set(tmp_path, records)
    config = Path(train_vocoder.__file__).parents[1] / "configs" / "toy_vocoder.yaml"
    small = ["--recipe.steps=2", "--recipe.generator.width=16", "--recipe.batch_size=2", "--threads=1"]
    where = [f"--units={tmp_path}", f"--manifest={manifest}", "--speaker=tone", f"--out={tmp_path / 'v'}"]
    train_vocoder.main.cli(["--config", str(config), *where, *small])
    assert UnitVocoder.from_pretrained(tmp_path / "v").settings.width == 16


@pytest.mark.parametrize("option", ["--recipe.steps=0", "--recipe.gan.samples=-1", "--threads=-1"])
def test_an_option_out_of_range_is_a_one_line_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train_vocoder.main.cli(["--units=u", "--manifest=m", "--out=o", option])
    assert ended.value.code == WRONG_CALL
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("units-train-vocoder: ") and "or more" in line

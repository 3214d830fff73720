"""Adversarial training of the waveform heads: losses fall, a resumed run equals an uninterrupted one, samples."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.signal
import torch
from refused import refused
from tiny_tone_corpus import make_pairs
from tiny_vocoders import CODEBOOK
from transformers import TrainingArguments

from units.corpus.manifest import read_manifest
from units.dataset.unit_set import read_unit_set
from units.runtime.command import one_line
from units.runtime.files.json_files import FileError
from units.vocoder import train_vocoder
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import HifiGanConfig, MelGeneratorConfig, VocosConfig
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.mel import LogMel
from units.vocoder.training.crops import CropDataset, TrainingData, match, wav_frames
from units.vocoder.training.discriminators import Discriminators, discriminator_loss, feature_loss, generator_loss
from units.vocoder.training.gan_training import GanTraining
from units.vocoder.training.loop import train
from units.vocoder.training.mel_training import MelTraining
from units.vocoder.training.recipe import GanRecipe, VocoderRecipe
from units.vocoder.unit_vocoder import UnitVocoder

TOY = Path(train_vocoder.__file__).parents[2] / "runs" / "toy"
SMALL = {"embedding_dim": 8, "duration_width": 8}
RECIPE = VocoderRecipe(
    head="vocos",
    steps=6,
    batch_size=2,
    crop_frames=16,
    log_every=1,
    save_every=2,
    vocos=VocosConfig(width=16, blocks=1, **SMALL),
    hifigan=HifiGanConfig(upsample_initial_channel=32, **SMALL),
    gan=GanRecipe(discriminator_divisor=16, sample_every=4, samples=1),
)


def _within(part: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole)))


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


@pytest.mark.parametrize("head", ["vocos", pytest.param("hifigan", marks=pytest.mark.slow)])
def test_a_resumed_training_equals_an_uninterrupted_one(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, pairs = dataclasses.replace(RECIPE, head=head), make_pairs(tmp_path)
    whole = train(pairs, recipe, tmp_path / "whole")
    advance = GanTraining.advance

    def killed_at_5(self: GanTraining, batch):
        if self.step == 5:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GanTraining, "advance", killed_at_5)
        train(pairs, recipe, tmp_path / "killed")
    assert [line["step"] for line in lines(tmp_path / "killed")] == [1, 2, 3, 4, 5]
    torch.rand(7)  # in another process torch's generator has another state
    resumed = train(pairs, recipe, tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(
    not (TOY / "units" / "train" / "unit_set.json").exists(), reason=f"no toy corpus in {TOY}; make vocoder"
)
@pytest.mark.parametrize("head", ["vocos", "hifigan"])
def test_a_resumed_training_on_the_toy_corpus_equals_an_uninterrupted_one(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real speech: the losses fall, and equal those of an uninterrupted run."""
    pairs = match(read_unit_set(TOY / "units" / "train"), read_manifest(TOY / "corpus" / "train.jsonl"), "flite:slt")[
        :200
    ]
    recipe = dataclasses.replace(
        RECIPE,
        head=head,
        steps=60,
        save_every=20,
        batch_size=4,
        crop_frames=32,
        seed=3,
        vocos=VocosConfig(width=64, blocks=3),
        hifigan=HifiGanConfig(upsample_initial_channel=64),
        gan=GanRecipe(learning_rate=1e-3, discriminator_divisor=16, sample_every=30, samples=1),
    )
    train(pairs, recipe, tmp_path / "whole")
    advance = GanTraining.advance

    def killed_at_33(self: GanTraining, batch):
        if self.step == 33:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GanTraining, "advance", killed_at_33)
        train(pairs, recipe, tmp_path / "killed")
    train(pairs, recipe, tmp_path / "killed")
    log = lines(tmp_path / "whole")
    assert lines(tmp_path / "killed") == log
    for name in ("mel", "duration"):
        first, last = (np.mean([line[name] for line in part]) for part in (log[:8], log[-8:]))
        assert last < 0.8 * first, name


def test_training_writes_samples_and_a_vocoder(tmp_path: Path) -> None:
    recipe, pairs = dataclasses.replace(RECIPE, head="hifigan", multi_speaker=True), make_pairs(tmp_path)
    pairs = [(dataclasses.replace(u, speaker="anna" if i % 2 else "ben"), units) for i, (u, units) in enumerate(pairs)]
    trained = train(pairs, recipe, tmp_path / "v")
    found = {str(path.relative_to(tmp_path / "v")).split("/events")[0] for path in (tmp_path / "v").rglob("*.*")}
    samples = {f"samples/step-{step:08d}/u0.{suffix}" for step in (4, 6) for suffix in ("wav", "png")}
    folders = {"samples/step-00000004", "samples/step-00000006"}
    files = {"config.json", "model.safetensors", "vocoder.pt", "log.jsonl", "training.pt", "tensorboard"}
    assert found | {"tensorboard"} | folders == samples | files | folders
    config = json.loads((tmp_path / "v" / "config.json").read_text())
    assert (config["num_speakers"], config["multispkr"], config["speakers"]) == (2, "from_input_file", ["anna", "ben"])
    opened = UnitVocoder.from_pretrained(tmp_path / "v")
    units = pairs[1][1]
    anna, ben = (opened.decode(units, speaker=name) for name in ("anna", "ben"))
    np.testing.assert_array_equal(anna, trained.decode(units, speaker=0))
    assert ben.shape == anna.shape
    published = UnitVocoder.from_pretrained(tmp_path / "v" / "vocoder.pt")
    np.testing.assert_allclose(published.decode(units, speaker="anna"), anna, atol=1e-6)


def test_each_crop_has_the_speaker_of_its_utterance(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path)
    pairs = [(dataclasses.replace(u, speaker="anna" if i % 2 else "ben"), units) for i, (u, units) in enumerate(pairs)]
    crops = CropDataset(TrainingData.of(pairs, multi_speaker=True), RECIPE, wav_frames)
    spoken_by_anna = {units.ids: i % 2 for i, (_, units) in enumerate(pairs)}
    for step in range(4):
        batch = crops.batch(step)
        for ids, mask, speaker in zip(batch.ids, batch.unit_mask, batch.speakers):
            part = tuple(ids[mask].tolist())
            assert 1 - int(speaker) in {anna for whole, anna in spoken_by_anna.items() if _within(part, whole)}
    vocoder = train(pairs, dataclasses.replace(RECIPE, steps=2, multi_speaker=True), tmp_path / "v")
    units = pairs[1][1]
    assert np.abs(vocoder.decode(units, speaker="anna") - vocoder.decode(units, speaker="ben")).max() > 1e-3


def test_training_lowers_the_mel_loss_and_the_duration_loss(tmp_path: Path) -> None:
    gan = dataclasses.replace(RECIPE.gan, learning_rate=0.02, sample_every=1000)
    sizes = VocosConfig(width=32, blocks=1, duration_dropout=0.0, **SMALL)
    recipe = dataclasses.replace(RECIPE, steps=20, save_every=1000, vocos=sizes, gan=gan)
    train(make_pairs(tmp_path), recipe, tmp_path / "v")
    log = lines(tmp_path / "v")
    for name in ("mel", "duration", "discriminator"):
        first, last = (np.mean([line[name] for line in part]) for part in (log[:4], log[-4:]))
        assert last < 0.7 * first, name


@pytest.mark.parametrize("head", ["mel", "vocos"])
@pytest.mark.parametrize("broken", ["loss", "weight"])
def test_a_training_that_diverges_stops_and_leaves_the_last_checkpoint(
    head: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = MelGeneratorConfig(width=8, slow_blocks=1, fast_blocks=1, kernel=3, mels=8, griffin_lim_iterations=1)
    recipe = dataclasses.replace(RECIPE, head=head, log_every=3, generator=generator)
    pairs, kind = make_pairs(tmp_path), MelTraining if head == "mel" else GanTraining
    advance = kind.advance

    def diverging(self, batch):
        losses = advance(self, batch)
        if self.step == 5 and broken == "loss":
            losses["loss"] = losses["loss"] * float("nan")
        if self.step == 5 and broken == "weight":
            next(iter(self.weights())).data.fill_(float("inf"))
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(kind, "advance", diverging)
        with pytest.raises(FloatingPointError, match="step [56].*training.pt.*learning_rate|peak_lr") as error:
            train(pairs, recipe, tmp_path / "v")
    assert one_line(error.value)
    saved = torch.load(tmp_path / "v" / "training.pt", weights_only=True)
    assert saved["step"] == 4 and [line["step"] for line in lines(tmp_path / "v")] == [3]
    assert not (tmp_path / "v" / "model.safetensors").exists()
    train(pairs, recipe, tmp_path / "v")  # from step 4, and this time without the fault
    assert [line["step"] for line in lines(tmp_path / "v")] == [3, 6]


def test_a_damaged_checkpoint_or_log_is_one_line_that_names_it(tmp_path: Path) -> None:
    pairs, recipe = make_pairs(tmp_path), dataclasses.replace(RECIPE, steps=2)
    train(pairs, recipe, tmp_path / "v")
    checkpoint, log = tmp_path / "v" / "training.pt", tmp_path / "v" / "log.jsonl"
    content, written = checkpoint.read_bytes(), log.read_bytes()
    flipped = content.replace(b"discriminator", b"discriminated", 1)
    for bad in (b"", content[:-9], content[: len(content) // 2], b"PK" + content, flipped):
        checkpoint.write_bytes(bad)
        with pytest.raises(FileError, match="training.pt") as error:
            train(pairs, recipe, tmp_path / "v")
        assert one_line(error.value)
    state = torch.load(io.BytesIO(content), weights_only=True)
    for name in state:
        torch.save({part: value for part, value in state.items() if part != name}, checkpoint)
        with pytest.raises(FileError, match="training.pt"):
            train(pairs, recipe, tmp_path / "v")
    checkpoint.write_bytes(content)
    log.write_bytes(written[:-20] + b"\n")
    with pytest.raises(FileError, match="log.jsonl:2"):
        train(pairs, recipe, tmp_path / "v")


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    pairs = make_pairs(tmp_path)
    train(pairs, dataclasses.replace(RECIPE, steps=2), tmp_path / "v")
    with refused(VocoderReason.OTHER_RECIPE, "training.pt", error=VocoderError):
        train(pairs, dataclasses.replace(RECIPE, steps=2, seed=1), tmp_path / "v")


@pytest.mark.parametrize("head", ["vocos", "hifigan"])
def test_a_checkpoint_of_release_0_1_0_is_resumed(head: str, tmp_path: Path) -> None:
    """Release 0.1.0 wrote the discriminators and their optimiser under other names."""
    recipe, pairs = dataclasses.replace(RECIPE, head=head, steps=4), make_pairs(tmp_path)
    whole = train(pairs, recipe, tmp_path / "whole")
    half = dataclasses.replace(recipe, steps=2)
    train(pairs, half, tmp_path / "old")
    checkpoint = torch.load(tmp_path / "old" / "training.pt", weights_only=True)
    assert {"discriminators", "discriminator_optimizer"} < checkpoint.keys()
    old_names = {"discriminators": "judges", "discriminator_optimizer": "judge_optimizer"}
    old = {old_names.get(name, name): value for name, value in checkpoint.items()}
    old["made_of"] = old["made_of"].replace('"steps": 2,', '"steps": 4,', 1)
    torch.save(old, tmp_path / "old" / "training.pt")
    resumed = train(pairs, recipe, tmp_path / "old")
    assert [line["step"] for line in lines(tmp_path / "old")] == [1, 2, 3, 4]
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0, msg=name)
    new = torch.load(tmp_path / "old" / "training.pt", weights_only=True)
    assert new.keys() == checkpoint.keys()


def test_the_named_device_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate uses the current GPU."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(torch.device(device)))
    for device in ("cpu", "cuda", "cuda:3"):
        GanTraining(CODEBOOK, RECIPE, device)
    assert chosen == [torch.device("cuda:3")]


@pytest.mark.parametrize("first", ["no", "bf16"])
def test_a_process_trains_again_in_another_precision(tmp_path: Path, first: str) -> None:
    """accelerate's state belongs to the process: an earlier training must not decide the precision of this one."""
    TrainingArguments(str(tmp_path), bf16=first == "bf16", use_cpu=True).device  # noqa: B018  # as a stage starts
    for precision in ("no", "bf16", "no"):
        recipe = dataclasses.replace(RECIPE, gan=dataclasses.replace(RECIPE.gan, mixed_precision=precision))
        assert GanTraining(CODEBOOK, recipe, "cpu").accelerator.mixed_precision == precision


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_trains_every_head(tmp_path: Path) -> None:
    last = f"cuda:{torch.cuda.device_count() - 1}"
    for head in ("mel", "vocos", "hifigan"):
        made = train(make_pairs(tmp_path), dataclasses.replace(RECIPE, head=head), tmp_path / head, last)
        assert np.isfinite(made.decode(make_pairs(tmp_path)[1][1])).all()
    assert torch.cuda.current_device() == torch.cuda.device_count() - 1


def test_the_audio_of_a_crop_is_that_of_its_units(tmp_path: Path) -> None:
    """Unit u of the test corpus is a tone of 200 + 150 u Hz, which must be the loudest where the unit is."""
    corpus = CropDataset(TrainingData(make_pairs(tmp_path)), RECIPE, wav_frames)
    for step in range(4):
        batch = corpus.batch(step)
        assert batch.target.shape == (2, 16, 320)
        spectrum = torch.fft.rfft(batch.target, n=3200).abs()  # 5 Hz a bin
        frequency = spectrum.argmax(-1) * 5
        wanted = 200 + 150 * batch.frames.ids
        inside = batch.frames.mask
        assert inside.any() and ((frequency - wanted).abs()[inside] < 75).all()


def test_the_discriminators_have_the_papers_size() -> None:
    """HiFi-GAN's have 70.7 million weights: 41.1 of periods and 29.6 of scales, weight norm's lengths included."""
    published = Discriminators()
    periods, scales = (sum(p.numel() for p in part.parameters()) for part in (published.periods, published.scales))
    assert (round(periods / 1e5) / 10, round(scales / 1e5) / 10) == (41.1, 29.6)
    small = Discriminators(16).eval().requires_grad_(False)
    wav = torch.randn(2, 2000)
    scores = small(wav, wav)
    assert len(scores) == 8
    for real, fake in scores:
        torch.testing.assert_close(real.score, fake.score)
    assert float(feature_loss(scores)) < 1e-5
    real, fake = scores[0]
    expected = ((1 - real.score).square().mean() + fake.score.square().mean()).item()
    assert discriminator_loss(scores[:1]).item() == pytest.approx(expected)
    assert generator_loss(scores[:1]).item() == pytest.approx((1 - fake.score).square().mean().item())


def test_weight_norm_does_not_change_the_output() -> None:
    torch.manual_seed(0)
    network = HifiGan(12, RECIPE.hifigan).eval()
    ids, speakers = torch.randint(12, (1, 9)), torch.zeros(1, dtype=torch.long)
    before = network(ids, speakers)
    network.normalise_weights()
    torch.testing.assert_close(network(ids, speakers), before)
    folded = network.folded()
    torch.testing.assert_close(folded(ids, speakers), before)
    assert not any("parametrizations" in name for name in folded.state_dict())
    assert any("parametrizations" in name for name in network.state_dict())  # the original still trains with it


def test_log_mels_are_as_defined() -> None:
    import librosa

    wav = np.random.default_rng(0).standard_normal(4096).astype(np.float32) * 0.1
    padded = np.pad(wav, 384, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::256] * scipy.signal.get_window("hann", 1024)
    basis = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=80, fmin=0, fmax=8000)
    expected = np.log(np.maximum(basis @ np.abs(np.fft.rfft(windows)).T, 1e-5))
    np.testing.assert_allclose(LogMel()(torch.from_numpy(wav)[None])[0].numpy(), expected, atol=1e-4)


def test_invalid_recipes_are_refused() -> None:
    with refused(VocoderReason.INVALID_SETTING, "multi_speaker", '"mel"', error=VocoderError):
        VocoderRecipe(multi_speaker=True)
    with refused(VocoderReason.INVALID_SETTING, "discriminator_divisor is 3", "1, 2, 4, 8, 16"):
        GanRecipe(discriminator_divisor=3)
    with refused(VocoderReason.INVALID_SETTING, "sample_every is 0", "1 or more"):
        GanRecipe(sample_every=0)
    for name, value, least in (("steps", 0, 1), ("batch_size", 0, 1), ("cache_gib", -1.0, 0), ("workers", -1, 0)):
        with refused(VocoderReason.INVALID_SETTING, f"{name} is {value}", f"{least} or more"):
            VocoderRecipe(**{name: value})
    assert RECIPE.learning_rate(0) == 2e-4 and RECIPE.learning_rate(2500) == pytest.approx(2e-4 * 0.999**2)
    assert CODEBOOK.size == 12


@pytest.mark.parametrize("name, head", [("hifigan", "hifigan"), ("vocos", "vocos"), ("toy", "mel")])
def test_the_recipes_in_units_configs_are_read(name: str, head: str) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(train_vocoder.main)
    config = Path(train_vocoder.__file__).parents[1] / "configs" / f"{name}_vocoder.yaml"
    args = parser.parse_args(["--config", str(config), "--units=u", "--manifest=m", "--out=o"])
    recipe = parser.instantiate(args).recipe
    assert isinstance(recipe, VocoderRecipe)
    assert (recipe.head, recipe.settings.head) == (head, head)
    assert head == "mel" or (recipe.workers > 0 and recipe.settings == type(recipe.settings)())

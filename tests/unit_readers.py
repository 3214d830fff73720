"""Readers of unit encoders and of checkpoints of units' trainings, for tests/whole/test_damaged_files.py."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from damaged_files import Reader
from tiny_parts import fit_encoder, tiny_hubert
from tiny_vocoders import CODEBOOK
from torch import nn

from units.encoder.hubert import HubertFeatures
from units.encoder.kmeans import load_centres
from units.encoder.mfcc import MfccFeatures
from units.encoder.pretraining.masked_prediction import IterationTraining
from units.encoder.pretraining.pretrain_data import measure
from units.encoder.recipes import Iteration, PretrainRecipe
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.files.saved_states import read_state
from units.vocoder.heads.configs import MelGeneratorConfig
from units.vocoder.training.loop import _begin_with, _lines_up_to, _load, _save
from units.vocoder.training.mel_training import MelTraining
from units.vocoder.training.recipe import VocoderRecipe

RECIPE = VocoderRecipe(generator=MelGeneratorConfig(width=8, slow_blocks=1, fast_blocks=1, kernel=3, mels=8))
LENGTHS = '{"rows": "e3b0c44298fc1c14", "found": {"a": 16000, "b": "no audio file at b.wav"}}'


@functools.cache
def hubert_encoder() -> UnitEncoder:
    return fit_encoder(HubertFeatures(tiny_hubert(layers=1), 1, "tiny"))


@functools.cache
def mfcc_encoder() -> UnitEncoder:
    return fit_encoder(MfccFeatures())


@functools.cache
def vocoder_training() -> MelTraining:
    training = MelTraining(CODEBOOK, RECIPE, "cpu")
    for weight in training.weights():
        weight.grad = torch.ones_like(weight)
    training._optimizer.step()
    return training


@functools.cache
def pretraining() -> IterationTraining:
    return IterationTraining(
        nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 3)]), Iteration(4, {0: [3]}), PretrainRecipe(), "cpu"
    )


def write_mfcc(folder: Path) -> None:
    mfcc_encoder().save_pretrained(folder)


def write_hubert(folder: Path) -> None:
    hubert_encoder().save_pretrained(folder)


def read_encoder(folder: Path) -> UnitEncoder:
    return UnitEncoder.from_pretrained(folder)


def write_log(folder: Path) -> None:
    (folder / "log.jsonl").write_text('{"step": 1, "mel": 1.0, "seconds": 2}\n{"step": 2, "mel": 0.5, "seconds": 3}\n')


def save_vocoder_training(folder: Path) -> None:
    _save(vocoder_training(), folder / "training.pt", "this one")


def save_pretraining(folder: Path) -> None:
    pretraining().save(folder / "iteration1.pt")


UNIT_READERS = {
    "codebook of a unit encoder": Reader("codebook.json", lambda f: mfcc_encoder().save_pretrained(f), read_encoder),
    "centres of a unit encoder": Reader(
        "centres.safetensors", lambda f: mfcc_encoder().save_pretrained(f), read_encoder
    ),
    "centres": Reader("centres.safetensors", write_mfcc, lambda f: load_centres(f / "centres.safetensors")),
    "weights of a unit encoder": Reader("encoder/model.safetensors", write_hubert, read_encoder),
    "input of a unit encoder": Reader("encoder/preprocessor_config.json", write_hubert, read_encoder),
    "config of a unit encoder": Reader("encoder/config.json", write_hubert, read_encoder),
    "checkpoint of a vocoder": Reader(
        "training.pt", save_vocoder_training, lambda f: _load(vocoder_training(), f / "training.pt", "this one")
    ),
    "start of a vocoder": Reader(
        "training.pt", save_vocoder_training, lambda f: _begin_with(vocoder_training(), f / "training.pt")
    ),
    "log of a vocoder": Reader("log.jsonl", write_log, lambda f: _lines_up_to(f / "log.jsonl", 1)),
    "checkpoint of a pre-training": Reader(
        "iteration1.pt", save_pretraining, lambda f: pretraining().load(f / "iteration1.pt")
    ),
    "lengths of a pre-training": Reader(
        "lengths.json", lambda f: (f / "lengths.json").write_text(LENGTHS), lambda f: measure([], f / "lengths.json")
    ),
    "state": Reader("training.pt", save_vocoder_training, lambda f: read_state(f / "training.pt")),
}

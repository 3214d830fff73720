"""Readers of the files of the published SpeechGPT, for tests/whole/test_damaged_files.py."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import torch
from damaged_files import Reader
from reference import DATA
from tiny_parts import tones

from speechgpt.published.adopt import adopt
from units.encoder.mfcc import MfccFeatures
from units.encoder.unit_encoder import UnitEncoder

LAYOUT = DATA / "speechgpt_layout"


@functools.cache
def encoder() -> Path:
    """A unit encoder of 1000 units."""
    folder = Path(tempfile.mkdtemp())
    features = MfccFeatures()
    centres = torch.randn(1000, features([tones(1.0)])[0].shape[1], generator=torch.manual_seed(1)) * 10
    UnitEncoder.from_features(features, centres, "tiny-1000", "utterance").save_pretrained(folder)
    return folder


def write(folder: Path) -> None:
    for part in ("cm", "com"):
        shutil.copytree(LAYOUT / part, folder / part, dirs_exist_ok=True)


def read(folder: Path) -> object:
    out = folder.with_name("adopted")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return adopt(folder / "cm", folder / "com", encoder(), out)


PUBLISHED_READERS = {
    f"{name} of the published SpeechGPT": Reader(file, write, read)
    for name, file in {
        "config": "cm/config.json",
        "words": "cm/added_tokens.json",
        "tokenizer": "cm/tokenizer.model",
        "settings of the tokenizer": "cm/tokenizer_config.json",
        "weights": "cm/pytorch_model.bin",
        "adapter": "com/adapter_model.bin",
        "settings of the adapter": "com/adapter_config.json",
    }.items()
    if (LAYOUT / file).exists()
}

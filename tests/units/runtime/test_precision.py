"""Devices that are not there are refused in one line, by every command of units, before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from units.dataset import extract
from units.dataset.extract_config import WorkConfig
from units.encoder import fit, pretrain
from units.runtime.precision import check_device
from units.vocoder import train_vocoder, vocode


@pytest.fixture()
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)


@pytest.fixture()
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch built for CUDA, on a machine without: it names the accelerator and counts none."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 0)


def test_what_is_there_is_given_back(two_gpus: None) -> None:
    for name in ("cpu", "cuda", "cuda:1"):
        assert check_device(name) == check_device(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:2", "cuda:x", "CUDA", "mps", "meta", ""])
def test_what_is_not_there_is_refused_with_what_is(two_gpus: None, name: str) -> None:
    with pytest.raises(ValueError, match=f"no device '{name}' here; torch .* finds cpu, cuda, cuda:0, cuda:1"):
        check_device(name)


@pytest.mark.parametrize(
    "command",
    [
        lambda folder: extract.main(str(folder / "a.wav"), work=WorkConfig(device="cuda")),
        lambda folder: fit.main(folder / "m.jsonl", folder / "out", device="cuda"),
        lambda folder: pretrain.main(folder / "m.jsonl", folder / "out", device="cuda"),
        lambda folder: train_vocoder.main(folder / "units", folder / "m.jsonl", folder / "out", device="cuda"),
        lambda folder: vocode.main(
            folder / "units.txt", folder / "out", vocode.VocodeConfig(folder / "vocoder", device="cuda")
        ),
    ],
)
def test_every_command_asks_first(no_gpu: None, tmp_path: Path, command) -> None:
    with pytest.raises(ValueError, match="no device 'cuda' here; torch .* finds cpu$"):
        command(tmp_path)
    assert not list(tmp_path.iterdir())

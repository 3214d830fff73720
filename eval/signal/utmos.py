"""UTMOS, an estimate of how natural speech sounds, from 1 to 5, for those who have its weights (arXiv 2204.02152).

    eval-run ... --tasks utmos --signal.utmos my_utmos:utmos     # any function
    eval-run ... --tasks utmos --signal.utmos utmos.onnx         # input (1, T) float32 at 16 kHz, output the score

No package carries the weights. A function of yours gives a callable, wav (T,) at 16 kHz -> score:

    # my_utmos.py, with the reimplementation tarepan/SpeechMOS, which downloads them
    import torch

    def utmos(device="cpu"):
        network = torch.hub.load("tarepan/SpeechMOS:v1.2.0", "utmos22_strong").to(device).eval()
        return lambda wav: network(torch.from_numpy(wav)[None].to(device), 16000)
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from eval.test_set import NotMeasured
from units.runtime.provenance import content_hash

GIVE = "--signal.utmos module:function, which returns a callable from a wav to its score, or --signal.utmos FILE.onnx"


def name_of(specification: str | None) -> str:
    """What estimates: the function, or the file with a hash.

    Raises:
        NotMeasured: none is given.
    """
    if specification is None:
        raise NotMeasured(f"UTMOS's weights come with no package; give {GIVE} (docs/evaluation.md)")
    path = Path(specification)
    return f"{path.stem} {content_hash({path.name: path})}" if path.is_file() else specification


def open_utmos(specification: str, device: str) -> Callable[[np.ndarray], float]:
    """A function wav (T,) at 16 kHz -> score.

    Args:
        specification: module:function, or an ONNX file.
        device: given to the function, if it takes one.

    Raises:
        FileNotFoundError: there is no such file and no such function.
        ValueError: what it gives is no single number.
    """
    called = _onnx(Path(specification)) if Path(specification).suffix == ".onnx" else _function(specification, device)

    def score(wav: np.ndarray) -> float:
        found = called(np.ascontiguousarray(wav, np.float32))
        values = np.asarray(found.detach().cpu() if hasattr(found, "detach") else found, np.float64)
        if values.size != 1 or not np.isfinite(values).all():
            raise ValueError(f"{specification} gave {str(found)[:60]} for a wav; it gives one number")
        return float(values.reshape(()))

    return score


def _function(specification: str, device: str) -> Callable[[np.ndarray], Any]:
    module, _, name = specification.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise FileNotFoundError(f"there is no {specification} ({error}); give {GIVE}") from error
    return make(device=device) if "device" in inspect.signature(make).parameters else make()


def _onnx(path: Path) -> Callable[[np.ndarray], Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; give {GIVE}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise NotMeasured("onnxruntime is not installed: pip install '.[signal]'")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    refusals = (faults.Fail, faults.InvalidArgument, faults.InvalidGraph, faults.InvalidProtobuf, faults.NotImplemented)
    try:
        network = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise ValueError(f"{path} does not open as an ONNX network: {str(error).splitlines()[0][:120]}") from error
    given = network.get_inputs()[0].name
    return lambda wav: network.run(None, {given: wav[None]})[0]

"""Whisper's weights out of a CTranslate2 `model.bin`, under transformers' names.

The format is that of CTranslate2's python/ctranslate2/specs/model_spec.py, version 6: a header, named arrays, and
names that stand for another array.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KINDS = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
NORM = {"weight": "gamma", "bias": "beta"}


class NotReadable(ValueError):
    """A file that is not a complete CTranslate2 model of floating-point weights."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a CTranslate2 model.bin, by name.

    Raises: NotReadable, naming the file, if it is damaged, cut or of another form.
    """
    content, at = memoryview(path.read_bytes()), 0

    def take(form: str) -> tuple:
        nonlocal at
        found = struct.unpack_from("<" + form, content, at)
        at += struct.calcsize("<" + form)
        return found

    def piece(size: int) -> memoryview:
        nonlocal at
        if size > len(content) - at:
            raise struct.error(f"{size} bytes are announced at byte {at}, and {len(content) - at} follow")
        at += size
        return content[at - size : at]

    def text() -> str:
        return bytes(piece(take("H")[0])).rstrip(b"\0").decode()

    try:
        (version,), model, _ = take("I"), text(), take("I")
        if not model.startswith("Whisper"):
            raise struct.error(f"it holds a {model[:40]!r} of version {version}, not a Whisper")
        arrays: dict[str, np.ndarray] = {}
        for _ in range(take("I")[0]):
            name, rank = text(), take("B")[0]
            shape = take(f"{rank}I") if rank else ()
            kind, size = take("BI")
            arrays[name] = np.frombuffer(piece(size), KINDS[kind]).reshape(shape)
        for _ in range(take("I")[0]):
            alias, of = text(), text()
            arrays[alias] = arrays[of]
    except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
        raise NotReadable(f"{path} cannot be read as a CTranslate2 model: {error}") from error
    return arrays


def whisper_weights(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Weights of a WhisperForConditionalGeneration, float32."""
    given = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items() if array.ndim}
    found: dict[str, Tensor] = {}
    for half in ("encoder", "decoder"):
        found[f"model.{half}.embed_positions.weight"] = given[f"{half}/position_encodings/encodings"]
        found |= _norm(given, f"{half}/layer_norm", f"model.{half}.layer_norm")
        for number in range(_layers(given, half)):
            found |= _layer(given, f"{half}/layer_{number}", f"model.{half}.layers.{number}", half == "decoder")
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"model.encoder.{name}.{kind}"] = given[f"encoder/{name}/{kind}"]
    found["model.decoder.embed_tokens.weight"] = found["proj_out.weight"] = given["decoder/embeddings/weight"]
    return found


def _layers(given: dict[str, Tensor], half: str) -> int:
    numbers = [name.split("/")[1].removeprefix("layer_") for name in given if name.startswith(f"{half}/layer_")]
    return 1 + max(int(number) for number in numbers if number.isdigit())


def _layer(given: dict[str, Tensor], theirs: str, ours: str, is_decoder: bool) -> dict[str, Tensor]:
    found = _self_attention(given, f"{theirs}/self_attention", f"{ours}.self_attn")
    if is_decoder:
        found |= _cross_attention(given, f"{theirs}/attention", f"{ours}.encoder_attn")
    for number in (0, 1):
        for kind in ("weight", "bias"):
            found[f"{ours}.fc{number + 1}.{kind}"] = given[f"{theirs}/ffn/linear_{number}/{kind}"]
    return found | _norm(given, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")


def _self_attention(given: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """linear_0 holds query, key and value, one below the other; linear_1 is the output."""
    found = _projections(given, f"{theirs}/linear_0", ours, "qkv")
    return found | _output(given, theirs, ours, 1)


def _cross_attention(given: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """linear_0 is the query, linear_1 holds key and value, linear_2 is the output."""
    found = _projections(given, f"{theirs}/linear_0", ours, "q")
    found |= _projections(given, f"{theirs}/linear_1", ours, "kv")
    return found | _output(given, theirs, ours, 2)


def _projections(given: dict[str, Tensor], theirs: str, ours: str, letters: str) -> dict[str, Tensor]:
    found = {}
    for kind in ("weight", "bias"):
        for letter, rows in zip(letters, given[f"{theirs}/{kind}"].chunk(len(letters))):
            if kind == "weight" or letter != "k":  # Whisper's keys have no bias
                found[f"{ours}.{letter}_proj.{kind}"] = rows.clone()
    return found


def _output(given: dict[str, Tensor], theirs: str, ours: str, number: int) -> dict[str, Tensor]:
    found = {f"{ours}.out_proj.{kind}": given[f"{theirs}/linear_{number}/{kind}"] for kind in ("weight", "bias")}
    return found | _norm(given, f"{theirs}/layer_norm", f"{ours}_layer_norm")


def _norm(given: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return {f"{ours}.{kind}": given[f"{theirs}/{name}"] for kind, name in NORM.items()}

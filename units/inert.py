"""Reading pickles without running them.

A pickle is a program: it names classes and functions and has them called. Here a name means what it says only if it
stands in a short list of harmless ones (containers, tensors, arrays); every other name becomes an `Inert` object, which
remembers what it was given and does nothing. So the numbers in a stranger's checkpoint can be read, whatever
else it holds and whether or not its libraries are installed.

    read_torch("hubert_base_ls960.pt")["model"]             # what torch.save wrote
    read_joblib("hubert_base_ls960_L9_km500.bin")           # what joblib.dump wrote, for example an Inert KMeans
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

COMPRESSORS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x78": zlib.decompress,
    b"\x1f\x8b": gzip.decompress,
    b"BZ": bz2.decompress,
    b"\xfd7zXZ": lzma.decompress,
}


class UnreadableFile(ValueError):
    """A file that is not what it should be; the message names it and says why."""


class Inert:
    """Stands for an object of a class that is not called: `kind` is its name, `args` and `state` what the pickle gave it."""

    kind = ""

    def __init__(self, *args: Any, **named: Any) -> None:
        self.args, self.state = args, named

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Items of a dict subclass; not kept."""

    def append(self, value: Any) -> None:
        """Items of a list subclass; not kept."""

    def extend(self, values: Any) -> None:
        """Items of a list subclass; not kept."""

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.kind}, not called>"


def _inert(module: str, name: str) -> type[Inert]:
    return type(name.rsplit(".", 1)[-1] or "Inert", (Inert,), {"kind": f"{module}.{name}"})


HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": lambda *_: defaultdict(),  # its factory is a name from the file, so it is left out
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__")
       for kind in (dict, list, set, tuple, int, float, bool, str, complex, frozenset)},
    "__builtin__.long": int,
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1") if encoding == "latin1" else Inert(text),
}  # fmt: skip


def _dtype(*args: Any) -> np.dtype:
    """numpy.dtype of plain numbers only."""
    found = np.dtype(args[0])
    if found.hasobject:
        raise UnreadableFile(f"an array of python objects ({found}) is not read")
    return found


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    return np.frombuffer(data, dtype)[0]


NUMPY: dict[str, Any] = {"numpy.dtype": _dtype}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    NUMPY[f"{_module}.scalar"] = _scalar


class _JoblibArray:
    """joblib.numpy_pickle.NumpyArrayWrapper: says what array follows in the file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    order: str
    numpy_array_alignment_bytes: int | None = None

    def read(self, file: BinaryIO) -> np.ndarray:
        """The array's bytes follow the pickle's, aligned since joblib 1.1 (joblib/numpy_pickle.py, read_array)."""
        if self.dtype.hasobject:
            raise ValueError("it holds an array of python objects, which would have to be unpickled")
        if not all(isinstance(length, int) and length >= 0 for length in self.shape):
            raise ValueError(f"it holds an array of shape {self.shape}")
        if self.numpy_array_alignment_bytes is not None:
            file.read(file.read(1)[0])
        size = math.prod(self.shape) * self.dtype.itemsize
        data = file.read(size)
        if len(data) < size:
            raise EOFError(f"{size} bytes of an array expected, {len(data)} found")
        flat = np.frombuffer(data, self.dtype)
        return flat.reshape(self.shape[::-1]).T if self.order == "F" else flat.reshape(self.shape)


# The interpreter in Python, not the one in C: it lets us step aside for joblib's arrays, which stand between the opcodes,
# and refuse a state for anything but the objects that the file itself made.
class _Reader(pickle._Unpickler):  # type: ignore[misc, name-defined]
    stack: list[Any]
    dispatch: dict[int, Any] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined, assignment]

    def load_build(self) -> None:
        made = self.stack[-2]
        if not isinstance(made, (Inert, OrderedDict, np.dtype, _JoblibArray)):
            raise ValueError(f"it sets the state of {made!r}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


class _JoblibReader(_Reader):
    dispatch: dict[int, Any] = dict(_Reader.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        if name == "NumpyArrayWrapper":
            return _JoblibArray
        full = f"{module}.{name}"
        return HARMLESS.get(full) or NUMPY.get(full) or _inert(module, name)

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _JoblibArray):
            self.stack[-1] = self.stack[-1].read(self.file)

    dispatch[pickle.BUILD[0]] = load_build


def read_joblib(path: str | Path) -> Any:
    """What joblib.dump wrote (0.10 and later), compressed or not; objects of any library come as `Inert`.

    Raises: FileNotFoundError; UnreadableFile naming the file and what is wrong with it.
    """
    data = Path(path).read_bytes()
    try:
        for magic, decompress in COMPRESSORS.items():
            if data.startswith(magic):
                data = decompress(data)
                break
        return _JoblibReader(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can fail
        raise UnreadableFile(f"{path} cannot be read as a joblib file ({type(error).__name__}: {error})") from error


class _TorchReader(_Reader):
    """torch.load finds the storages; every name is looked up here."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        full = f"{module}.{name}"
        if full in HARMLESS:
            return HARMLESS[full]
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return getattr(torch._utils, name)
        if module in ("torch", "torch.storage") and (name.endswith("Storage") or name == "Size"):
            return getattr(torch, name, None) or getattr(torch.storage, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return _inert(module, name)


def read_torch(path: str | Path) -> Any:
    """What torch.save wrote, on the CPU; objects of any library but torch come as `Inert`.

    Raises: FileNotFoundError; UnreadableFile naming the file and what is wrong with it.
    """
    import torch

    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    reader = ModuleType("reader")  # what torch.load takes in place of the module pickle
    reader.Unpickler, reader.load = _TorchReader, lambda file, **named: _TorchReader(file, **named).load()  # type: ignore[attr-defined]
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ValueError("it is a TorchScript program, which would have to be run")
        return torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except Exception as error:  # as above
        raise UnreadableFile(f"{path} cannot be read as a torch file ({type(error).__name__}: {error})") from error


def plain(value: Any) -> Any:
    """Settings out of what a checkpoint holds: omegaconf nodes and argparse namespaces become dicts, lists and values."""
    if isinstance(value, Inert):
        state = value.state
        if isinstance(state, dict):
            for content in ("_content", "_val"):  # omegaconf's containers, and its values
                if content in state:
                    return plain(state[content])
        return plain(state) if state else None
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value

"""Reading pickles without running them.

A pickle is a program: it names classes and functions and has them called. Here a name means what it says only if it
stands in a short list of harmless ones (containers, tensors, arrays); every other name becomes an `Inert` object, which
remembers what it was given and does nothing (`units/encoder/pickles.py`). So the numbers in a stranger's checkpoint can be read,
whatever else it holds and whether or not its libraries are installed. Shapes are held against the bytes that are there.

    read_torch("hubert_base_ls960.pt")["model"]             # what torch.save wrote
    read_joblib("hubert_base_ls960_L9_km500.bin")           # what joblib.dump wrote, for example an Inert KMeans
"""

from __future__ import annotations

import bz2
import io
import lzma
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from units.encoder.pickles import CONTAINERS, Inert, Reader

if TYPE_CHECKING:
    import torch

LARGEST = 2**30  # bytes that a compressed file may hold; 1000 centres of 1024 float64 are 2**23
DIMENSIONS = 8  # of an array
DEPTH, PARTS = 64, 100_000  # of what `plain` unfolds; fairseq's settings are 5 deep and have some hundreds
UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x78": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),  # zlib's number for gzip
    b"BZ": bz2.BZ2Decompressor,
    **dict.fromkeys((b"\xfd7zXZ", b"\x5d\x00"), lzma.LZMADecompressor),
}
LZ4 = b"\x04\x22\x4d\x18"


class UnreadableFile(ValueError):
    """A file that is not what it should be; the message names it and says why."""


def _refusal(path: str | Path, kind: str, error: Exception) -> UnreadableFile:
    return UnreadableFile(f"{path} cannot be read as a {kind} file ({type(error).__name__}: {str(error)[:300]})")


def _lengths(said: Any) -> tuple[int, ...]:
    """A shape, or strides, as a file gives them."""
    if type(said) is not tuple or len(said) > DIMENSIONS or not all(type(n) is int and 0 <= n < 2**48 for n in said):
        raise ValueError("it holds an array of an impossible shape")
    return said


# --- joblib: arrays of numpy, whose bytes stand between the steps of the pickle


def _dtype(code: str, *_: Any) -> np.dtype:
    """numpy.dtype of numbers and texts only; a copy, because a state may follow, which numpy's own take none of."""
    if type(code) is not str or not re.fullmatch(r"[<>=|]?([biufc]\d{1,2}|[SU]\d{1,4})", code):
        raise ValueError("it holds other arrays than of numbers and texts; python objects would have to be unpickled")
    return np.dtype(code, False, True)  # type: ignore[call-overload]


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes or len(data) != dtype.itemsize:
        raise ValueError("it holds a number whose bytes are not those of its kind")
    return np.frombuffer(data, dtype)[0]


NUMPY: dict[str, Any] = {
    **CONTAINERS,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


class _JoblibReader(Reader):
    def load_build(self) -> None:
        made, state = self.stack[-2], self.stack[-1]
        if isinstance(made, np.dtype):
            self.stack.pop()
            self._order(made, state)
            return
        super().load_build()
        if isinstance(made, Inert) and made.kind.endswith(".NumpyArrayWrapper"):
            self.stack[-1] = self._array(state)

    def _order(self, dtype: np.dtype, state: Any) -> None:
        """Give a dtype its byte order, which is all that the state of a plain number tells (numpy: arraydescr_reduce)."""
        if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise ValueError("it sets the state of a dtype to a record's")
        if dtype.kind in "SU" and state[1] == ">":
            raise ValueError("it holds texts of a big-endian machine")
        if dtype.kind not in "SU" and type(state[1]) is str and state[1] in ("<", ">"):
            dtype.__setstate__((3, state[1], None, None, None, -1, -1, 0))  # type: ignore[attr-defined]

    def _array(self, said: dict[str, Any]) -> np.ndarray:
        """The array of shape said["shape"] that follows in the file, aligned since joblib 1.1 (joblib, read_array)."""
        shape, dtype, order = _lengths(said["shape"]), said["dtype"], said.get("order")
        if not isinstance(dtype, np.dtype):
            raise ValueError(f"it holds an array of {type(dtype).__name__}")
        if said.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        size = math.prod(shape) * dtype.itemsize
        data = self.file.read(size)
        if len(data) < size:
            raise EOFError(f"{size} bytes of an array expected, {len(data)} found")
        flat = np.frombuffer(data, dtype)
        return flat.reshape(shape[::-1]).T if type(order) is str and order == "F" else flat.reshape(shape)


def _unpacked(data: bytes) -> bytes:
    if data.startswith(LZ4):
        raise ValueError("it is packed by lz4; write it again with joblib.dump(joblib.load(..), .., compress=0)")
    for magic, unpacker in UNPACKERS.items():
        if data.startswith(magic):
            opened = unpacker()
            data = opened.decompress(data, LARGEST)
            if not opened.eof:
                raise EOFError(f"its packed part is cut short, or holds more than {LARGEST} bytes")
            break
    return data


def read_joblib(path: str | Path) -> Any:
    """What joblib.dump wrote (0.10 and later), compressed or not; objects of any library come as `Inert`.

    Raises: FileNotFoundError; UnreadableFile naming the file and what is wrong with it.
    """
    data = Path(path).read_bytes()
    try:
        return _JoblibReader(io.BytesIO(_unpacked(data)), NUMPY).load()
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can fail
        raise _refusal(path, "joblib", error) from error


# --- torch: a pickle, and beside it the storages that it refers to

STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
            "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8"}  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # before the files were zips (torch/serialization.py)
SHARED = 8  # tensors that one storage may be seen as, on average; tied weights make it 2


def _torch_names(size: int) -> dict[str, Any]:
    """What names mean in a file of `size` bytes."""
    import torch

    left = SHARED * size

    def tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor | None:
        """torch._utils._rebuild_tensor, which would let a storage grow by whatever memory comes to hand."""
        nonlocal left
        if storage is None:  # the first of the two readings of `_of_stream`
            return None
        count, (offset, *strides) = math.prod(_lengths(size)), _lengths((offset, *_lengths(stride)))
        last = offset + sum((length - 1) * step for length, step in zip(size, strides, strict=True))
        if count and (count > storage.numel() or last >= storage.numel()):
            raise ValueError(f"it holds a tensor of {count} numbers, and {storage.numel()} in its storage")
        left -= count * storage.itemsize
        if left < 0:
            raise ValueError("it holds the same numbers as too many tensors")
        return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)

    rebuilt = dict.fromkeys(("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"), tensor)
    kinds = {f"torch.{name}": kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
    for name, kind in STORAGES.items():  # not the classes, which could be called for memory that holds anything
        kinds[f"torch.{name}Storage"] = kinds[f"torch.storage.{name}Storage"] = getattr(torch, kind)
    parameter = {"torch._utils._rebuild_parameter": lambda data, *_: data}
    return {**CONTAINERS, **kinds, **rebuilt, **parameter, "torch.Size": _lengths}


class _TorchReader(Reader):
    """raw: a storage's bytes by its key and kind; None while only the kinds are of interest."""

    def __init__(self, file: BinaryIO, size: int, raw: Callable[[str, torch.dtype], bytearray | None]) -> None:
        super().__init__(file, _torch_names(size), encoding="utf-8")
        self.raw = raw

    def persistent_load(self, said: Any) -> torch.Tensor | None:
        """The numbers (N,) of a storage, however many the file says it has."""
        import torch

        if type(said) is not tuple or len(said) not in (5, 6) or any(view is not None for view in said[5:]):
            raise ValueError("it refers to something that is no storage")
        kind, dtype, key = said[:3]
        if type(kind) is not str or kind != "storage" or type(key) is not str or not isinstance(dtype, torch.dtype):
            raise ValueError("it refers to something that is no storage of numbers")
        raw = self.raw(key, dtype)
        if raw is None:
            return None
        count = len(raw) // dtype.itemsize
        return torch.frombuffer(raw, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _of_zip(path: str | Path, size: int) -> Any:
    """torch.save's format since 1.6: a zip of data.pkl and of a file for each storage, none of them compressed."""
    left = size
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a TorchScript program, which would have to be run")
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"it has {len(roots)} files data.pkl")

        @cache
        def member(name: str) -> bytearray:
            nonlocal left
            found = archive.getinfo(roots[0] + name)
            left -= found.file_size
            if found.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError("its parts are larger than itself")
            return bytearray(archive.read(found))

        if f"{roots[0]}byteorder" in names and member("byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        data = io.BytesIO(member("data.pkl"))
        return _TorchReader(data, size, lambda key, _: member(f"data/{key}")).load()


def _of_stream(file: BinaryIO, size: int) -> Any:
    """torch.save's format before 1.6, and fairseq's since: five pickles (the fourth is the object), then the storages.

    The bytes of a storage come after the tensors made of it, so the object is read once for the kinds of the storages
    and once more for itself.
    """
    kinds: dict[str, torch.dtype] = {}
    raw: dict[str, bytearray] = {}

    def skim(key: str, kind: torch.dtype) -> None:
        kinds[key] = kind

    magic, protocol, machine = (_TorchReader(file, size, skim).load() for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(machine, dict) or not machine.get("little_endian"):
        raise ValueError("it is no file of torch.save, or of a big-endian machine")
    begin = file.tell()
    _TorchReader(file, size, skim).load()
    for key in _TorchReader(file, size, skim).load():
        if type(key) is not str:
            raise ValueError("it has a storage without a name")
        count = struct.unpack("<q", file.read(8))[0] * kinds[key].itemsize
        if not 0 <= count <= size - file.tell():
            raise EOFError(f"{count} bytes of a storage expected, {size - file.tell()} found")
        raw[key] = bytearray(file.read(count))
    file.seek(begin)
    return _TorchReader(file, size, lambda key, _: raw[key]).load()


def read_torch(path: str | Path) -> Any:
    """What torch.save wrote, on the CPU; objects of any library but torch come as `Inert`.

    Raises: FileNotFoundError; UnreadableFile naming the file and what is wrong with it.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            return _of_zip(path, size) if zipped else _of_stream(file, size)
    except Exception as error:  # as above
        raise _refusal(path, "torch", error) from error


def plain(value: Any) -> Any:
    """Settings out of what a checkpoint holds: omegaconf nodes and argparse namespaces become dicts, lists and values.

    What lies deeper than `DEPTH` or beyond the first `PARTS` becomes None, as in a list that holds itself.
    """
    left = PARTS

    def unfolded(value: Any, depth: int) -> Any:
        nonlocal left
        if isinstance(value, Inert):
            state = value.state
            for content in ("_content", "_val"):  # omegaconf's containers, and its values
                if isinstance(state, dict) and content in state:
                    return unfolded(state[content], depth - 1) if depth else None
            bare = isinstance(state, (dict, list, tuple)) and not state
            return None if bare or not depth else unfolded(state, depth - 1)
        if not isinstance(value, (dict, list, tuple)):
            return value
        left -= len(value)
        if left < 0 or not depth:
            return None
        if isinstance(value, dict):
            return {key: unfolded(item, depth - 1) for key, item in value.items()}
        return [unfolded(item, depth - 1) for item in value]

    return unfolded(value, DEPTH)

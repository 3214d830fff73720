"""Read files of torch.save and joblib.dump without trusting them.

    read_torch("hubert_base_ls960.pt")["model"]                                 # tensors by name
    read_joblib("hubert_base_ls960_L9_km500.bin").state["cluster_centers_"]     # of an Inert KMeans

Shapes, sizes and offsets are checked against the bytes that are there; `pickles.py` has the other limits.
"""

from __future__ import annotations

import bz2
import io
import lzma
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from units.encoder.published.pickles import CONTAINERS, Inert, SafeUnpickler

if TYPE_CHECKING:
    import torch

DIMENSIONS = 8  # of an array
UNPACKED = 2**30  # bytes that a compressed file may hold; 1000 centres of 1024 float64 are 2**23
TENSORS = 8  # bytes of all tensors, over those of the file; tied weights make it 2


class UnreadableFile(ValueError):
    """A file that is not what it should be; the message names it and the reason."""


def _unreadable(path: str | Path, kind: str, error: Exception) -> UnreadableFile:
    return UnreadableFile(f"{path} cannot be read as a {kind} file ({type(error).__name__}: {str(error)[:300]})")


def _lengths(value: Any) -> tuple[int, ...]:
    """A shape, or strides, of a file."""
    if type(value) is not tuple or len(value) > DIMENSIONS or not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise ValueError("it holds an array of an impossible shape")
    return value


# --- joblib: numpy arrays, whose bytes stand between the opcodes of the pickle


def _dtype(code: str, *_: Any) -> np.dtype:
    """numpy.dtype of numbers and texts only; a copy, since BUILD may follow, and numpy's own dtypes accept no state."""
    if type(code) is not str or not re.fullmatch(r"[<>=|]?([biufc]\d{1,2}|[SU]\d{1,4})", code):
        raise ValueError(
            "it holds arrays of something else than numbers and texts; python objects would have to be unpickled"
        )
    return np.dtype(code, False, True)  # type: ignore[call-overload]


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes or len(data) != dtype.itemsize:
        raise ValueError("it holds a number whose bytes do not fit its dtype")
    return np.frombuffer(data, dtype)[0]


ARRAYS: dict[str, Any] = {
    **CONTAINERS,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}


class _JoblibUnpickler(SafeUnpickler):
    def built(self, made: Any, state: Any) -> Any:
        if isinstance(made, np.dtype):
            _set_byte_order(made, state)
            return made
        made = super().built(made, state)
        return self._array(state) if isinstance(made, Inert) and made.kind.endswith(".NumpyArrayWrapper") else made

    def _array(self, settings: dict[str, Any]) -> np.ndarray:
        """The array that follows in the file, aligned since joblib 1.1 (joblib.numpy_pickle, read_array)."""
        shape, dtype, order = _lengths(settings["shape"]), settings["dtype"], settings.get("order")
        if not isinstance(dtype, np.dtype):
            raise ValueError(f"it holds an array of {type(dtype).__name__}")
        if settings.get("numpy_array_alignment_bytes") is not None:
            self.file.read(self.file.read(1)[0])
        size = math.prod(shape) * dtype.itemsize
        data = self.file.read(size)
        if len(data) < size:
            raise EOFError(f"{size} bytes of an array expected, {len(data)} found")
        flat = np.frombuffer(data, dtype)
        return flat.reshape(shape[::-1]).T if type(order) is str and order == "F" else flat.reshape(shape)


def _set_byte_order(dtype: np.dtype, state: Any) -> None:
    """The state of a plain dtype holds nothing but its byte order (numpy, arraydescr_reduce)."""
    if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise ValueError("it sets the state of a dtype to a record's")
    order = state[1]
    if type(order) is not str or order not in ("<", "|", *([] if dtype.kind in "SU" else [">"])):
        raise ValueError("it holds numbers or texts of an unknown byte order")
    if order != "|" and dtype.kind not in "SU":  # in place, since other arrays of the file refer to the same dtype
        dtype.__setstate__((3, order, None, None, None, -1, -1, 0))  # type: ignore[attr-defined]


UNPACKERS: dict[bytes, Callable[[], Any]] = {
    b"\x78": zlib.decompressobj,
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),  # zlib's number for gzip
    b"BZ": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\x00": lzma.LZMADecompressor,
}
LZ4 = b"\x04\x22\x4d\x18"


def _unpacked(data: bytes) -> bytes:
    if data.startswith(LZ4):
        raise ValueError("it is packed by lz4; write it again with joblib.dump(joblib.load(..), .., compress=0)")
    for magic, unpacker in UNPACKERS.items():
        if data.startswith(magic):
            opened = unpacker()
            data = opened.decompress(data, UNPACKED)
            if not opened.eof:
                raise EOFError(f"its packed part is cut short, or holds more than {UNPACKED} bytes")
            break
    return data


def read_joblib(path: str | Path) -> Any:
    """Read what joblib.dump wrote (0.10 and later), compressed or not; objects of any library come as `Inert`.

    Raises: FileNotFoundError; UnreadableFile naming the file and what is wrong with it.
    """
    data = Path(path).read_bytes()
    try:
        return _JoblibUnpickler(io.BytesIO(_unpacked(data)), ARRAYS).load()
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can fail
        raise _unreadable(path, "joblib", error) from error


# --- torch: a pickle, and beside it the storages that it refers to

STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8",
}  # fmt: skip
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before zip files (torch/serialization.py)


def _tensors(file_size: int) -> dict[str, Any]:
    """The allow list for a file of `file_size` bytes."""
    import torch

    left = TENSORS * file_size

    def tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor | None:
        """torch._utils._rebuild_tensor, which would extend a storage that is too small by uninitialised memory."""
        nonlocal left
        if storage is None:  # the first of the two passes of `_of_stream`
            return None
        count, (offset, *strides) = math.prod(_lengths(size)), _lengths((offset, *_lengths(stride)))
        last = offset + sum((length - 1) * step for length, step in zip(size, strides, strict=True))
        if count and (count > storage.numel() or last >= storage.numel()):
            raise ValueError(f"it holds a tensor of {count} numbers, and {storage.numel()} in its storage")
        left -= count * storage.itemsize
        if left < 0:
            raise ValueError("it holds the same numbers as too many tensors")
        return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)

    dtypes = {f"torch.{name}": kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
    for name, kind in STORAGES.items():  # not the classes: a call of one allocates uninitialised memory
        dtypes[f"torch.{name}Storage"] = dtypes[f"torch.storage.{name}Storage"] = getattr(torch, kind)
    return {
        **CONTAINERS,
        **dtypes,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch.Size": _lengths,
    }


class _TorchUnpickler(SafeUnpickler):
    """raw: a storage's bytes by its key and dtype; None while only the dtypes are of interest."""

    def __init__(self, file: Any, size: int, raw: Callable[[str, torch.dtype], bytearray | None]) -> None:
        super().__init__(file, _tensors(size), encoding="utf-8")
        self.raw = raw

    def persistent_load(self, pid: Any) -> torch.Tensor | None:
        """The numbers (N,) of a storage: as many as the file holds, not as many as it announces."""
        import torch

        if type(pid) is not tuple or len(pid) not in (5, 6) or any(view is not None for view in pid[5:]):
            raise ValueError("it refers to something that is no storage")
        kind, dtype, key = pid[:3]
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
        return _TorchUnpickler(data, size, lambda key, _: member(f"data/{key}")).load()


def _of_stream(file: mmap.mmap) -> Any:
    """torch.save's format before 1.6, and fairseq's to this day: five pickles (the fourth: the object), then storages.

    The bytes of a storage follow the tensors made of it, so the object is read twice: first for the storages' dtypes.
    """
    size = len(file)
    dtypes: dict[str, torch.dtype] = {}
    raw: dict[str, bytearray] = {}

    def skim(key: str, dtype: torch.dtype) -> None:
        dtypes[key] = dtype

    magic, protocol, machine = (_TorchUnpickler(file, size, skim).load() for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(machine, dict) or not machine.get("little_endian"):
        raise ValueError("it is no file of torch.save, or of a big-endian machine")
    begin = file.tell()
    _TorchUnpickler(file, size, skim).load()
    for key in _TorchUnpickler(file, size, skim).load():
        if type(key) is not str:
            raise ValueError("it has a storage without a name")
        count = struct.unpack("<q", file.read(8))[0] * dtypes[key].itemsize
        if not 0 <= count <= size - file.tell():
            raise EOFError(f"{count} bytes of a storage expected, {size - file.tell()} found")
        raw[key] = bytearray(file.read(count))
    file.seek(begin)
    return _TorchUnpickler(file, size, lambda key, _: raw[key]).load()


def read_torch(path: str | Path) -> Any:
    """Read what torch.save wrote, on the CPU; objects of any library but torch come as `Inert`.

    Raises: FileNotFoundError; UnreadableFile naming the file and what is wrong with it.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _of_zip(path, len(mapped)) if mapped[:4] == b"PK\x03\x04" else _of_stream(mapped)
    except Exception as error:  # as above
        raise _unreadable(path, "torch", error) from error

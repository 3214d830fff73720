"""A small assembler of pickles for tests: each function returns the opcodes (bytes) that push one object."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # torch/serialization.py


def value(of: object) -> bytes:
    return pickle.dumps(of, 2)[2:-1]


def name(of: str) -> bytes:
    return b"c%s\n%s\n" % tuple(part.encode() for part in of.rsplit(".", 1))


def call(of: str, *args: bytes) -> bytes:
    return name(of) + b"(" + b"".join(args) + b"tR"


def pairs(**items: bytes) -> bytes:
    return b"}(" + b"".join(value(key) + item for key, item in items.items()) + b"u"


def dtype(code: str, state: bytes = b"") -> bytes:
    return call("numpy.dtype", value(code), value(False), value(True)) + (state and state + b"b")


def array(**said: bytes) -> bytes:
    return name("joblib.numpy_pickle.NumpyArrayWrapper") + b")\x81" + pairs(**said) + b"b"


def storage(count: int, kind: str = "torch.FloatStorage", key: str = "0") -> bytes:
    return b"(" + value("storage") + name(kind) + value(key) + value("cpu") + value(count) + b"tQ"


def tensor(of: bytes, offset: int, size: tuple, stride: tuple) -> bytes:
    return call("torch._utils._rebuild_tensor_v2", of, *map(value, (offset, size, stride, False, {})))


def zipped(path: Path, program: bytes, packed: int = zipfile.ZIP_STORED, **storages: bytes) -> None:
    with zipfile.ZipFile(path, "w", packed) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + program + b".")
        for key, raw in storages.items():
            archive.writestr(f"a/data/{key.strip('_')}", raw)


def streamed(path: Path, program: bytes, **storages: bytes) -> None:
    """As torch.save wrote before 1.6: the length in front of a storage is the number of its float32."""
    keys = [key.strip("_") for key in storages]
    parts = MAGIC, PROTOCOL, {"little_endian": True}
    raw = b"".join((len(one) // 4).to_bytes(8, "little") + one for one in storages.values())
    path.write_bytes(b"".join(pickle.dumps(p, 2) for p in parts) + program + b"." + pickle.dumps(keys, 2) + raw)


def record(offset: int) -> bytes:
    """The state of a dtype of 8 bytes with one field, which lies at an offset."""
    field = b"}" + value("a") + dtype("f8") + value(offset) + b"\x86s"
    return b"(" + value(3) + value("|") + b"N" + value(("a",)) + field + value(8) + value(1) + value(0) + b"t"


def number_of(offset: int) -> bytes:
    """A number of that dtype, which is then given a state."""
    kind = dtype("V8", record(offset))
    return call("numpy.core.multiarray.scalar", kind, call("_codecs.encode", value("12345678"))) + b"Nb"


def nested(outer: bytes, put: bytes) -> bytes:
    """200 000 objects in one another. Each is made by `outer`; `put` puts what is memorised as 0 into it."""
    return b"Nq\0" + b"0" + (outer + put + b"q\0" + b"0") * 200_000 + b"h\0"

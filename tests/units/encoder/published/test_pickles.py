"""A hostile file is refused with an error that names it, or read without effect: no crash, no hang, little memory.

The programs are written opcode by opcode, since no pickler would write them. Those that once crashed the interpreter,
or kept it busy for ever, are read in a separate process.
"""

from __future__ import annotations

import copyreg
import gc
import json
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
import weakref
import zlib
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opcodes import array, call, dtype, name, nested, number_of, record, value
from safetensors.torch import save_file

import units.encoder.published.checkpoint_files
import units.encoder.published.pickles
from units.encoder.published.checkpoint_files import UnreadableFile, read_joblib, read_torch
from units.encoder.published.fairseq_hubert import read_centres
from units.encoder.published.pickles import Inert, plain

ROOT = Path(__file__).parents[4]
SECONDS = 60  # for one file, the import of torch included
CHILD = """
import json, signal, sys
from units.encoder.published.checkpoint_files import UnreadableFile, read_joblib, read_torch
from units.encoder.published.pickles import plain
reader = dict(joblib=read_joblib, torch=read_torch)[sys.argv[1]]
signal.alarm(int(sys.argv[3]))
try:
    plain(reader(sys.argv[2]))
    print(json.dumps("read"))
except UnreadableFile as error:
    print(json.dumps(str(error)))
"""


WITHOUT_END = b")" + b"2\x86" * 60  # a tuple of itself twice, and again: 2**60 parts to visit
FROM_MEMORY = b"(t" + b"q\0h\0\x86" * 60  # the same by the memo, from an empty tuple
NAMED = b"}(" + b"".join(value(f"k{i}") + b"N" for i in range(20_000)) + b"uq\0" + b"0"
NUMBERS = b"](" + b"".join(map(value, range(20_000))) + b"eq\0" + b"0"
CLASS = name("a.B") + b"q\x01" + b"0"
FACTORY = name("collections.defaultdict") + b"q\x01" + b"0"
JOBLIB = {
    "a field far away": number_of(10**9),
    "a field outside": number_of(4096),
    "a text without end": call("builtins.str", WITHOUT_END),
    "settings without end": WITHOUT_END,
    "a key from memory": b"}" + FROM_MEMORY + b"Ns",
    "a long number": b"}\x8b" + (2**20).to_bytes(4, "little") + b"\x7f" * 2**20 + b"Ns",
    "deep tuples": nested(b"h\0", b"\x85"),
    "slow memory": b"".join(b"Np%d\n0" % (i * (2**61 - 1)) for i in range(30_000)) + b"N",
    "a dtype of offsets": call("numpy.dtype", value({"names": ["a"], "formats": ["f8"], "offsets": [10**9]})),
    "a dtype without end": call("numpy.dtype", WITHOUT_END),
    "a shape without end": array(shape=WITHOUT_END, dtype=dtype("f8")),
    "a key without end": b"}" + WITHOUT_END + b"Ns",
    "keys without end": b"}(" + WITHOUT_END + b"Nu",
    "a dict without end": b"(" + WITHOUT_END + b"Nd",
    "a pair without end": call("collections.OrderedDict", b"](" + WITHOUT_END + b"N\x86e"),
    "an element without end": call("builtins.set", b"](" + WITHOUT_END + b"e"),
    "elements without end": b"\x8f(" + WITHOUT_END + b"\x90",
    "a frozenset without end": b"(" + WITHOUT_END + b"\x91",
    "named arguments again and again": NAMED + CLASS + b"(" + b"h\x01)h\0\x92" * 20_000 + b"l",
    "a set again and again": NUMBERS + name("builtins.set") + b"q\x010(" + b"h\x01h\0\x85R" * 20_000 + b"l",
}
READ = {
    "settings in themselves": b"]q\0(" + b"h\0" * 9 + b"e",
    "deep defaultdicts": FACTORY + nested(b"h\x01)R", b"K\0h\0s"),
    "deep dicts": nested(b"}", b"K\0h\0s"),
    "deep lists": nested(b"]", b"h\0a"),
    "deep objects": CLASS + nested(b"h\x01)\x81", b"h\0b"),
}


def tarred(path: Path) -> None:
    """torch.save's format of 2016, whose parts are unpacked on the disk; one is a pipe that nothing writes into."""
    with tarfile.open(path, "w") as archive:
        for part in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(part)
            info.type = tarfile.FIFOTYPE
            archive.addfile(info)


def child(kind: str, path: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(path), str(SECONDS)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize("program", JOBLIB | READ)
def test_no_program_crashes_or_hangs_the_reader(tmp_path: Path, program: str) -> None:
    path = tmp_path / "km.bin"
    path.write_bytes(b"\x80\x04" + (JOBLIB | READ)[program] + b".")
    done = child("joblib", path)
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr[-500:]}"
    outcome = json.loads(done.stdout)
    assert outcome == "read" if program in READ else outcome.startswith(f"{path} cannot be read as a joblib file")


def test_no_archive_hangs_the_reader(tmp_path: Path) -> None:
    tarred(tmp_path / "old.pt")
    done = child("torch", tmp_path / "old.pt")
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr[-500:]}"
    assert json.loads(done.stdout).startswith(f"{tmp_path / 'old.pt'} cannot be read as a torch file")


# --- what is refused, and why


SCALAR = "numpy.core.multiarray.scalar"
MISFITS = {
    "no shape": (array(dtype=dtype("f8")), "shape"),
    "a negative shape": (array(shape=value((-1, 2)), dtype=dtype("f8")), "impossible shape"),
    "a broken shape": (array(shape=value((1.5,)), dtype=dtype("f8")), "impossible shape"),
    "an endless shape": (array(shape=value((2**62, 2**62)), dtype=dtype("f8")), "impossible shape"),
    "many dimensions": (array(shape=value((1,) * 99), dtype=dtype("f8")), "impossible shape"),
    "more than there is": (array(shape=value((2**40,)), dtype=dtype("f8")), "bytes of an array expected"),
    "no dtype": (array(shape=value((1,)), dtype=value("V8")), "array of str"),
    "a vast text's dtype": (dtype("U99999"), "python objects"),
    "an object's dtype": (dtype("O8"), "python objects"),
    "a record's dtype": (dtype("i4,i4"), "python objects"),
    "a field outside": (number_of(4096), "python objects"),
    "a record's state": (dtype("f8", record(0)), "record"),
    "a dtype's odd state": (dtype("f8", value({"a": 1})), "record"),
    "too few bytes": (call(SCALAR, dtype("f8"), call("_codecs.encode", value("1234"))), "do not fit"),
    "no bytes": (call(SCALAR, dtype("f8"), value("12345678")), "do not fit"),
    "a scalar of a name": (call(SCALAR, value("f8"), call("_codecs.encode", value("12345678"))), "do not fit"),
    "an extension": (b"\x82\x01", "no checkpoint needs"),
    "an instance of protocol 0": (b"(ios\ngetcwd\n", "no checkpoint needs"),
    "an object of protocol 0": (b"(" + name("a.B") + b"o", "no checkpoint needs"),
    "a text for arguments": (name("a.B") + value("ab") + b"R", "calls something with a str"),
    "a set of an array": (call("builtins.set", dtype("f8")), "a container of a "),
    "memory": (b"\x96" + (2**36).to_bytes(8, "little"), "no checkpoint needs"),
    "a reference": (b"P1\n", "persistent id"),
    "a call of a number": (value(1) + b")R", "not callable"),
    "an object of a number": (value(1) + b")\x81", "not a type object"),
    "items in a number": (value(1) + b"NNs", "puts items into a int"),
    "items in a text": (value("a") + b"Na", "puts items into a str"),
    "another encoding": (call("_codecs.encode", value("a"), value("idna")), "encoding"),
    "many names": (b"".join(name(f"a.b{i}") for i in range(2000)), "more than 1000 classes"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_program_at_odds_with_its_file_is_refused(tmp_path: Path, misfit: str) -> None:
    program, reason = MISFITS[misfit]
    (tmp_path / "km.bin").write_bytes(b"\x80\x04" + program + b".")
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read_joblib(tmp_path / "km.bin")
    assert str(tmp_path / "km.bin") in str(caught.value)


def test_extensions_of_this_process_are_out_of_reach(tmp_path: Path) -> None:
    copyreg.add_extension("os", "getcwd", 240)
    try:
        pickle.loads(b"\x82\xf0.")  # noqa: S301 - now it is in pickle's cache, which is read without find_class
        (tmp_path / "km.bin").write_bytes(b"\x82\xf0)R.")
        with pytest.raises(UnreadableFile, match="no checkpoint needs"):
            read_joblib(tmp_path / "km.bin")
    finally:
        copyreg.remove_extension("os", "getcwd", 240)


def test_steps_and_packed_bytes_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.bin").write_bytes(b"N" * 2000 + b".")
    (tmp_path / "packed.bin").write_bytes(zlib.compress(b"N" * 2000 + b"."))
    assert read_joblib(tmp_path / "long.bin") is None
    assert read_joblib(tmp_path / "packed.bin") is None
    monkeypatch.setattr(units.encoder.published.pickles, "STEPS", 1000)
    monkeypatch.setattr(units.encoder.published.checkpoint_files, "UNPACKED", 1000)
    with pytest.raises(UnreadableFile, match="more than 1000 steps"):
        read_joblib(tmp_path / "long.bin")
    with pytest.raises(UnreadableFile, match="more than 1000 bytes"):
        read_joblib(tmp_path / "packed.bin")


def test_the_arguments_of_an_object_are_not_kept(tmp_path: Path) -> None:
    """Each call would keep a copy of a long memorised tuple, in five bytes of file."""
    calls = b"(" + b"N" * 4000 + b"tq\0" + CLASS + b"(" + b"h\x01h\0R" * 400 + b"l."
    (tmp_path / "km.bin").write_bytes(calls)
    tracemalloc.start()
    try:
        made = read_joblib(tmp_path / "km.bin")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(made) == 400
    assert peak < 400 * 4000  # bytes; copies of the tuple would be 8 * 400 * 4000
    (tmp_path / "km.bin").write_bytes(calls.replace(b"N" * 4000, b"N" * 9000))
    with pytest.raises(UnreadableFile, match="tuple of more than 4096 parts"):
        read_joblib(tmp_path / "km.bin")


@pytest.mark.parametrize("program", [name("a.KMeans") + b")\x81", call("a.KMeans"), name("a.KMeans")])
def test_an_object_without_state_is_no_kmeans(tmp_path: Path, program: bytes) -> None:
    (tmp_path / "km.bin").write_bytes(b"\x80\x02" + program + b".")
    with pytest.raises(UnreadableFile, match="km.bin holds"):
        read_centres(tmp_path / "km.bin")
    assert plain(Inert()) is None


def test_settings_unfold_as_far_as_settings_go() -> None:
    node, loop = Inert(), [1]
    node.state = {"_content": {"a": [1, 2]}, "_parent": node}
    loop.append(loop)
    assert plain({"node": node, "array": Inert(), "b": (3,)}) == {"node": {"a": [1, 2]}, "array": None, "b": [3]}
    found = plain(loop)
    assert found[0] == 1
    assert "None" in str(found)
    node.state = np.zeros(3)
    assert plain(node) is node.state


@pytest.mark.parametrize("order", ["<", ">"])
def test_numbers_keep_their_byte_order(tmp_path: Path, order: str) -> None:
    centres = np.random.default_rng(0).normal(size=(3, 2)).astype(order + "f8")
    joblib.dump({"centres": centres, "scalar": centres[0, 0]}, tmp_path / "km.bin")
    found = read_joblib(tmp_path / "km.bin")
    np.testing.assert_array_equal(found["centres"], centres)
    assert found["scalar"] == centres[0, 0]
    joblib.dump(centres, tmp_path / "km.bin")
    np.testing.assert_array_equal(read_centres(tmp_path / "km.bin"), centres.astype(np.float32))


HEADERS = {
    "deep": "(" * 5000,
    "deeper": "-" * 5000 + "1",
    "unclosed": "{'descr': '''",
    "endless": f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({10**30}, {10**30})}}",
    "large": "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000)}",
    "odd": "{'descr': [], 'fortran_order': False, 'shape': (2, 2)}",
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_at_odds_with_its_array_is_refused(tmp_path: Path, header: str) -> None:
    text = HEADERS[header].encode()
    (tmp_path / "km.npy").write_bytes(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + bytes(64))
    with pytest.raises(UnreadableFile, match="km.npy"):
        read_centres(tmp_path / "km.npy")


def test_centres_beyond_float32_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "km.npy", np.full((2, 2), 1e300))
    with pytest.raises(UnreadableFile, match="infinite"):
        read_centres(tmp_path / "km.npy")


def test_centres_of_a_kind_that_numpy_has_not_are_refused(tmp_path: Path) -> None:
    save_file({"centres": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}, tmp_path / "km.safetensors")
    with pytest.raises(UnreadableFile, match="km.safetensors"):
        read_centres(tmp_path / "km.safetensors")


# --- programs at random


NAMES = (
    "numpy.dtype",
    SCALAR,
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.set",
    "builtins.frozenset",
    "_codecs.encode",
    "builtins.str",
    "joblib.numpy_pickle.NumpyArrayWrapper",
    "sklearn.KMeans",
    "os.system",
)
SIMPLE = (None, True, 0, 1, 8, -1, 2**70, 1.5, "", "f8", "V8", "latin1", "shape", b"12345678", (), (2, 3))
leaves = st.one_of(
    st.sampled_from(SIMPLE).map(value),
    st.sampled_from(["f8", ">f4", "i8", "b1", "V8", "O8"]).map(dtype),
    st.sampled_from(NAMES).map(name),
    st.integers(0, 3).map(lambda i: b"h%c" % i),  # what was memorised last under that number
)


def grown(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    many = st.lists(inner, max_size=4).map(b"".join)
    makes, fills, takes = (
        st.sampled_from(opcodes)
        for opcodes in ([b"t", b"l", b"d", b"\x91"], [b"u", b"e", b"\x90"], [b"R", b"\x81", b"b", b"a"])
    )
    return st.one_of(
        st.builds(call, st.sampled_from(NAMES), inner, inner),
        st.builds(lambda opcode, items: b"(" + items + opcode, makes, many),
        st.builds(lambda made, opcode, items: made + b"(" + items + opcode, inner, fills, many),
        st.builds(lambda what, args, opcode: what + args + opcode, inner, inner, takes),
        st.builds(lambda shape, kind, more: array(shape=shape, dtype=kind, order=more), inner, inner, inner),
        st.builds(lambda what, i: what + b"q%c" % i, inner, st.integers(0, 3)),
    )


@settings(max_examples=500, deadline=None)
@given(program=st.recursive(leaves, grown, max_leaves=20), rest=st.binary(max_size=40))
def test_a_program_at_random_is_read_or_refused(tmp_path_factory, program: bytes, rest: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.bin"
    path.write_bytes(b"(NNNNd" + b"q\0q\1q\2q\3" + program + b"." + rest)
    try:
        plain(read_joblib(path))
        read_centres(path)
    except UnreadableFile as error:
        assert str(path) in str(error)


def test_what_was_read_is_freed_with_its_last_reference(tmp_path: Path) -> None:
    """A checkpoint's optimizer state may be gigabytes; it is freed without waiting for the garbage collector."""
    torch.save({"model": torch.zeros(4), "optimizer": torch.zeros(1000)}, tmp_path / "a.pt")
    joblib.dump({"centres": np.zeros(3)}, tmp_path / "a.bin")
    gc.collect()
    gc.disable()
    try:
        for read, name, key in ((read_torch, "a.pt", "optimizer"), (read_joblib, "a.bin", "centres")):
            found = read(tmp_path / name)[key]
            gone = weakref.ref(found)
            del found
            assert gone() is None
    finally:
        gc.enable()


def test_texts_and_all_compressions_of_joblib_are_read(tmp_path: Path) -> None:
    held = {"algorithm": np.str_("lloyd"), "names": np.array(["a", "bcd"]), "turn": np.complex64(1j)}
    for compression in (0, "zlib", "gzip", "bz2", "lzma", "xz"):
        joblib.dump(held, tmp_path / "held.bin", compress=(compression, 3) if compression else 0)
        found = read_joblib(tmp_path / "held.bin")
        assert (found["algorithm"], found["turn"], found["names"].tolist()) == ("lloyd", 1j, ["a", "bcd"])
    (tmp_path / "lz4.bin").write_bytes(units.encoder.published.checkpoint_files.LZ4 + b"\0" * 20)
    with pytest.raises(UnreadableFile, match="packed by lz4; write it again"):
        read_joblib(tmp_path / "lz4.bin")

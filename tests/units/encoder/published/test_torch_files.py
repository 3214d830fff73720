"""Files of torch.save are read as torch reads them; one whose numbers do not fit its bytes is refused by name."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opcodes import call, name, storage, streamed, tensor, value, zipped

from units.encoder.published.checkpoint_files import UnreadableFile, read_torch
from units.encoder.published.pickles import Inert, plain

RAW = torch.arange(4.0).numpy().tobytes()
WRITERS = {"zip": zipped, "stream": streamed}
each_format = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.mark.parametrize("zip_format", [True, False])
def test_tensors_are_read_as_torch_reads_them(tmp_path: Path, zip_format: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
    )
    held = {
        "whole": base,
        "views": [base[1:, ::2], base.T, base[2, 3], base[:0]],
        "kinds": [base.to(kind) for kind in kinds] + [base > 3],
        "parameter": torch.nn.Parameter(base.clone()),
        "weights": torch.nn.Linear(3, 2).state_dict(),
        "size": base.shape,
        "kind": torch.float16,
        "others": {"a": {1, 2}, (1, "b"): [None, 2.5, b"bytes"]},
    }
    torch.save(held, tmp_path / "held.pt", _use_new_zipfile_serialization=zip_format)
    found = read_torch(tmp_path / "held.pt")
    assert list(found) == list(held)
    assert torch.equal(found["whole"], base)
    for part in ("views", "kinds"):
        for one, wanted in zip(found[part], held[part], strict=True):
            assert one.dtype == wanted.dtype
            assert torch.equal(one, wanted)
    assert torch.equal(found["parameter"], held["parameter"])
    assert all(torch.equal(found["weights"][key], weight) for key, weight in held["weights"].items())
    assert found["size"] == (4, 6)
    assert found["kind"] is torch.float16
    assert found["others"] == held["others"]
    found["whole"][1, 2] = -1.0
    assert found["views"][0][0, 1] == -1.0, "views share their storage"


MISFITS = {
    "larger than its storage": (tensor(storage(4000), 0, (4000,), (1,)), "in its storage"),
    "outside its storage": (tensor(storage(4), 4, (1,), (1,)), "in its storage"),
    "far outside": (tensor(storage(4), 10**12, (1,), (1,)), "in its storage"),
    "backwards": (tensor(storage(4), 0, (4,), (-(10**8),)), "impossible shape"),
    "before its storage": (tensor(storage(4), -1, (1,), (1,)), "impossible shape"),
    "of overflowing steps": (tensor(storage(4), 0, (2, 2), (2**63, 2**63)), "impossible shape"),
    "of one number repeated": (tensor(storage(4), 0, (10**9,), (0,)), "in its storage"),
    "of fewer steps": (tensor(storage(4), 0, (2, 2), (1,)), "zip"),
    "of no storage": (tensor(value("a"), 0, (1,), (1,)), "no attribute"),
    "of a storage made up": (call("torch.UntypedStorage", value(4096)), "not callable"),
    "of a typed storage made up": (call("torch.FloatStorage", value(4096)), "not callable"),
    "of another storage": (tensor(storage(4, key="7"), 0, (1,), (1,)), "KeyError"),
    "of unknown numbers": (tensor(storage(4, "torch.QUInt8Storage"), 0, (1,), (1,)), "no storage"),
    "of a text for a storage": (b"P0\n", "no storage"),
    "called": (tensor(storage(4), 0, (4,), (1,)) + b")R", "not callable"),
    "given a state": (tensor(storage(4), 0, (4,), (1,)) + b"}b", "sets the state"),
    "written into": (tensor(storage(4), 0, (4,), (1,)) + b"K\0K\0s", "puts items"),
}


@each_format
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_tensor_at_odds_with_its_file_is_refused(tmp_path: Path, misfit: str, write) -> None:
    program, reason = MISFITS[misfit]
    write(tmp_path / "a.pt", program, _0=RAW)
    with pytest.raises(UnreadableFile, match=reason) as caught:
        read_torch(tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in str(caught.value)


@each_format
def test_a_storage_has_the_numbers_that_the_file_holds(tmp_path: Path, write) -> None:
    write(tmp_path / "a.pt", tensor(storage(10**12), 1, (3,), (1,)), _0=RAW)
    assert read_torch(tmp_path / "a.pt").tolist() == [1, 2, 3]
    write(tmp_path / "a.pt", tensor(storage(4), 0, (1,), (1,)))
    with pytest.raises(UnreadableFile, match="KeyError"):  # torch gives memory that holds anything, in the older format
        read_torch(tmp_path / "a.pt")


@each_format
def test_one_storage_is_not_many_weights(tmp_path: Path, write) -> None:
    """Each tensor may be copied on its way into a model."""
    for tensors in (2, 20):
        write(tmp_path / "a.pt", b"(" + tensor(storage(4000), 0, (1000, 4), (4, 1)) * tensors + b"l", _0=RAW * 1000)
        if tensors == 2:
            assert len(read_torch(tmp_path / "a.pt")) == 2
    with pytest.raises(UnreadableFile, match="too many tensors"):
        read_torch(tmp_path / "a.pt")


def test_archives_are_no_larger_than_their_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    zipped(path, tensor(storage(4), 0, (4,), (1,)), packed=zipfile.ZIP_DEFLATED, _0=RAW)
    with pytest.raises(UnreadableFile, match="larger than itself"):
        read_torch(path)
    for members, reason in ((["b/c"], "0 files data.pkl"), (["b/data.pkl", "c/data.pkl"], "2 files data.pkl")):
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.writestr(member, b"N.")
        with pytest.raises(UnreadableFile, match=reason):
            read_torch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"N.")
        archive.writestr("a/byteorder", b"big")
    with pytest.raises(UnreadableFile, match="big-endian"):
        read_torch(path)
    streamed(path, tensor(storage(4), 0, (4,), (1,)), _0=RAW)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableFile, match="16 bytes of a storage expected, 15 found"):
        read_torch(path)


def test_a_file_cannot_replace_the_methods_of_weights(tmp_path: Path) -> None:
    """The state of an OrderedDict becomes its attributes, which would hide `items` and `values`."""
    hidden = b"}" + value("values") + name("a.values") + b"s" + b"b"
    zipped(tmp_path / "a.pt", b"}" + value("model") + call("collections.OrderedDict") + hidden + b"s")
    assert list(read_torch(tmp_path / "a.pt")["model"].values()) == []


NAMES = (
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.FloatStorage",
    "torch.UntypedStorage",
    "torch.float32",
    "collections.OrderedDict",
    "omegaconf.DictConfig",
)
figures = st.sampled_from([-1, 0, 1, 2, 3, 4, 5, 2**31, 2**47, 2**63])
shapes = st.lists(figures, max_size=3).map(tuple)
leaves = st.one_of(
    st.sampled_from([None, 0, 1.5, "storage", "0", "cpu", (), {}, "_content"]).map(value),
    st.sampled_from(NAMES).map(name),
    st.builds(storage, figures, st.sampled_from(NAMES), st.sampled_from("01")),
    st.builds(tensor, st.builds(storage, figures), figures, shapes, shapes),
)
opcodes_of_two = st.sampled_from([b"R", b"\x81", b"b", b"a", b"\x86"])
programs = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(call, st.sampled_from(NAMES), inner, inner, inner, inner),
        st.builds(lambda a, b, opcode: a + b + opcode, inner, inner, opcodes_of_two),
        st.builds(lambda a, b, c: a + b + c + b"s", inner, inner, inner),
        st.builds(lambda a, b: b"(" + a + b + b"tQ", inner, inner),
    ),
    max_leaves=12,
)


@each_format
@settings(max_examples=200, deadline=None)
@given(program=programs)
def test_a_program_at_random_is_read_or_refused(tmp_path_factory, write, program: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pt"
    write(path, program, _0=RAW, _1=b"")
    try:
        found = plain(read_torch(path))
        assert not isinstance(found, torch.Tensor) or set(found.flatten().tolist()) <= {0, 1, 2, 3}, (
            "numbers of its storages"
        )
        assert not isinstance(found, Inert)
    except UnreadableFile as error:
        assert str(path) in str(error)

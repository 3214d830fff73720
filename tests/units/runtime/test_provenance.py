"""Hashes are stable and see every change; commit and machine are named."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from units.runtime import provenance
from units.runtime.provenance import commit, content_hash, digest, file_stamp, fingerprint, machine


def test_a_digest_is_sha256_over_its_parts() -> None:
    whole = hashlib.sha256("café\n".encode() + b"\0\xff").hexdigest()
    assert digest(["caf", "é\n", b"\0\xff"]) == whole[:12]
    assert digest(["café\n", b"\0\xff"], length=16) == whole[:16]
    assert digest([os.fsdecode(b"caf\xe9")]) == hashlib.sha256(b"caf\xe9").hexdigest()[:12]
    assert digest([]) == hashlib.sha256().hexdigest()[:12]


def test_a_content_hash_sees_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a")
    two.write_bytes(b"b")
    found = content_hash({"x": one, "y": two})
    assert found == content_hash({"y": two, "x": one})
    others = [content_hash({"x": two, "y": one}), content_hash({"x": one}), content_hash({"z": one, "y": two})]
    two.write_bytes(b"bb")
    others.append(content_hash({"x": one, "y": two}))
    assert len({found, *others}) == 5


def test_a_fingerprint_sees_sizes_and_edges_of_weight_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_EDGE", 64)
    weights = np.arange(4096, dtype=np.float32)
    found = []
    for change in ({}, {0: 5.0}, {-1: 5.0}):
        for place, value in change.items():
            weights[place] = value
        save_file({"weights": weights}, tmp_path / "model.safetensors")
        found.append(fingerprint(tmp_path))
    save_file({"weights": weights[:-1]}, tmp_path / "model.safetensors")
    found.append(fingerprint(tmp_path))
    assert found[0] != found[2] and len(set(found)) >= 3
    (tmp_path / "note.txt").write_text("not a weight")
    assert fingerprint(tmp_path) == found[-1]
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="none"):
        fingerprint(tmp_path / "none")


def test_a_file_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    before = file_stamp(path)
    assert before == file_stamp(path) and str(path) in before
    path.write_text("three")
    assert file_stamp(path) != before


def test_the_code_and_the_machine_are_named() -> None:
    assert re.fullmatch(r"[0-9a-f]{7,40}(-dirty)?|version .+|unknown", commit())
    assert machine().endswith(f"{os.cpu_count()} cores")

"""Unit sets keep where their audio is; sets of release 0.1.0, which have no such columns, are read too."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from reference import DATA
from tiny_parts import tones
from tiny_set import record_of, tiny_codebook

from units.audio import load_wav, save_wav
from units.corpus.manifest import Utterance
from units.dataset.shards import extract
from units.dataset.unit_set import UnitRecord, read_unit_set, shard_path, write_shard, write_unit_set
from units.encoder.unit_encoder import UnitEncoder

K = 12
COLUMNS_0_1_0 = ["id", "units", "durations", "num_samples", "text", "speaker", "lang"]


def test_the_segment_of_each_record_is_kept(mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    recording = save_wav(tmp_path / "wav" / "long.wav", tones(2.0))
    rows = [Utterance("whole", recording), Utterance("middle", recording, 0.5, 0.8)]
    extract(rows, tmp_path / "units", mfcc_encoder)
    whole, middle = read_unit_set(tmp_path / "units")
    assert (whole.audio, whole.start, whole.duration) == (recording, 0.0, None)
    assert (middle.audio, middle.start, middle.duration) == (recording, 0.5, 0.8)
    for record in (whole, middle):
        wav = load_wav(record.audio, record.start, record.duration)
        assert len(wav) == record.num_samples and mfcc_encoder.encode(wav) == record.units


def test_audio_below_the_set_moves_with_it(tmp_path: Path) -> None:
    record = replace(record_of("a", [1, 2], K), audio=tmp_path / "set" / "wav" / "a.wav", start=1.5)
    elsewhere = replace(record_of("b", [1, 2], K), audio=tmp_path / "b.wav", duration=2.0)
    write_unit_set(tmp_path / "set", [record, elsewhere], tiny_codebook(K))
    assert pq.read_table(shard_path(tmp_path / "set", 0))["audio"].to_pylist() == ["wav/a.wav", str(tmp_path / "b.wav")]
    assert list(read_unit_set(tmp_path / "set")) == [record, elsewhere]
    (tmp_path / "set").rename(tmp_path / "moved")
    found = list(read_unit_set(tmp_path / "moved"))
    assert found == [replace(record, audio=tmp_path / "moved" / "wav" / "a.wav"), elsewhere]


@pytest.mark.parametrize("audio", [None, Path(os.fsdecode(b"/x/caf\xe9.wav"))])
def test_unknown_audio_and_names_that_parquet_cannot_hold_are_null(audio: Path | None, tmp_path: Path) -> None:
    record = replace(record_of("a", [1, 2], K), audio=audio)
    (found,) = write_unit_set(tmp_path, [record], tiny_codebook(K))
    assert found == replace(record, audio=None)
    assert pq.read_table(shard_path(tmp_path, 0))["start"].to_pylist() == [None]


def test_a_shard_without_the_columns_is_read(tmp_path: Path) -> None:
    records: list[UnitRecord] = [record_of("a", [1, 1, 2], K, "one", "x"), record_of("b", [3], K)]
    write_unit_set(tmp_path, [replace(one, audio=tmp_path / "a.wav") for one in records], tiny_codebook(K))
    path = shard_path(tmp_path, 0)
    pq.write_table(pq.read_table(path, columns=COLUMNS_0_1_0), path)  # as 0.1.0 wrote it
    assert pq.read_schema(path).names == COLUMNS_0_1_0
    assert list(read_unit_set(tmp_path)) == records


def test_a_set_of_release_0_1_0_is_read() -> None:
    folder = DATA / "release_0_1_0" / "run" / "units" / "train"
    assert pq.read_schema(shard_path(folder, 0)).names == COLUMNS_0_1_0
    unit_set = read_unit_set(folder)
    records = list(unit_set)
    assert len(records) == 6 and {record.audio for record in records} == {None}
    assert {(record.start, record.duration) for record in records} == {(0.0, None)}
    assert unit_set.refused_by_reason() == {"other": 1}


def test_a_record_can_be_written_again(tmp_path: Path) -> None:
    records = [replace(record_of("a", [1, 2], K), audio=tmp_path / "a.wav", start=0.25, duration=0.5)]
    write_unit_set(tmp_path / "one", records, tiny_codebook(K))
    write_shard(shard_path(tmp_path / "two", 0), list(read_unit_set(tmp_path / "one")), tiny_codebook(K))
    one, two = (pq.read_table(shard_path(tmp_path / name, 0)).to_pylist() for name in ("one", "two"))
    assert one == two

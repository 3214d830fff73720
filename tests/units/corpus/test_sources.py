"""Whatever units-extract is pointed at: the good files are in the set, the bad ones are listed with their reasons."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_parts import fit_encoder, tiny_hubert, tones

from units.audio import SAMPLE_RATE, AudioError, AudioReason, save_wav
from units.corpus import layouts
from units.corpus.manifest import CorpusReason, ManifestError
from units.corpus.sources import list_source
from units.dataset import content
from units.dataset.extract import main
from units.dataset.extract_config import EncoderConfig, WorkConfig
from units.dataset.shards import Share, extract
from units.dataset.unit_set import UnitSetReason, read_unit_set
from units.encoder.hubert import HubertFeatures
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.command import SOME_REFUSED
from units.runtime.refusals import Refusals


def listed(source: object) -> tuple[list[str], list[str]]:
    """Ids that are there, ids that are refused."""
    found = list_source(source)  # type: ignore[arg-type]
    return [u.id for u in found.utterances], [r.id for r in found.refused]


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_a_folder_names_its_files_by_their_paths(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav", "b/a.FLAC", "b/c.flac", "b/c.wav", "notes.txt")
    good, bad = listed(tmp_path)
    assert good == ["a", "b/a"]
    assert bad == ["b/c", "b/c"]
    assert all(refusal.reason is CorpusReason.SAME_ID for refusal in list_source(tmp_path).refused)


def test_a_glob_names_its_files_below_its_fixed_part(tmp_path: Path) -> None:
    touch(tmp_path, "x/1/a.wav", "x/2/a.wav", "x/2/b.mp3", "x/2/b.ogg", "x/notes.txt")
    good, bad = listed(tmp_path / "x" / "*" / "*")
    assert good == ["1/a", "2/a"]
    assert bad == ["2/b", "2/b"]
    assert listed(tmp_path / "x" / "**" / "a.*")[0] == ["1/a", "2/a"]
    with pytest.raises(AudioError, match=r"\*\.txt") as error:
        list_source(tmp_path / "*.txt")
    assert error.value.reason is AudioReason.NO_FILES


def test_paths_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.wav", "b/a.wav")
    monkeypatch.chdir(tmp_path)
    said = f"a.wav\n\nb/a.wav\n{tmp_path}/a.wav\na.wav\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(said)))
    found = list_source("-")
    assert [u.id for u in found.utterances] == ["b/a", str(tmp_path / "a").lstrip("/")]
    assert [(r.id, r.audio) for r in found.refused] == [("a", "a.wav"), ("a", "a.wav")]


def test_fairseqs_tsv_is_a_source(tmp_path: Path) -> None:
    touch(tmp_path, "wav/a.wav", "wav/b.wav")
    (tmp_path / "train.tsv").write_text(f"{tmp_path}/wav\na.wav\t16000\nb.wav\t8000\ngone.wav\t5\nbroken\n")
    good, bad = listed(tmp_path / "train.tsv")
    assert good == ["a", "b"]
    assert len(bad) == 2
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(ManifestError, match=r"empty\.tsv:1") as error:
        list_source(tmp_path / "empty.tsv")
    assert error.value.reason is CorpusReason.DAMAGED


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        list_source(tmp_path / "none")
    with pytest.raises(AudioError) as error:
        list_source(touch(tmp_path, "notes.txt"))
    assert error.value.reason is AudioReason.NO_FILES


def test_names_on_standard_input_need_not_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"/x/caf\xe9.wav\n"), "utf-8", errors="strict"))
    (found,) = list_source("-").utterances
    assert os.fsencode(found.audio) == b"/x/caf\xe9.wav"


def test_many_twins_are_listed_as_fast_as_others(tmp_path: Path) -> None:
    names = [f"{i}.{suffix}" for i in range(20_000) for suffix in ("wav", "mp3")]
    refusals = Refusals(rows=[])
    good = list(layouts._audio(tmp_path, tmp_path, sorted(names), refusals))
    refused = [Path(row.audio).name for row in refusals.rows]
    assert not good and len(refused) == len(names) and set(refused) == set(names)  # in quadratic time: many minutes


def test_ids_that_a_fairseq_tsv_repeats_are_all_refused(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav", "b.flac", "c.wav"):
        save_wav(tmp_path / name, tones(0.3))
    rows = "".join(f"{name}\t4800\n" for name in ("a.wav", "b.wav", "b.flac", "c.wav", "a.wav"))
    (tmp_path / "rows.tsv").write_text(f"{tmp_path}\n{rows}")
    listing = list_source(tmp_path / "rows.tsv")
    assert [utterance.id for utterance in listing.utterances] == ["c"]
    assert [(one.id, one.reason) for one in listing.refused] == [
        (name, CorpusReason.SAME_ID) for name in ("a", "a", "b", "b")
    ]


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, set[str]]:
    """A folder of everything that goes wrong, and the ids of its good files."""
    folder = tmp_path / "in"
    wav = tones(0.5)
    good = {"good", "sub/good", "stereo", "deep/er/mp3", "bits24", "opus"}
    save_wav(folder / "good.wav", wav)
    save_wav(folder / "sub" / "good.wav", wav)
    (folder / "deep" / "er").mkdir(parents=True)
    soundfile.write(folder / "stereo.flac", np.stack([wav, -wav * 0.5], 1), 44_100)
    soundfile.write(folder / "deep" / "er" / "mp3.mp3", wav, SAMPLE_RATE)
    soundfile.write(folder / "bits24.wav", wav, 22_050, subtype="PCM_24")
    soundfile.write(folder / "opus.opus", wav, 48_000, format="OGG", subtype="OPUS")
    (folder / "empty.wav").touch()
    soundfile.write(folder / "long.flac", np.random.default_rng(0).normal(size=16_000) * 0.1, SAMPLE_RATE)
    (folder / "truncated.flac").write_bytes((folder / "long.flac").read_bytes()[:60])
    whole = (folder / "long.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    for name, samples in (("pipe", 0), ("claims", 2**36 - 1)):  # what STREAMINFO says: 0 is unknown
        (folder / f"{name}.flac").write_bytes(
            whole[:21]
            + bytes([whole[21] & 0xF0 | samples >> 32])
            + (samples & 0xFFFFFFFF).to_bytes(4, "big")
            + whole[26:]
        )
    (folder / "long.flac").unlink()
    (folder / "text.wav").write_text("this is no audio")
    soundfile.write(folder / "nan.wav", np.full(8000, np.nan, np.float32), SAMPLE_RATE, subtype="FLOAT")
    soundfile.write(folder / "three.wav", wav[:3], SAMPLE_RATE)
    (folder / "folder.wav").mkdir()
    odd = os.fsencode(folder) + b"/caf\xe9.wav"
    Path(os.fsdecode(odd)).write_bytes((folder / "good.wav").read_bytes())
    good.add("caf\\xe9")
    os.symlink(folder / "gone", folder / "dangling.wav")
    if os.geteuid():  # root may read everything
        save_wav(folder / "secret.wav", wav).chmod(0)
    return folder, good


def test_a_hostile_folder_gives_its_good_files(
    hostile: tuple[Path, set[str]], mfcc_encoder: UnitEncoder, tmp_path: Path
) -> None:
    folder, good = hostile
    encoder = mfcc_encoder.save_pretrained(tmp_path / "encoder")
    code = main(str(folder), tmp_path / "out", EncoderConfig(str(encoder)), WorkConfig(processes=1))
    assert code == SOME_REFUSED
    made = read_unit_set(tmp_path / "out")
    assert {record.id for record in made} == good
    refused = {line["id"]: line["reason"] for line in map(json.loads, (tmp_path / "out" / "refused.jsonl").open())}
    expected = {"empty", "truncated", "cut", "pipe", "claims", "text", "nan", "three", "folder", "dangling"} | (
        {"secret"} if os.geteuid() else set()
    )
    assert set(refused) == expected
    assert len(made) == len(good) and made.refused == len(expected)
    for name, reason in (
        ("nan", AudioReason.NOT_FINITE),
        ("three", AudioReason.TOO_SHORT),
        ("folder", CorpusReason.FOLDER),
        ("text", AudioReason.UNREADABLE),
        ("pipe", AudioReason.UNKNOWN_LENGTH),
        ("dangling", AudioReason.NOT_FOUND),
    ):
        assert refused[name] == reason
    assert made.refused_by_reason() == Counter(refused.values())


def test_threads_that_decode_ahead_change_nothing(
    hostile: tuple[Path, set[str]], mfcc_encoder: UnitEncoder, tmp_path: Path
) -> None:
    listing = list_source(hostile[0])
    for workers in (0, 3):
        extract(listing.utterances, tmp_path / str(workers), mfcc_encoder, Share(3, 1.0, workers), listing.refused)
    one, other = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "03")
    assert one == other


def test_a_dry_run_writes_nothing_and_says_how_long(hostile, mfcc_encoder: UnitEncoder, tmp_path: Path, capsys) -> None:
    encoder = mfcc_encoder.save_pretrained(tmp_path / "encoder")
    work = WorkConfig(dry_run=True, shard_size=4)
    assert main(str(hostile[0]), tmp_path / "out", EncoderConfig(str(encoder)), work) == 0
    printed = capsys.readouterr().out
    assert "16 utterances" in printed and "4 shards, 4 to do" in printed and "times real time" in printed
    assert not (tmp_path / "out").exists()


def test_a_limit_takes_the_first(mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    for i in range(4):
        save_wav(tmp_path / "in" / f"{i}.wav", tones(0.3, i))
    encoder = mfcc_encoder.save_pretrained(tmp_path / "encoder")
    assert main(str(tmp_path / "in"), tmp_path / "out", EncoderConfig(str(encoder)), WorkConfig(limit=3)) == 0
    assert [record.id for record in read_unit_set(tmp_path / "out")] == ["0", "1", "2"]


def test_an_hour_of_silence_is_refused_by_its_run(mfcc_encoder: UnitEncoder, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(content, "LONGEST_RUN", 30)
    save_wav(tmp_path / "in" / "speech.wav", tones(0.8))
    save_wav(tmp_path / "in" / "silence.wav", np.zeros(SAMPLE_RATE, np.float32))
    listing = list_source(tmp_path / "in")
    for keep, reason in ((False, AudioReason.SILENT), (True, UnitSetReason.LONG_RUN)):
        out = tmp_path / f"out-{keep}"
        extract(listing.utterances, out, mfcc_encoder, Share(keep_silent=keep))
        assert [record.id for record in read_unit_set(out)] == ["speech"]
        (refused,) = map(json.loads, (out / "refused.jsonl").read_text().splitlines())
        assert (refused["id"], refused["reason"]) == ("silence", reason)


def test_silence_gets_units_only_if_asked(mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    save_wav(tmp_path / "in" / "quiet.wav", 0.002 * tones(0.8))
    save_wav(tmp_path / "in" / "silence.wav", np.zeros(SAMPLE_RATE, np.float32))
    encoder = EncoderConfig(str(mfcc_encoder.save_pretrained(tmp_path / "encoder")))
    work = WorkConfig(processes=1)
    assert main(str(tmp_path / "in"), tmp_path / "out", encoder, work) == SOME_REFUSED
    assert [record.id for record in read_unit_set(tmp_path / "out")] == ["quiet"]
    assert read_unit_set(tmp_path / "out").refused_by_reason() == {AudioReason.SILENT: 1}
    with pytest.raises(ValueError, match="keep_silent"):  # a set is begun one way
        main(str(tmp_path / "in"), tmp_path / "out", encoder, WorkConfig(processes=1, keep_silent=True))
    assert main(str(tmp_path / "in"), tmp_path / "all", encoder, WorkConfig(processes=1, keep_silent=True)) == 0
    assert {record.id for record in read_unit_set(tmp_path / "all")} == {"quiet", "silence"}


def test_what_is_too_short_for_this_encoder_is_refused_by_its_id(tmp_path: Path) -> None:
    hubert = tiny_hubert(conv_dim=(16,) * 8, conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2), conv_stride=(5,) + (2,) * 7)
    slow = fit_encoder(HubertFeatures(hubert, 2, "tiny-25hz"))  # a frame of it sees 720 samples
    save_wav(tmp_path / "in" / "good.wav", tones(0.5))
    save_wav(tmp_path / "in" / "short.wav", tones(0.5)[:500])
    extract(list_source(tmp_path / "in").utterances, tmp_path / "out", slow)
    assert [record.id for record in read_unit_set(tmp_path / "out")] == ["good"]
    (refused,) = map(json.loads, (tmp_path / "out" / "refused.jsonl").read_text().splitlines())
    assert (refused["id"], refused["reason"]) == ("short", AudioReason.TOO_SHORT)
    assert "0.045 s" in refused["detail"]

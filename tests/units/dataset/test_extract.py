"""units-extract: a manifest becomes a unit set; bad files are counted; killed runs and several ranks agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_parts import tones

from units.audio import AudioReason, load_wav, num_frames, save_wav
from units.codebook import CodebookMismatch
from units.corpus import decoding
from units.corpus.manifest import Utterance, read_manifest, write_manifest
from units.corpus.sources import list_source
from units.dataset import content, extraction, shards
from units.dataset.extract import main
from units.dataset.extract_config import EncoderConfig, WorkConfig
from units.dataset.shards import Share, extract
from units.dataset.unit_set import SCHEMA, read_unit_set, shard_path
from units.encoder.unit_encoder import UnitEncoder
from units.notation import read, spell
from units.runtime.ahead import spare_cores, usual_loaders
from units.runtime.command import SOME_REFUSED, WRONG_CALL
from units.runtime.ranks import this_rank

COUNT = 11
SHARE = Share(shard_size=4, batch_seconds=2.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of eleven utterances, three of which cannot be read."""
    folder = tmp_path_factory.mktemp("corpus")
    utterances = []
    for i in range(COUNT):
        path = folder / "wav" / f"u{i:02d}.wav"
        save_wav(path, tones(0.1 + 0.13 * (i * 7 % COUNT), i))
        utterances.append(Utterance(f"u{i:02d}", path, text=f"text {i}", speaker="tone" if i % 2 else None))
    utterances[3].audio.write_text("this is no audio")
    utterances[6].audio.unlink()
    save_wav(utterances[9].audio, tones(0.01))
    return write_manifest(folder / "train.jsonl", utterances)


@pytest.fixture(scope="module")
def whole(corpus: Path, mfcc_encoder: UnitEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unit set of the corpus, made in one go: three shards of at most four."""
    out = tmp_path_factory.mktemp("whole") / "train"
    extract(read_manifest(corpus), out, mfcc_encoder, SHARE)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a unit set."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_unit_set_holds_what_could_be_read(corpus: Path, whole: Path, mfcc_encoder: UnitEncoder) -> None:
    found = read_unit_set(whole)
    records = list(found)
    assert found.codebook == mfcc_encoder.codebook
    assert [record.id for record in records] == [f"u{i:02d}" for i in range(COUNT) if i not in (3, 6, 9)]
    assert len(found) == len(records) == 8
    by_id = {utterance.id: utterance for utterance in read_manifest(corpus)}
    for record in records:
        wav = load_wav(by_id[record.id].audio)
        assert record.num_samples == len(wav)
        assert record.units == mfcc_encoder.encode(wav)
        assert sum(record.units.durations) == num_frames(len(wav))
        assert (record.text, record.speaker) == (by_id[record.id].text, by_id[record.id].speaker)
    assert found.seconds == pytest.approx(sum(record.num_samples for record in records) / 16_000, abs=0.01)


def test_every_refusal_is_listed_with_its_reason(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "refused.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["u03", "u06", "u09"]
    for line, reason in zip(lines, (AudioReason.UNREADABLE, AudioReason.NOT_FOUND, AudioReason.TOO_SHORT)):
        assert line["reason"] == reason
        assert line["id"] in line["detail"]
        assert line["audio"].endswith(f"{line['id']}.wav")
    assert json.loads((whole / "unit_set.json").read_text())["refused"] == 3


def test_a_killed_run_goes_on_at_the_missing_shard(
    corpus: Path, whole: Path, mfcc_encoder: UnitEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "train"
    for path in whole.iterdir():
        (out / path.name).parent.mkdir(exist_ok=True)
        (out / path.name).write_bytes(path.read_bytes())
    shard_path(out, 1).unlink()  # and the marker stays: a set that lacks a shard must not look complete
    written = []
    original = content.write_shard
    monkeypatch.setattr(content, "write_shard", lambda path, *rest: (written.append(path), original(path, *rest)))
    with monkeypatch.context() as killed:
        killed.setattr(UnitEncoder, "encode_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            extract(read_manifest(corpus), out, mfcc_encoder, SHARE)
    with pytest.raises(FileNotFoundError, match="not a complete unit set"):
        read_unit_set(out)
    extract(read_manifest(corpus), out, mfcc_encoder, SHARE)
    assert written == [shard_path(out, 1)]
    assert contents(out) == contents(whole)
    extract(read_manifest(corpus), out, mfcc_encoder, SHARE)
    assert len(written) == 1  # all was done


def interrupt(*_) -> None:
    raise KeyboardInterrupt


def test_kill_9_in_the_middle_changes_nothing(encoder_folder: Path, mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    for i in range(40):
        save_wav(tmp_path / "in" / f"{i:02d}.wav", tones(0.2 + 0.05 * (i % 5), i))
    command = [
        sys.executable,
        "-m",
        "units.dataset.extract",
        tmp_path / "in",
        tmp_path / "out",
        "--encoder",
        encoder_folder,
        "--shard-size",
        "2",
        "--processes",
        "1",
    ]
    running = subprocess.Popen([*map(str, command)], cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "out").glob("shard-*"))) < 3:
        assert running.poll() is None
        time.sleep(0.002)
    running.kill()
    running.wait()
    assert not (tmp_path / "out" / "unit_set.json").exists()
    assert 3 <= len(list((tmp_path / "out").glob("shard-*"))) < 20
    listing = list_source(tmp_path / "in")
    for out in ("out", "undisturbed"):
        extract(listing.utterances, tmp_path / out, mfcc_encoder, Share(shard_size=2))
    for path in (tmp_path / "out").glob(".*.part"):  # what the kill cut short, under a name that is never read
        path.unlink()
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_the_next_shard_is_decoded_while_one_is_written(
    corpus: Path, whole: Path, mfcc_encoder: UnitEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = [threading.Event() for _ in range(COUNT)]
    load, write = decoding.load_wav, content.write_shard

    def loading(path: Path, *rest: object):
        opened[int(path.stem[1:])].set()
        return load(path, *rest)

    def writing(path: Path, *rest: object) -> None:
        first_of_the_next = {"shard-00000": 4, "shard-00001": 8}.get(path.stem, 0)
        assert opened[first_of_the_next].wait(10), "no thread reads on while a shard is written"
        write(path, *rest)

    monkeypatch.setattr(decoding, "load_wav", loading)
    monkeypatch.setattr(content, "write_shard", writing)
    extract(read_manifest(corpus), tmp_path / "train", mfcc_encoder, replace(SHARE, workers=1))
    assert contents(tmp_path / "train") == contents(whole)


def test_long_files_are_not_decoded_all_at_once(
    corpus: Path, mfcc_encoder: UnitEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [u for u in read_manifest(corpus) if u.id not in ("u03", "u06", "u09")]
    seconds = {u.audio: len(load_wav(u.audio)) / 16_000 for u in rows}
    taken: list[Path] = []
    ahead: list[float] = []
    load = decoding.load_wav

    def loading(path: Path, *rest: object):
        begun.append(path)
        ahead.append(sum(seconds[one] for one in {*begun} - {*taken}))
        return load(path, *rest)

    begun: list[Path] = []
    monkeypatch.setattr(decoding, "load_wav", loading)
    monkeypatch.setattr(decoding, "LARGE_FILE", 0)
    monkeypatch.setattr(decoding, "AHEAD_SECONDS", 1.5)
    for row, _ in zip(rows, shards.decoded(rows, 4, mfcc_encoder.features.grid), strict=True):
        time.sleep(0.02)
        taken.append(row.audio)
    longest = max(seconds.values())
    assert max(ahead) <= 1.5 + longest < sum(seconds.values())  # the one in use is counted too


def test_two_ranks_give_what_one_gives(corpus: Path, whole: Path, mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    out = tmp_path / "train"
    extract(read_manifest(corpus), out, mfcc_encoder, replace(SHARE, rank=1, world=2))
    with pytest.raises(FileNotFoundError, match="not a complete unit set"):
        read_unit_set(out)
    extract(read_manifest(corpus), out, mfcc_encoder, replace(SHARE, rank=0, world=2))
    assert contents(out) == contents(whole)


def test_ranks_with_unlike_numbers_of_processes_leave_nothing_out() -> None:
    for world, processes in ((2, (8, 4)), (3, (1, 5, 2)), (1, (3,))):
        done: list[int] = []
        for rank, own in enumerate(processes):
            for i in range(own):
                done += Share(10, rank=rank, world=world, process=i, processes=own).missing(Path("none"), 400)
        assert sorted(done) == list(range(40))


def test_a_run_goes_on_only_as_it_was_begun(
    corpus: Path, whole: Path, mfcc_encoder: UnitEncoder, hubert_encoder: UnitEncoder
) -> None:
    for encoder, shard_size in ((mfcc_encoder, 5), (hubert_encoder, 4)):
        with pytest.raises(ValueError, match="was begun with"):
            extract(read_manifest(corpus), whole, encoder, Share(shard_size))
    first, *rest = read_manifest(corpus)
    with pytest.raises(ValueError, match="was begun with other rows"):
        extract([replace(first, text="what was said, corrected"), *rest], whole, mfcc_encoder, SHARE)


def test_a_set_is_not_half_exact_and_half_fast(
    corpus: Path, hubert_encoder: UnitEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hubert_encoder.save_pretrained(tmp_path / "encoder")
    rows = read_manifest(corpus)[:3]
    extract(rows, tmp_path / "out", UnitEncoder.from_pretrained(folder), SHARE)
    with pytest.raises(ValueError, match="begun with other manner: .*float32.*bfloat16"):
        extract(rows, tmp_path / "out", UnitEncoder.from_pretrained(folder, dtype=torch.bfloat16), SHARE)
    cutting = UnitEncoder.from_pretrained(folder)
    cutting.features.cut_long = True
    with pytest.raises(ValueError, match="other manner: .*float32, cut each 100 s"):
        extract(rows, tmp_path / "out", cutting, SHARE)


def test_other_readers_open_the_shards(whole: Path, tmp_path: Path) -> None:
    records = list(read_unit_set(whole))
    rows = [row for i in range(3) for row in pq.read_table(shard_path(whole, i)).to_pylist()]
    assert [tuple(row["units"]) for row in rows] == [record.units.ids for record in records]
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("parquet", data_files=f"{whole}/*.parquet", split="train", cache_dir=str(tmp_path))
    assert loaded.column_names == [field.name for field in SCHEMA]
    assert [tuple(row) for row in loaded["durations"]] == [record.units.durations for record in records]


def test_a_shard_of_another_codebook_is_refused(
    corpus: Path, mfcc_encoder: UnitEncoder, hubert_encoder: UnitEncoder, tmp_path: Path
) -> None:
    for name, encoder in (("mine", mfcc_encoder), ("theirs", hubert_encoder)):
        extract(read_manifest(corpus)[:3], tmp_path / name, encoder)
    shard_path(tmp_path / "mine", 0).write_bytes(shard_path(tmp_path / "theirs", 0).read_bytes())
    with pytest.raises(CodebookMismatch, match="shard-00000.parquet speaks the codebook"):
        list(read_unit_set(tmp_path / "mine"))


# --- the command


@pytest.fixture(scope="module")
def encoder_folder(mfcc_encoder: UnitEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mfcc_encoder.save_pretrained(tmp_path_factory.mktemp("encoder") / "encoder")


def call(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    monkeypatch.setattr("sys.argv", ["units-extract", *map(str, args)])
    main.cli()


def test_one_file_prints_its_units(
    encoder_folder: Path, mfcc_encoder: UnitEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = save_wav(tmp_path / "a.wav", tones(0.6))
    call(monkeypatch, path, "--encoder", encoder_folder)
    printed = capsys.readouterr().out.strip()
    assert printed == spell(mfcc_encoder.encode(load_wav(path)).ids)
    assert len(read(printed)) > 3


def test_the_command_fills_a_folder(
    corpus: Path, whole: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, corpus, tmp_path / "out", "--encoder", encoder_folder, "--shard-size", 4, "--batch-seconds=2")
    assert ended.value.code == SOME_REFUSED
    assert contents(tmp_path / "out") == contents(whole)
    assert "8 utterances" in (printed := capsys.readouterr().out)
    assert "3 refused" in printed
    assert all(f"1 {reason}" in printed for reason in ("unreadable", "not_found", "too_short"))
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    call(monkeypatch, corpus, tmp_path / "rank1", "--encoder", encoder_folder, "--shard_size", 4, "--processes", 1)
    assert sorted(path.name for path in (tmp_path / "rank1").glob("shard-*")) == ["shard-00001.parquet"]
    assert "rank 1 of 2 is done; 2 shards are left to the other ranks" in capsys.readouterr().out


def test_a_batch_script_that_starts_no_step_works_alone(
    corpus: Path, whole: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch --ntasks 8 tells its script SLURM_NTASKS=8, though only srun would start the other seven."""
    for name, value in (("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0"), ("SLURM_LOCALID", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        call(monkeypatch, corpus, tmp_path / "out", "--encoder", encoder_folder, "--shard-size", 4, "--batch-seconds=2")
    assert contents(tmp_path / "out") == contents(whole)


def test_ranks_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert [extraction._usual_processes("cpu", beside) for beside in (1, 4, 16)] == [8, 4, 1]
    assert [spare_cores("cuda:0", beside) for beside in (1, 4, 16, 32)] == [15, 3, 1, 1]
    assert [usual_loaders("cuda", beside) for beside in (1, 4)] == [8, 3]
    assert spare_cores("cpu", 1) == usual_loaders("cpu") == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})  # as srun --cpus-per-task 3 binds a task
    assert (extraction._usual_processes("cpu", 4), spare_cores("cuda:0", 4)) == (3, 2)
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "8(x2),4")
    assert this_rank(0, 16).local_world == 8


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("absent.wav", None, "no audio file at"),
        ("absent.jsonl", None, "absent.jsonl"),
        ("text.wav", "words", "cannot be read"),
        ("folder", "", "name an output folder"),
        ("bad.jsonl", "{}\n", "bad.jsonl:1: needs at least"),
    ],
)
def test_a_users_error_is_one_line(
    encoder_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
    name: str,
    content: str | None,
    says: str,
) -> None:
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
    elif content is not None:
        source.write_text(content)
    out = [tmp_path / "out"] if source.suffix == ".jsonl" else []
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, source, *out, "--encoder", encoder_folder)
    assert_one_line(ended.value, capsys, says)


def test_no_encoder_and_no_audio_are_one_line(encoder_folder, tmp_path, monkeypatch, capsys) -> None:
    for encoder, says in ((tmp_path / "none", "is no unit encoder"), (encoder_folder, "no audio below")):
        with pytest.raises(SystemExit) as ended:
            call(monkeypatch, tmp_path, tmp_path / "out", "--encoder", encoder)
        assert_one_line(ended.value, capsys, says)


def test_nothing_readable_is_an_error_that_stays(encoder_folder, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_text("words")
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, tmp_path / "in", tmp_path / "out", "--encoder", encoder_folder)
    assert_one_line(ended.value, capsys, "every one of 1 utterances was refused")
    assert not (tmp_path / "out" / "unit_set.json").exists()


def assert_one_line(ended: SystemExit, capsys, says: str) -> None:
    """Exit code 2 and one line on stderr (progress bars aside)."""
    assert ended.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("units-extract: ")]
    assert len(lines) == 1
    assert says in lines[0]


def test_processes_share_the_shards(corpus: Path, whole: Path, mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    encoder = mfcc_encoder.save_pretrained(tmp_path / "encoder")
    work = WorkConfig(batch_seconds=2.0, shard_size=4, processes=2)
    assert main(corpus, tmp_path / "train", EncoderConfig(str(encoder)), work) == SOME_REFUSED
    assert contents(tmp_path / "train") == contents(whole)


def test_more_processes_than_gpus_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    jobs = extraction.dealt(SHARE, 5, "cuda")
    assert [(share.process, share.processes, device) for device, share in jobs] == [
        (i, 5, f"cuda:{i % 2}") for i in range(5)
    ]
    assert {device for device, _ in extraction.dealt(SHARE, 2, "cpu")} == {"cpu"}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--shard-size", "0"), ("--shard-size is 0", "at least 1")),
        (("--batch-seconds", "0"), ("--batch-seconds is 0", "more than 0")),
        (("--workers", "-1"), ("--workers is -1", "at least 0")),
        (("--limit", "0"), ("--limit is 0", "at least 1")),
        (("--layer", "6"), ("--layer", "--kmeans")),
        (("--dtype", "float8"), ("float32", "bfloat16")),
    ],
)
def test_options_are_checked_before_any_work(options: tuple, named: tuple, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main.cli([str(tmp_path), str(tmp_path / "out"), *options])
    assert ended.value.code == WRONG_CALL
    error = capsys.readouterr().err
    assert all(words in error for words in named) and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()

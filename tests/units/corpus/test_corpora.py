"""Corpora become manifests: every row of small trees in the real layouts is an utterance or a refusal."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from units.corpus import corpora
from units.corpus.corpora import READERS, Summary, write_corpus
from units.corpus.layouts import LONGEST_SEGMENT, PUNCTUATION, join_segments
from units.corpus.manifest import CorpusReason, ManifestError, Utterance, read_manifest
from units.runtime.command import SOME_REFUSED, WRONG_CALL
from units.runtime.refusals import Refusals

COLUMNS = (
    "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
)


def plant(root: Path, files: dict[str, str | bytes]) -> Path:
    """Write a small tree: path -> content."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def read_back(name: str, root: Path, out: Path, **options) -> tuple[list[Utterance], list[dict], Summary]:
    """The utterances and the refused rows of a corpus, as the next program reads them."""
    summary = write_corpus(name, root, out, **options)
    utterances = read_manifest(out)
    refused = [json.loads(line) for line in out.with_suffix(".refused.jsonl").read_text().splitlines()]
    assert summary.utterances == len(utterances)
    assert summary.with_text == sum(one.text is not None for one in utterances)
    assert summary.refused == Counter(row["reason"] for row in refused)
    assert {row["reason"] for row in refused} <= {reason.value for reason in CorpusReason}
    return utterances, refused, summary


def reasons(refused: list[dict]) -> list[tuple[str, str]]:
    """(id, reason code) of refused rows; of FILE:LINE the name of the file."""
    return sorted((Path(row["id"]).name if ":" in row["id"] else row["id"], row["reason"]) for row in refused)


def test_a_folder(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "data",
        {
            "b.wav": "",
            "sub/a.flac": "",
            "sub/a.txt": " two\nlines ",
            "sub/deep/x.y.MP3": "",
            "notes.md": "",
            "lone.txt": "t",
            "twice/c.wav": "",
            "twice/c.ogg": "",
            "dir.wav/in.opus": "",
            "bad.wav": "",
            "bad.txt": b"\xff\xfe\xfd",
        },
    )
    (root / "link").symlink_to(root / "sub")
    utterances, refused, summary = read_back("folder", root, tmp_path / "m.jsonl")
    assert {one.id: one.text for one in utterances} == {
        "b": None,
        "sub/a": "two lines",
        "sub/deep/x.y": None,
        "dir.wav/in": None,
        "bad": None,
    }
    assert utterances[-1].audio == root / "sub" / "deep" / "x.y.MP3"  # relative in the file, resolved when read
    assert reasons(refused) == [
        (str(root / "bad.txt"), "unreadable_text"),
        ("dir", "folder_named_as_audio"),
        ("link", "linked_folder"),
        ("twice/c", "same_id"),
        ("twice/c", "same_id"),
    ]
    twins = [row for row in refused if row["reason"] == "same_id"]
    assert [row["audio"] for row in twins] == [str(root / "twice" / name) for name in ("c.ogg", "c.wav")]
    assert [row["detail"] for row in twins] == ["of c.wav", "of c.ogg"]
    assert summary.refused["same_id"] == 2
    assert {one.speaker for one in utterances} == {None}
    own, _, _ = read_back("folder", root, tmp_path / "own.jsonl", speaker="anna")
    assert {one.speaker for one in own} == {"anna"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not Unicode")
def test_a_name_that_is_no_unicode_is_kept(tmp_path: Path) -> None:
    root = plant(tmp_path / "data", {"ok.wav": ""})
    strange = os.fsencode(root) + b"/caf\xe9.wav"
    with open(strange, "wb"):
        pass
    utterances, _, _ = read_back("folder", root, tmp_path / "m.jsonl")
    assert [one.id for one in utterances] == ["caf\\xe9", "ok"]
    assert os.fsencode(utterances[0].audio) == strange and utterances[0].audio.exists()


def test_a_folder_that_is_shut_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path / "data", {"a.wav": "", "shut/b.wav": ""})
    original = os.scandir

    def scandir(path):  # root may read everything, so the system's own refusal cannot be had in every test run
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    utterances, refused, _ = read_back("folder", root, tmp_path / "m.jsonl")
    assert [one.id for one in utterances] == ["a"]
    assert reasons(refused) == [("shut", "unreadable_folder")]


def test_librispeech(tmp_path: Path) -> None:
    root = plant(
        tmp_path / "LibriSpeech",
        {
            "dev-clean/84/121123/84-121123.trans.txt": (
                "84-121123-0000 GO DO YOU HEAR\n84-121123-0002\n84-121123-0009 IT IS GONE\n"
            ),
            "dev-clean/84/121123/84-121123-0000.flac": "",
            "dev-clean/84/121123/84-121123-0001.flac": "",
            "dev-clean/84/121550/84-121550.trans.txt": "84-121550-0000 NO AUDIO HERE\n",
            "dev-other/116/288045/116-288045.trans.txt": b"116-288045-0000 AS I APPROACHED\n116-288045-0001 \xff\n",
            "dev-other/116/288045/116-288045-0000.flac": "",
            "SPEAKERS.TXT": "84 | F | dev-clean",
        },
    )
    utterances, refused, _ = read_back("librispeech", root, tmp_path / "m.jsonl")
    assert [(one.id, one.speaker, one.text, one.lang) for one in utterances] == [
        ("84-121123-0000", "84", "GO DO YOU HEAR", "en"),
        ("84-121123-0001", "84", None, "en"),
        ("116-288045-0000", "116", "AS I APPROACHED", "en"),
    ]
    assert all(one.audio.name == f"{one.id}.flac" and one.audio.exists() for one in utterances)
    assert reasons(refused) == [
        ("116-288045.trans.txt:2", "not_text"),
        ("84-121123-0009", "no_audio_file"),
        ("84-121123.trans.txt:2", "no_text"),
        ("84-121550-0000", "no_audio_file"),
    ]
    lower, _, _ = read_back("librispeech", root / "dev-other", tmp_path / "l.jsonl", lower=True)
    assert [one.text for one in lower] == ["as i approached"]


def test_librilight(tmp_path: Path) -> None:
    facts = {"speaker": "960", "book_meta": {"id": "319"}, "snr": 5.391}
    speech = [[0.4, 12.32], [13.0, 29.9], [31.0, 35.5], [40.0, 90.0], [95.0, 94.0], [-1, 2]]
    root = plant(
        tmp_path / "small",
        {
            "960/holland/one_64kb.flac": "",
            "960/holland/one_64kb.json": json.dumps({**facts, "voice_activity": speech}),
            "960/holland/two_64kb.flac": "",
            "960/holland/two_64kb.json": json.dumps({**facts, "voice_activity": []}),
            "960/holland/three.flac": "",
            "960/holland/four.flac": "",
            "960/holland/four.json": '{"speaker": "960"',
            "960/holland/five.flac": "",
            "960/holland/five.json": "[" * 100_000,
            "1/odd/seven.flac": "",
            "1/odd/seven.json": '{"speaker": "\\ud800", "voice_activity": [[1, 2]]}',
            "960/holland/six.flac": "",
            "960/holland/six.json": '{"speaker": 1, "voice_activity": [[1, 1' + "0" * 400 + "]]}",
        },
    )
    utterances, refused, _ = read_back("librilight", root, tmp_path / "m.jsonl")
    assert [(one.id, one.start, one.duration, one.speaker) for one in utterances] == [
        ("960/holland/one_64kb_0000", 0.4, 29.5, "960"),
        ("960/holland/one_64kb_0001", 31.0, 4.5, "960"),
        ("960/holland/one_64kb_0002", 40.0, 50.0, "960"),
    ]
    book = "960/holland"
    assert reasons(refused) == [
        ("1/odd/seven_0000", "not_text"),
        (f"{book}/five", "invalid_row"),
        (f"{book}/four", "invalid_row"),
        (f"{book}/one_64kb", "invalid_segment"),
        (f"{book}/one_64kb", "invalid_segment"),
        (f"{book}/six", "invalid_row"),
        (f"{book}/three", "no_metadata"),
        (f"{book}/two_64kb", "no_speech"),
    ]


@given(st.lists(st.tuples(st.floats(0.01, 20), st.floats(0.01, 50)), max_size=30))
def test_stretches_cover_the_speech_and_stay_short(drawn: list[tuple[float, float]]) -> None:
    ends = np.cumsum([gap + length for gap, length in drawn]).tolist()
    speech = [(end - length, end) for end, (_, length) in zip(ends, drawn)]
    stretches = join_segments(speech, LONGEST_SEGMENT)
    assert all(any(b <= onset and offset <= e for b, e in stretches) for onset, offset in speech)
    assert {begin for begin, _ in stretches} <= {onset for onset, _ in speech}
    assert {end for _, end in stretches} <= {offset for _, offset in speech}
    assert all(e - b <= LONGEST_SEGMENT or (b, e) in speech for b, e in stretches)
    assert all(e1 < b2 for (_, e1), (b2, _) in zip(stretches, stretches[1:]))


def giga(**changes) -> dict:
    segment = {
        "sid": "POD0000000025_S0000103",
        "speaker": "N/A",
        "begin_time": 780.31,
        "end_time": 783.13,
        "text_tn": "FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD>",
        "subsets": ["{XL}", "{L}"],
    }
    return {**segment, **changes}


def test_gigaspeech(tmp_path: Path) -> None:
    path = "audio/podcast/P0001/POD0000000025.opus"
    segments = [
        giga(),
        giga(sid="s1", text_tn="WHY <QUESTIONMARK> <BR>", speaker="SPK1", subsets=["{XL}"]),
        giga(sid="s2", text_tn="<SIL>"),
        giga(sid="s3", text_tn="<NOISE>", subsets=["{DEV}"]),
        giga(sid="s4", end_time=780.31),
        giga(sid="s5", begin_time="x"),
        giga(sid="s1"),
        "no segment",
        giga(sid="s6", text_tn="IN THE DEV SET <EXCLAMATIONPOINT>", subsets=["{DEV}"]),
    ]
    audios = [
        {"aid": "POD0000000025", "path": path, "segments": segments},
        {"aid": "gone", "path": "audio/gone.opus", "segments": [giga(sid="g0")]},
        {"aid": "hollow"},
    ]
    table = {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}
    root = plant(tmp_path, {path: "", "GigaSpeech.json": json.dumps(table)})
    utterances, refused, _ = read_back("gigaspeech", root, tmp_path / "m.jsonl")
    assert utterances == [
        Utterance("POD0000000025_S0000103", root / path, 780.31, 2.82, "FOUR O'CLOCK, SAID WILLIAMS.", None, "en"),
        Utterance("s1", root / path, 780.31, 2.82, "WHY? <BR>", "SPK1", "en"),
    ]
    assert sorted(row["reason"] for row in refused) == [
        "invalid_row",
        "invalid_row",
        "invalid_row",
        "invalid_segment",
        "no_audio_file",
        "no_speech",
        "same_id",
    ]
    dev, refused, _ = read_back("gigaspeech", root, tmp_path / "dev.jsonl", part="DEV", lower=True)
    assert [(one.id, one.text) for one in dev] == [("s6", "in the dev set!")]
    assert sorted(row["reason"] for row in refused) == ["invalid_row", "invalid_row", "invalid_row", "no_speech"]
    assert set(PUNCTUATION.values()) == set(",.?!")
    whole = (root / "GigaSpeech.json").read_bytes()
    (root / "GigaSpeech.json").write_bytes(whole[:-20])
    with pytest.raises(ManifestError, match=r"GigaSpeech\.json") as error:
        write_corpus("gigaspeech", root, tmp_path / "cut.jsonl")
    assert error.value.reason is CorpusReason.DAMAGED
    assert not (tmp_path / "cut.jsonl").exists() and not (tmp_path / "cut.refused.jsonl").exists()


def test_gigaspeech_is_read_as_a_stream(tmp_path: Path) -> None:
    """The first utterance comes before the damage at the end of the file is seen: nothing reads it whole."""
    many = ",".join(json.dumps({"path": "a.opus", "segments": [giga(sid=f"s{i}")]}) for i in range(5000))
    root = plant(tmp_path, {"a.opus": "", "GigaSpeech.json": '{"audios": [' + many + ", oops"})
    rows = READERS["gigaspeech"].read(root, "XL", Refusals())
    assert next(rows).id == "s0"
    with pytest.raises(ManifestError) as error:
        list(rows)
    assert error.value.reason is CorpusReason.DAMAGED


def test_common_voice(tmp_path: Path) -> None:
    def row(**cells: str) -> str:
        return "\t".join(cells.get(name, "") for name in COLUMNS.split())

    rows = [
        COLUMNS.replace(" ", "\t"),
        row(client_id="abc", path="common_voice_de_1.mp3", sentence='"Halt!, sagte er.', locale="de"),
        row(client_id="abc", path="common_voice_de_2.mp3", sentence='Ein "" und ein "', locale="de"),
        row(client_id="def", path="common_voice_de_9.mp3", sentence="Kein Ton", locale="de"),
        "abc\tcommon_voice_de_1.mp3",
    ]
    root = plant(
        tmp_path / "de",
        {
            "validated.tsv": "\n".join(rows) + "\n",
            "train.tsv": rows[0] + "\n" + rows[1],
            "clips/common_voice_de_1.mp3": "",
            "clips/common_voice_de_2.mp3": "",
        },
    )
    utterances, refused, _ = read_back("commonvoice", root, tmp_path / "m.jsonl")
    assert [(one.id, one.text, one.speaker, one.lang) for one in utterances] == [
        ("common_voice_de_1", '"Halt!, sagte er.', "abc", "de"),
        ("common_voice_de_2", 'Ein "" und ein "', "abc", "de"),
    ]
    assert reasons(refused) == [("validated.tsv:4", "no_audio_file"), ("validated.tsv:5", "invalid_row")]
    assert len(read_back("commonvoice", root, tmp_path / "t.jsonl", part="train")[0]) == 1
    with pytest.raises(FileNotFoundError, match=r"dev\.tsv"):
        write_corpus("commonvoice", root, tmp_path / "d.jsonl", part="dev")
    plant(root, {"odd.tsv": "a\tb\n"})
    with pytest.raises(ManifestError, match=r"odd\.tsv.*client_id, path, sentence") as error:
        write_corpus("commonvoice", root, tmp_path / "d.jsonl", part="odd")
    assert error.value.reason is CorpusReason.DAMAGED


def test_ljspeech(tmp_path: Path) -> None:
    metadata = (
        'LJ001-0001|"Printing, in 1455|"Printing, in fourteen fifty-five\nLJ001-0002|only this|\nLJ001-0003|a|b\nx|y\n'
    )
    root = plant(tmp_path / "LJ", {"metadata.csv": metadata, "wavs/LJ001-0001.wav": "", "wavs/LJ001-0002.wav": ""})
    utterances, refused, _ = read_back("ljspeech", root, tmp_path / "m.jsonl")
    assert [(one.id, one.text, one.speaker) for one in utterances] == [
        ("LJ001-0001", '"Printing, in fourteen fifty-five', "LJ"),
        ("LJ001-0002", "only this", "LJ"),
    ]
    assert reasons(refused) == [("metadata.csv:3", "no_audio_file"), ("metadata.csv:4", "invalid_row")]


def test_vctk(tmp_path: Path) -> None:
    audio, txt = "wav48_silence_trimmed", "txt"
    root = plant(
        tmp_path / "VCTK",
        {
            f"{audio}/p225/p225_001_mic1.flac": "",
            f"{audio}/p225/p225_001_mic2.flac": "",
            f"{txt}/p225/p225_001.txt": "Please call Stella.\n",
            f"{audio}/p315/p315_001_mic1.flac": "",
            f"{audio}/log.txt": "",
        },
    )
    utterances, refused, _ = read_back("vctk", root, tmp_path / "m.jsonl")
    assert [(one.id, one.text, one.speaker) for one in utterances] == [
        ("p225_001", "Please call Stella.", "p225"),
        ("p315_001", None, "p315"),
    ]
    assert not refused  # the second microphone is not asked for
    second, _, _ = read_back("vctk", root, tmp_path / "2.jsonl", part="mic2")
    assert [(one.id, one.audio.name) for one in second] == [("p225_001", "p225_001_mic2.flac")]
    old = plant(tmp_path / "old", {"wav48/p226/p226_002.wav": "", "txt/p226/p226_002.txt": "Ask her."})
    assert read_back("vctk", old, tmp_path / "old.jsonl")[0][0].text == "Ask her."
    with pytest.raises(FileNotFoundError, match="neither wav48_silence_trimmed nor wav48"):
        write_corpus("vctk", tmp_path, tmp_path / "x.jsonl")


def test_fairseq(tmp_path: Path) -> None:
    plant(tmp_path / "root", {"a/1.flac": "", "a/2.flac": "", "a/1.wav": ""})
    rows = [
        str(tmp_path / "root"),
        "a/1.flac\t16000",
        "a/2.flac\t8000",
        "a/1.wav\t5",
        "a/3.flac\t9",
        "a/2.flac",
        "a\tb\tc",
    ]
    tsv = plant(tmp_path, {"train.tsv": "\n".join(rows)}) / "train.tsv"
    utterances, refused, _ = read_back("fairseq", tsv, tmp_path / "m.jsonl")
    assert [(one.id, one.audio) for one in utterances] == [
        ("a/1", tmp_path / "root/a/1.flac"),
        ("a/2", tmp_path / "root/a/2.flac"),
    ]
    assert [row["reason"] for row in refused] == ["same_id", "no_audio_file", "invalid_row", "invalid_row"]
    plant(tmp_path, {"none.tsv": "a/1.flac\t16000\n"})
    with pytest.raises(ManifestError, match="none.tsv:1") as error:
        write_corpus("fairseq", tmp_path / "none.tsv", tmp_path / "x.jsonl")
    assert error.value.reason is CorpusReason.DAMAGED


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "LJ", {"metadata.csv": "a|b|c\nd|e|f\n", "wavs/a.wav": ""})

    def run(*words: str | Path) -> int:
        with pytest.raises(SystemExit) as stopped:
            corpora.main.cli([*map(str, words)])
        return stopped.value.code

    assert run("ljspeech", root, tmp_path / "m.jsonl") == SOME_REFUSED
    assert capsys.readouterr().out.startswith("1 utterances, 1 with text, 1 refused (1 no_audio_file) -> ")
    empty = plant(tmp_path / "empty", {"metadata.csv": "a\n"})
    for words, named in (
        (("timit", root, tmp_path / "x.jsonl"), ("'timit'", "known are folder")),
        (("ljspeech", root, tmp_path / "x.jsonl", "--part", "dev"), ("--part dev",)),
        (("ljspeech", root, tmp_path / "x.json"), ("x.json", ".jsonl")),
        (("ljspeech", tmp_path / "absent", tmp_path / "x.jsonl"), ("absent",)),
        (("ljspeech", empty, tmp_path / "x.jsonl"), ("1 invalid_row", "metadata.csv")),
    ):
        assert run(*words) == WRONG_CALL
        error = capsys.readouterr().err
        assert all(name in error for name in named)
    assert not (tmp_path / "x.jsonl").exists()


def test_a_corpus_without_refusals_ends_with_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = plant(tmp_path / "LJ", {"metadata.csv": "a|b|c\n", "wavs/a.wav": ""})
    corpora.main.cli(["ljspeech", str(root), str(tmp_path / "m.jsonl")])
    assert "0 refused" in capsys.readouterr().out


# --- hostile files: an utterance, a listed row, or an error that names the file; nothing else

METADATA = {
    "fairseq": "x.tsv",
    "librispeech": "1/2/1-2.trans.txt",
    "librilight": "1/b/a.json",
    "gigaspeech": "GigaSpeech.json",
    "commonvoice": "validated.tsv",
    "ljspeech": "metadata.csv",
    "vctk": "txt/p1/p1_1.txt",
    "folder": "a.txt",
}
AUDIO = ("1/2/1-2-3.flac", "1/b/a.flac", "clips/a.mp3", "wavs/a.wav", "wav48/p1/p1_1.wav", "a.wav")
SEEDS = {
    "fairseq": b".\na.wav\t5\n",
    "librispeech": b"1-2-3 HELLO\n",
    "ljspeech": b"a|b|c\n",
    "vctk": b"hello",
    "folder": b"hello",
    "librilight": b'{"speaker": "1", "voice_activity": [[0, 1.5]]}',
    "gigaspeech": json.dumps({"audios": [{"path": "a.wav", "segments": [giga()]}]}).encode(),
    "commonvoice": b"client_id\tpath\tsentence\nx\ta.mp3\thello\n",
}


@pytest.mark.parametrize("name", sorted(METADATA))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_metadata(name: str, data: st.DataObject, tmp_path: Path) -> None:
    seed = SEEDS[name]
    cut = data.draw(st.integers(0, len(seed)))
    junk = data.draw(
        st.one_of(st.binary(max_size=40), st.sampled_from([b"\0", b"[" * 2000, b"1e999", b"a" * 5000, b"\n"]))
    )
    root = plant(tmp_path / "root", dict.fromkeys(AUDIO, ""))
    plant(root, {METADATA[name]: seed[:cut] + junk + data.draw(st.sampled_from([b"", seed[cut:]]))})
    source = root / METADATA[name] if name == "fairseq" else root
    try:
        read_back(name, source, tmp_path / "m.jsonl")
    except ValueError as error:
        assert "nothing usable" in str(error) or str(root) in str(error)

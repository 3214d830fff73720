"""Feature sets: the extraction engine writes encoder states as it writes units; resume, ranks, refusals, damage."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from units.audio import SAMPLE_RATE, load_wav, save_wav
from units.corpus.manifest import read_manifest
from units.dataset import extract
from units.dataset.extract_config import EncoderConfig
from units.dataset.feature_set import COMPLETION_FILE, FeatureSetError, FeatureSetReason, StateContent, read_feature_set
from units.dataset.shards import Share
from units.dataset.shards import extract as extract_share
from units.encoder.states import encoder_folder, fingerprint, open_states
from units.encoder.unit_encoder import Features
from units.runtime.command import SOME_REFUSED
from units.shipped import ENCODERS

LENGTHS = (0.5, 1.2, 0.3, 0.9, 0.7)  # seconds


@pytest.fixture(scope="module")
def features() -> Features:
    return open_states("starter", 1)


@pytest.fixture(scope="module")
def content(features) -> StateContent:
    return StateContent(features, fingerprint(encoder_folder("starter")), "full")


@pytest.fixture
def corpus(tmp_path) -> Path:
    draw = np.random.default_rng(0)
    rows = []
    for i, seconds in enumerate(LENGTHS):
        wav = draw.normal(0, 0.1, round(seconds * SAMPLE_RATE)).astype(np.float32)
        save_wav(tmp_path / f"wav/{i}.wav", wav)
        rows.append({"id": f"u{i}", "audio": f"wav/{i}.wav", "text": f"text {i}"})
    rows.append({"id": "part", "audio": "wav/1.wav", "start": 0.5, "duration": 0.5})
    rows.append({"id": "lost", "audio": "wav/lost.wav"})
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def extracted(corpus: Path, out: Path, content: StateContent, **share) -> Path:
    extract_share(read_manifest(corpus), out, content, Share(**{"shard_size": 2, **share}))
    return out


def test_the_command_writes_the_encoder_s_states(corpus, features, tmp_path, capsys) -> None:
    out = tmp_path / "features"
    argv = [str(corpus), str(out), "--features", "--layer", "1", "--shard-size", "3", "--processes", "1"]
    with pytest.raises(SystemExit) as ended:
        extract.main.cli(argv)
    assert ended.value.code == SOME_REFUSED
    assert "6 utterances" in capsys.readouterr().out
    found = read_feature_set(out)
    assert (found.utterances, found.refused, found.layer, found.width) == (6, 1, 1, features.dim)
    assert found.grid == features.grid and found.encoder == "starter"
    for i in range(len(LENGTHS)):
        path = corpus.parent / f"wav/{i}.wav"
        states = found.states(found.find(path))
        assert states.dtype == np.float16
        np.testing.assert_allclose(states, features([load_wav(path)])[0].numpy(), atol=5e-3, rtol=2e-3)
    whole = corpus.parent / "wav/1.wav"
    assert found.find(whole, 0.5, 0.5).frames == features.grid.num_frames(len(load_wav(whole, 0.5, 0.5)))
    (refused,) = (out / "refused.jsonl").read_text().splitlines()
    assert json.loads(refused)["id"] == "lost"


def test_a_set_is_complete_when_all_ranks_are_done_and_equal_to_one_of_one_rank(corpus, content, tmp_path) -> None:
    whole = read_feature_set(extracted(corpus, tmp_path / "whole", content))
    parts = tmp_path / "parts"
    extracted(corpus, parts, content, rank=1, world=2)
    with pytest.raises(FileNotFoundError, match="not a complete feature set"):
        read_feature_set(parts)
    joined = read_feature_set(extracted(corpus, parts, content, rank=0, world=2))
    for i in range(len(LENGTHS)):
        path = corpus.parent / f"wav/{i}.wav"
        np.testing.assert_array_equal(joined.states(joined.find(path)), whole.states(whole.find(path)))


def test_a_killed_run_continues_and_keeps_what_is_done(corpus, content, tmp_path, monkeypatch) -> None:
    out = tmp_path / "features"
    with monkeypatch.context() as patch:
        write, done = StateContent.write, []

        def killed(self, path, rows) -> None:
            if done:
                raise KeyboardInterrupt
            done.append(path)
            write(self, path, rows)

        patch.setattr(StateContent, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            extracted(corpus, out, content)
    first = (out / "shard-00000.npy").stat().st_mtime_ns
    assert not (out / COMPLETION_FILE).exists()
    assert read_feature_set(extracted(corpus, out, content)).utterances == 6
    assert (out / "shard-00000.npy").stat().st_mtime_ns == first


def test_another_encoder_or_layer_is_refused(corpus, content, tmp_path) -> None:
    out = extracted(corpus, tmp_path / "features", content)
    second = StateContent(open_states("starter", 2), content.facts["fingerprint"], "full")
    with pytest.raises(ValueError, match="layer"):
        extracted(corpus, out, second)


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing"])
def test_damaged_shards_are_refused(corpus, content, tmp_path, damage: str) -> None:
    out = extracted(corpus, tmp_path / "features", content)
    path = out / "shard-00000.npy"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:200] if damage == "cut" else b"no array")
    found = read_feature_set(out)
    with pytest.raises(FeatureSetError) as refused:
        found.states(found.find(corpus.parent / "wav/0.wav"))
    assert refused.value.reason == FeatureSetReason.DAMAGED_SHARD
    (out / "shard-00001.parquet").write_bytes(b"no table")
    with pytest.raises(FeatureSetError) as refused:
        read_feature_set(out).find(corpus.parent / "wav/0.wav")
    assert refused.value.reason == FeatureSetReason.DAMAGED_SHARD


def test_a_recording_that_is_not_in_the_set_is_refused_by_name(corpus, content, tmp_path) -> None:
    found = read_feature_set(extracted(corpus, tmp_path / "features", content))
    with pytest.raises(FeatureSetError, match="elsewhere.wav") as refused:
        found.find(tmp_path / "elsewhere.wav")
    assert refused.value.reason == FeatureSetReason.NOT_IN_SET


def test_a_set_can_be_sent_to_a_process(corpus, content, tmp_path) -> None:
    found = read_feature_set(extracted(corpus, tmp_path / "features", content))
    span = found.find(corpus.parent / "wav/3.wav")
    sent = pickle.loads(pickle.dumps(found))  # noqa: S301  # our own
    np.testing.assert_array_equal(sent.states(span), found.states(span))


def test_features_go_without_centres() -> None:
    with pytest.raises(ValueError, match="kmeans"):
        EncoderConfig("starter", Path("km.bin"), features=True)
    assert EncoderConfig("starter", layer=2, features=True).layer == 2


def test_the_encoders_that_ship_are_opened_by_name() -> None:
    widths = {name: open_states(name, 1, window="utterance").dim for name in ENCODERS}
    assert widths["codec"] == 384 and set(widths) == {"starter", "codec"}
    assert open_states("codec", 0, window="utterance").name == "codec"
    with pytest.raises(FileNotFoundError):
        encoder_folder("codecs")

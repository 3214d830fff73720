"""Files of release 0.1.0 are read: manifest, units, unit encoder, vocoder, conversations, stages, model, results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from reference import DATA
from tiny_run import stage_config

from eval.results import load_results
from instruct_data.build.records import read_conversations
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.inference import SpeechGPT
from speechgpt.open_model import open_model
from stages.config import Source
from stages.train import train
from units.audio import load_wav
from units.corpus.manifest import read_manifest
from units.dataset.extract import main as units_extract
from units.dataset.unit_set import read_unit_set
from units.encoder.unit_encoder import UnitEncoder
from units.vocoder.unit_vocoder import UnitVocoder

OLD = DATA / "release_0_1_0"
RUN = OLD / "run"


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """A copy of the run folder, for tests that write into it."""
    shutil.copytree(RUN, tmp_path / "run")
    return tmp_path / "run"


def test_a_unit_set_is_read_and_equals_what_its_encoder_gives_today() -> None:
    utterances = {u.id: u for u in read_manifest(OLD / "manifest.jsonl")}
    units = read_unit_set(RUN / "units" / "train")
    encoder = UnitEncoder.from_pretrained(RUN / "unit_encoder")
    assert units.codebook == encoder.codebook
    assert (len(units), units.refused) == (6, 1)
    for record in units:
        wav = load_wav(utterances[record.id].audio)
        assert record.units == encoder.encode(wav)
        assert (record.num_samples, record.text) == (len(wav), utterances[record.id].text)


def test_an_extraction_that_0_1_0_began_is_finished_as_it_began(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    folder = tmp_path / "old" / "run" / "units" / "train"
    whole = [record.units for record in read_unit_set(folder)]
    for name in ("unit_set.json", "shard-00001.parquet", "refused.jsonl"):
        (folder / name).unlink()
    manifest, encoder = tmp_path / "old" / "manifest.jsonl", tmp_path / "old" / "run" / "unit_encoder"
    with pytest.raises(SystemExit) as ended:
        units_extract.cli(
            [str(manifest), str(folder), "--encoder", str(encoder), "--processes", "1", "--shard_size", "4"]
        )
    assert ended.value.code == 3
    assert [record.units for record in read_unit_set(folder)] == whole


def test_conversations_are_read() -> None:
    found = list(read_conversations(RUN / "data" / "chat.jsonl.gz"))
    assert len(found) == 16 and {one.task for one in found} == {"asr", "chat"}
    assert found[0].messages[0].parts[1] == next(iter(read_unit_set(RUN / "units" / "train"))).units.ids


def test_a_vocoder_speaks() -> None:
    vocoder = UnitVocoder.from_pretrained(RUN / "model" / "vocoder")
    record = next(iter(read_unit_set(RUN / "units" / "train")))
    assert len(vocoder.decode(record.units)) == 320 * sum(record.units.durations)


def test_a_model_is_opened_by_both_doors() -> None:
    facts = CheckpointFacts.load(RUN / "model")
    assert (facts.system, facts.stage, facts.first_unit_id) == ("speechgpt", "stage3", 300)
    for model in (SpeechGPT.from_pretrained(RUN / "model"), open_model(RUN / "model")):
        assert isinstance(model, SpeechGPT)
        assert model.transcribe_batch([load_wav(OLD / "wav" / "u0.wav")])


def test_results_are_loaded() -> None:
    result = load_results(RUN / "results")["asr"]
    assert (result.score, result.n, result.more["exact"].value) == (0.125, 40, 0.5)


def test_a_stage_starts_from_a_stage_of_0_1_0(run: Path) -> None:
    config = stage_config(
        run, stage="stage2", model="stage1", out="stage2", widen=None, data=[Source("data/chat.jsonl.gz")]
    )
    out = train(config)
    assert CheckpointFacts.load(out).codebook == UnitEncoder.from_pretrained(run / "unit_encoder").codebook


def test_a_finished_stage_is_done_and_a_killed_one_resumes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "stage": "stage3",
        "model": "stage1",
        "out": "stage3",
        "widen": None,
        "data": [Source("data/chat.jsonl.gz")],
    }
    train(stage_config(run, samples=0, **changes))
    assert "done already" in capsys.readouterr().out
    for name in ("speechgpt.json", "config.json", "model.safetensors"):
        (run / "stage3" / name).unlink()
    train(stage_config(run, samples=0, training={"max_steps": 4, "save_steps": 2}, **changes))
    steps = [json.loads(line).get("step") for line in (run / "stage3" / "log.jsonl").read_text().splitlines()]
    assert max(step for step in steps if step is not None) == 4
    assert steps.count(1) == 1

"""The preset smol on the real small models of make real-models: thirty steps of each stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.config import Source
from stages.train import train
from units.dataset import extract
from variants.blsp import hear
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.config import BlspConfig
from variants.blsp.continuation import Labelling, LabelWriter
from variants.blsp.data.examples import utterances_of
from variants.blsp.data.labels import write_labels
from variants.blsp.inference import BLSP, Request
from variants.blsp.stages.system import BLSP_SYSTEM

ROOT = Path(__file__).parents[2]
REAL = ROOT / "runs/real"
WAVS = sorted((ROOT / "tests/data/digits").glob("0_jackson_*.wav"))[:3]
THIRTY = {"max_steps": 30, "save_steps": 30, "eval_steps": 30, "logging_steps": 10, "disable_tqdm": True}


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.real
def test_thirty_steps_of_each_stage(tmp_path) -> None:
    if not (REAL / "smollm2-135m-instruct").exists():
        pytest.skip("run make real-models first")
    rows = [{"id": f"z{i}", "audio": str(wav), "text": "zero"} for i, wav in enumerate(WAVS)]
    (tmp_path / "asr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [str(tmp_path / "asr.jsonl"), str(tmp_path / "features"), "--features", "--processes", "1"]
    extract.main.cli([*argv, "--encoder", str(REAL / "whisper-tiny.en"), "--window", "utterance"])
    fields = {
        "run": tmp_path,
        "encoder": str(REAL / "whisper-tiny.en"),
        "window": "utterance",
        "features": "features",
        "template": "chat",
        "adapter": AdapterShape([5, 5], [2, 2], 64),
        "trainable": ["adapter"],
        "block_size": 96,
        "dev_documents": 0,
        "threads": 1,
    }
    training = {**THIRTY, "per_device_train_batch_size": 1, "learning_rate": 1e-3}
    stated = BlspConfig(
        "hear",
        str(REAL / "smollm2-135m-instruct"),
        "heard",
        [Source("asr.jsonl")],
        kind="ctc",
        **fields,
        training=training,
    )
    folder = train(stated, system=BLSP_SYSTEM)
    assert losses(folder)[-1] < 0.5 * losses(folder)[0]
    hear.main(folder, tmp_path / "asr.jsonl", tmp_path / "heard.jsonl")
    heard = [json.loads(line)["response"] for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    assert len(heard) == len(WAVS) and "zero" in heard
    how = Labelling(behaviours={"repeat": 1.0}, template="chat", max_new_tokens=8, repeats="any")
    labels, _ = LabelWriter(str(REAL / "smollm2-135m-instruct"), "cpu", how).labels(
        utterances_of(tmp_path / "asr.jsonl")
    )
    write_labels(tmp_path / "labels.jsonl", labels)
    stated = BlspConfig("stage2", "heard", "blsp", [Source("labels.jsonl")], **fields, training=training)
    folder = train(stated, system=BLSP_SYSTEM)
    assert losses(folder)[-1] < losses(folder)[0]
    model = BLSP.from_pretrained(folder)
    said = model.respond([Request(WAVS[0], how.instruction("repeat")), Request(None, "What is two plus two?")])
    assert said[0].strip() == labels[0].response and said[1].strip()

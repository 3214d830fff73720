"""Two processes train BLSP as one does, also where a process gets a block of text alone."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_blsp import blsp_config, make_blsp_run

from stages.config import Source
from stages.train import train
from variants.blsp.records import ADAPTER_FILE
from variants.blsp.stages.system import BLSP_SYSTEM

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kl", [0.0, 1.0])
def test_two_ranks_equal_one(tmp_path, kl: float) -> None:
    run = make_blsp_run(tmp_path / "run")
    data = [Source("labels.jsonl"), Source("chats.jsonl")]
    each = {"training": {"max_steps": 3, "per_device_train_batch_size": 1}, "samples": 0}
    stated = blsp_config(run, data=data, batch=2, block_size=48, **each)
    stated.loss.kl = kl
    one = train(dataclasses.replace(stated, out="one"), system=BLSP_SYSTEM)
    fields = {**dataclasses.asdict(stated), "out": "two", "run": str(run)}
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump(fields))
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "--"]
    line += ["variants.blsp.train", str(tmp_path / "stage.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = load_file(one / ADAPTER_FILE)
    for name, weight in load_file(run / "two" / ADAPTER_FILE).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)

"""docs/your-own-audio.md, from recordings to a model that talks: its commands are run at toy size."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import WORDS, sentence

from instruct_data.speech.voices import VoiceError, open_voice
from stages.start_models import text_llm
from units.audio import save_wav

ROOT = Path(__file__).parents[2]
SMALL = "--batch 2 --training.per_device_train_batch_size 1 --training.max_steps 2 --training.report_to none"


def typed(folder: Path) -> str:
    """The commands of the page, with small parts in place of what only a user has."""
    text = (ROOT / "docs" / "your-own-audio.md").read_text(encoding="utf-8")
    lines = text.split("```", 2)[1].strip()
    small = f"CONFIGS={folder}/configs RUN=$R PYTHON={sys.executable} -o .venv/.installed"
    for theirs, here in (
        ("stages/configs/mine", f"{folder}/configs"),
        ("R=runs/mine", f"R={folder}/run; sed -i 's|^model: .*|model: {folder}/llm|' {folder}/configs/stage1.yaml"),
        ("recordings/", f"{folder}/recordings/"),
        ("--encoder facebook/hubert-base-ls960 --layer 9 --size 500", "--encoder starter --layer 2 --size 30"),
        (" --device cuda", ""),
        ("alpaca_data.json", f"{folder}/alpaca.json"),
        ("vocos_vocoder.yaml", "toy_vocoder.yaml --recipe.steps 20"),
        ("make stage1 stage2 stage3 PRESET=mine", f"make stage1 stage2 stage3 PRESET=mine {small} ARGS='{SMALL}'"),
        ("make chat PRESET=mine", f"make chat PRESET=mine {small}"),
    ):
        assert theirs in lines, f"the page does not contain {theirs!r}"
        lines = lines.replace(theirs, here)
    return lines


@pytest.mark.slow
def test_own_recordings_and_an_own_llm_become_a_model_that_talks(tmp_path: Path) -> None:
    try:
        open_voice("flite:slt").speak("ready")
    except VoiceError as error:
        pytest.skip(str(error))
    draw, anna = random.Random(0), open_voice("espeak:en-us+f3")
    for i in range(24):
        said = sentence(draw)
        save_wav(tmp_path / "recordings" / f"{i}.wav", anna.speak(said))
        (tmp_path / "recordings" / f"{i}.txt").write_text(said)
    pairs = [{"instruction": f"say {sentence(draw)}", "input": "", "output": sentence(draw)} for _ in range(24)]
    (tmp_path / "alpaca.json").write_text(json.dumps(pairs))
    (tmp_path / "text.txt").write_text("\n".join(sentence(draw) for _ in range(200)))
    shape = text_llm.TinyLlama(vocab_size=300, width=32, layers=2, heads=2, feed_forward=48, context=1024)
    text_llm.main(tmp_path / "text.txt", tmp_path / "llm", shape)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", typed(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PATH": path, "MAKEFLAGS": ""},
        input=f"{WORDS[0]}\n/quit\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    model = tmp_path / "run" / "model"
    assert {"speechgpt.json", "config.json", "unit_encoder", "vocoder"} <= {part.name for part in model.iterdir()}
    facts = json.loads((model / "speechgpt.json").read_text())
    assert facts["stage"] == "stage3" and facts["codebook"]["size"] == 30
    found = [json.loads(line) for line in (tmp_path / "run" / "asr.jsonl").read_text().splitlines()]
    assert len(found) == 24 and {row["speaker"] for row in found} == {"anna"}
    assert (tmp_path / "run" / "data" / "chain.jsonl.gz").exists()

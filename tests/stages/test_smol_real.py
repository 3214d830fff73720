"""The preset smol on the real SmolLM2: data by the commands of make data; thirty steps of each stage, with a resume."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_configs import CONFIGS, parsed
from transformers import AutoModelForCausalLM, AutoTokenizer

from instruct_data.build import sets
from instruct_data.speech import speak
from instruct_data.speech.voices import open_voice
from instruct_data.text.own import chats as own_chats
from instruct_data.text.own import texts as own_texts
from speechgpt.generation.likelihood import log_likelihoods, text_row
from stages.callbacks.checkpoints import Checkpoints
from stages.callbacks.log import read_log
from stages.config import StageConfig
from stages.packing.attention import BY_DOCUMENT
from stages.packing.check import check_attention
from stages.train import train
from units.corpus import align
from units.dataset import extract
from units.runtime.command import SOME_REFUSED

ROOT = Path(__file__).parents[2]
LLM = ROOT / "runs/real/smollm2-135m-instruct"
STEPS = 30
SENTENCES = "the cat sat on the mat|bread needs time and water|we walked home in the rain|she reads a book every week"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as make data leaves it, of a few sentences: units of the codec, words, conversations, own chats."""
    if not (LLM / "config.json").exists():
        pytest.skip("run make real-models first")
    try:
        open_voice("flite:slt").speak("ready")
    except ValueError:
        pytest.skip("flite does not speak here")
    pytest.importorskip("pocketsphinx")
    run = tmp_path_factory.mktemp("runs") / "smol"
    called(own_chats, run / "own.jsonl", "--local", LLM, "--count", 10, "--filters.longest_answer", 25)
    called(own_texts, run / "own_texts.txt", "--local", LLM, "--count", 16, "--most_tokens", 64)
    rows = [json.dumps({"question": f"please say {text}", "answer": text}) for text in SENTENCES.split("|")]
    (run / "chats.jsonl").write_text("\n".join(rows) + "\n")
    for name, texts in (("train", "chats.jsonl"), ("chats", "own.jsonl")):
        spoken = run / "spoken" / name
        called(speak, run / texts, spoken, "[espeak:en-us, flite:kal16]", "flite:slt", "--workers", 1)
        called(extract, spoken / "train.jsonl", run / "units" / name, "--encoder", "codec", "--processes", 1)
    manifests = ", ".join(str(run / "spoken" / name / "train.jsonl") for name in ("train", "chats"))
    called(align, f"[{manifests}]", run / "words.tsv", "--workers", 1)
    for name, texts, out in (("train", "chats.jsonl", "data"), ("chats", "own.jsonl", "data/own")):
        made = ["--units", run / "units" / name, "--pairs", run / texts, "--out", run / out]
        called(sets, *made, "--voice", "flite:slt", "--workers", 1)
    shutil.copytree(ROOT / "units/codec/unit_encoder", run / "unit_encoder")
    for name in ("toy", "answers"):
        (run / "units" / name).symlink_to(run / "units/train")
    return run


@pytest.mark.real
@pytest.mark.parametrize("attention", [BY_DOCUMENT, "sdpa"])
def test_bfloat16_is_no_reason_for_another_attention(attention: str) -> None:
    """Gradients at a few tokens of this model are of rounding alone in bfloat16, in its own attention too."""
    if not (LLM / "config.json").exists():
        pytest.skip("run make real-models first")
    model = AutoModelForCausalLM.from_pretrained(LLM, dtype=torch.bfloat16, attn_implementation=attention)
    check_attention(model)


def called(command: Any, *arguments: object) -> None:
    """Run a command; inputs that it leaves out (exit code 3) are no failure."""
    try:
        command.main.cli([str(argument) for argument in arguments])
    except SystemExit as ended:
        assert ended.code in (None, 0, SOME_REFUSED), (command, ended.code)


def config_of(monkeypatch: pytest.MonkeyPatch, run: Path, stage: str) -> StageConfig:
    """The preset's own file, at a few steps, of one block each."""
    config = parsed(monkeypatch, str(CONFIGS / f"smol/{stage}.yaml"), "--run", str(run), "--threads", "1")
    training = {**config.training, "max_steps": STEPS, "save_steps": STEPS, "eval_steps": 100, "logging_steps": 1}
    training |= {"per_device_train_batch_size": 1, "warmup_steps": 0, "disable_tqdm": True, "save_total_limit": None}
    changes = {"batch": 1, "dev_documents": 4, "samples": 1, "training": training, "seed": 1}
    if stage == "stage1":
        changes["model"] = str(LLM)
    return dataclasses.replace(config, **changes)


def perplexity(folder: Path) -> float:
    """A token of the texts that say what an LLM keeps, by plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = (ROOT / "eval/kept/texts.txt").read_text().splitlines()[:8]
    rows = [text_row(lambda t: tokenizer.encode(t, add_special_tokens=False), [1], "", text) for text in texts]
    found = log_likelihoods(model, rows)
    return math.exp(-sum(one.log_probability for one in found) / sum(one.tokens for one in found))


@pytest.mark.real
@pytest.mark.slow
def test_thirty_steps_of_each_stage_with_a_stop_in_each(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("stage1", "stage2", "stage3"):
        config = config_of(monkeypatch, run, stage)
        with monkeypatch.context() as patch:  # as SIGTERM in step 2: a checkpoint, then exit code 143
            patch.setattr(Checkpoints, "on_train_begin", lambda self, args, state, control, **kwargs: None)
            patch.setattr(Checkpoints, "on_step_begin", asks_in_step(2), raising=False)
            with pytest.raises(SystemExit):
                train(config)
        assert not (config.at(config.out) / "speechgpt.json").exists()
        folder = train(config)
        records = read_log(folder / "log.jsonl")
        assert [record["step"] for record in records if "loss" in record] == [*range(1, STEPS + 1)]
        assert all(math.isfinite(record["loss"]) for record in records if "loss" in record)
        assert records[-1]["dev_units_loss"] < 16  # new rows begin at 19
        facts = json.loads((folder / "speechgpt.json").read_text())
        assert facts["codebook"]["name"] == "whisper-tiny.en-L3-km500"
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)  # 1.6 GB each
    model = AutoModelForCausalLM.from_pretrained(run / "stage3")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # still tied
    # these are a dozen sentences, seen again and again: the preset's own data must keep it within 1.15 times
    assert perplexity(run / "stage3") < 2 * perplexity(LLM)


def asks_in_step(number: int):
    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.asked = self.asked or state.global_step == number - 1

    return on_step_begin

"""LLaMA-Omni's stage of kind hearing: the adaptor learns words, is as loud as words, and the next stage starts from it;
feature sets and disturbances in all of its stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_omni import make_omni_run, omni_config
from transformers import AutoModelForCausalLM

from stages.config import Source
from stages.packing.blocks import load_blocks
from stages.planning.cluster import Cluster
from stages.planning.plan import make_plan
from stages.train import train
from units.audio import load_wav
from units.dataset import extract
from variants.llama_omni import hear
from variants.llama_omni.inference import LlamaOmni
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, OmniFacts
from variants.llama_omni.stages.hearing import OmniHearing
from variants.llama_omni.stages.system import OMNI_SYSTEM
from variants.speech_in.config import Disturbance
from variants.speech_in.facts import read_part
from variants.speech_in.hearing.ctc import HEAD_FILE

HEARING = {"kind": "hearing", "trainable": ["adaptor"], "data": [Source("asr.jsonl")]}
LONG = {"max_steps": 80, "save_steps": 40, "eval_steps": 40}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """As make_omni_run; `asr.jsonl` says what each tone is."""
    run = make_omni_run(tmp_path_factory.mktemp("hearing"))
    chats = (run / "chats.jsonl").read_text().splitlines()
    words = list(dict.fromkeys(json.loads(line)["question"].split()[1] for line in chats))
    rows = [{"id": f"t{i}", "audio": f"wav/t{i}.wav", "text": f"{words[i % len(words)]} dog"} for i in range(30)]
    (run / "asr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extract.main.cli([str(run / "asr.jsonl"), str(run / "features"), "--features", "--layer", "1", "--processes", "1"])
    return run


@pytest.fixture(scope="module")
def listened(run) -> Path:
    return train(omni_config(run, out="heard", features="features", training=LONG, **HEARING), system=OMNI_SYSTEM)


def test_the_adaptor_learns_to_hear_words(run, listened, tmp_path, capsys) -> None:
    records = [json.loads(line) for line in (listened / "log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < 0.3 * losses[0]
    assert [record["dev_wer"] for record in records if "dev_wer" in record][-1] <= 0.25
    assert {path.name for path in listened.glob("*.safetensors")} == {ADAPTOR_FILE, HEAD_FILE}
    facts = OmniFacts.load(listened)
    assert facts.decoder is None and facts.llm.path == "../text_llm"
    hear.main(listened, run / "asr.jsonl", tmp_path / "heard.jsonl")
    assert "word error rate 0." in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    assert len(rows) == 30 and sum(row["response"] == row["reference"] for row in rows) >= 20


def test_the_finished_adaptor_is_as_loud_as_words(run, listened) -> None:
    hearer = hear.open_hearer(listened)
    with torch.inference_mode():
        states = hearer.encoder([load_wav(run / f"wav/t{i}.wav") for i in range(8)])
        made = torch.cat([hearer.adapter(one[None], torch.tensor([len(one)])) for one in states])
    words = AutoModelForCausalLM.from_pretrained(run / "text_llm").get_input_embeddings().weight
    assert made.square().mean().sqrt() / words.detach().square().mean().sqrt() == pytest.approx(1, abs=0.3)


def test_the_next_stage_starts_from_it(run, listened) -> None:
    stated = omni_config(run, model="heard", out="after", training={"max_steps": 1, "learning_rate": 1e-12})
    folder = train(stated, system=OMNI_SYSTEM)
    begun = read_part(listened, ADAPTOR_FILE, "adapter.")
    for name, weight in read_part(folder, ADAPTOR_FILE, "adapter.").items():
        torch.testing.assert_close(weight, begun[name])
    assert not (folder / HEAD_FILE).exists()
    assert LlamaOmni.from_pretrained(listened).transcribe(run / "wav/t0.wav") is not None  # it opens as any other


def test_it_is_planned(run) -> None:
    stated = omni_config(run, **HEARING)
    size, opened = OMNI_SYSTEM.size(stated, None), OMNI_SYSTEM.open(stated)
    assert isinstance(opened, OmniHearing)
    adaptor = sum(weight.numel() for weight in opened.model.adapter.parameters())
    assert adaptor < size.learning < adaptor + 100
    assert make_plan(stated, size, Cluster(1, "A100-80G", 0.4)).fits


def test_configs_that_cannot_be(run) -> None:
    for changes, told in (
        ({"trainable": ["adaptor", "llm"]}, "runs no LLM"),
        ({"questions": "written"}, "speaking"),
        ({"kind": "words"}, "hearing, listening, speaking"),
    ):
        with pytest.raises(ValueError, match=told):
            omni_config(run, **HEARING | changes)
    with pytest.raises(FileNotFoundError, match=r"nowhere.jsonl does not exist"):
        OMNI_SYSTEM.open(omni_config(run, **HEARING | {"data": [Source("nowhere.jsonl")]}))
    with pytest.raises(FileNotFoundError, match="learns to hear words"):
        hear.open_hearer(train(omni_config(run, out="short", training={"max_steps": 1}), system=OMNI_SYSTEM))


@pytest.mark.parametrize("kind", ["listening", "speaking"])
def test_a_feature_set_trains_as_states_that_are_kept(run, listened, kind: str) -> None:
    start = {"model": "heard", "training": {"max_steps": 2}, "data": [Source("data/chain.jsonl.gz")]}
    file = DECODER_FILE if kind == "speaking" else ADAPTOR_FILE
    made = []
    for features in ("cached", "features"):
        stated = omni_config(run, kind=kind, features=features, out=f"{kind}_{features}", **start)
        made.append(load_file(train(stated, system=OMNI_SYSTEM) / file))
    for name, weight in made[0].items():
        torch.testing.assert_close(weight, made[1][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["listening", "speaking"])
def test_a_disturbance_changes_the_loss_in_training_alone(run, listened, kind: str) -> None:
    stated = omni_config(run, kind=kind, model="heard", disturbance=Disturbance(noise=2.0))
    start = OMNI_SYSTEM.open(stated, attn_implementation="by_document")
    blocks, _ = load_blocks(start, 1, quiet=True)
    batch = start.collator()([blocks[0]])

    def losses(learning: bool) -> list[float]:
        start.model.train(learning)
        with torch.no_grad():
            return [start.loss(start.model, batch, start.items(batch)).item() for _ in range(2)]

    first, again = losses(False)
    assert first == again
    first, again = losses(True)
    assert first != again

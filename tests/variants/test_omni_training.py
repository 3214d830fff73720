"""Training LLaMA-Omni with the one trainer: what learns, what is saved, and the laws that every system keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_omni import ADAPTOR, DECODER, make_omni_run, omni_config
from tiny_run import FOREIGN
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from instruct_data.build.records import read_conversations, write_conversations
from speechgpt.dialogue import Conversation, Message, Speech
from stages import stage
from stages.config import Lora, Source
from stages.packing.blocks import PackedBlocks, load_blocks
from stages.planning.cluster import Cluster
from stages.planning.plan import make_plan
from stages.train import train
from stages.trainable import choose_trainable
from units.codebook import CodebookMismatch
from variants.llama_omni import config as config_module
from variants.llama_omni import train as command
from variants.llama_omni.config import OmniConfig
from variants.llama_omni.network.shapes import AdaptorShape, DecoderShape
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, OmniFacts
from variants.llama_omni.stages.system import OMNI_SYSTEM, OmniOpened, SpeakingOpened

CPU = {"attn_implementation": "by_document"}
SPEAKING = {"kind": "speaking"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_omni_run(tmp_path_factory.mktemp("omni"))


@pytest.fixture(scope="module")
def listening(run) -> Path:
    return train(omni_config(run), system=OMNI_SYSTEM)


@pytest.fixture(scope="module")
def speaking(run, listening) -> Path:
    return train(omni_config(run, **SPEAKING), system=OMNI_SYSTEM)


def opened(config: OmniConfig, **loading) -> OmniOpened:
    return OMNI_SYSTEM.open(config, **(loading or CPU))


# --- what learns and what is saved


def test_stage_1_saves_adaptor_and_llm(run, listening) -> None:
    facts = OmniFacts.load(listening)
    assert (
        facts.llm.path == "llm" and facts.decoder is None and facts.codebook is None and facts.encoder.path == "starter"
    )
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    learned = AutoModelForCausalLM.from_pretrained(listening / "llm").state_dict()
    assert not torch.equal(start["model.embed_tokens.weight"], learned["model.embed_tokens.weight"])
    assert len(load_file(listening / ADAPTOR_FILE)) == 4 and not (listening / DECODER_FILE).exists()


def test_stage_2_saves_the_decoder_and_refers_to_the_rest(run, listening, speaking) -> None:
    facts = OmniFacts.load(speaking)
    assert facts.llm.path == "../omni_llm/llm" and facts.vocoder and facts.vocoder.path == "../vocoder"
    assert facts.decoder == DECODER and facts.speaking and facts.speaking.units == 10 and facts.codebook
    assert sorted(path.name for path in speaking.glob("*.safetensors")) == [ADAPTOR_FILE, DECODER_FILE]
    names = load_file(speaking / "checkpoint-4/model.safetensors").keys()
    assert names and all(name.startswith("decoder.") for name in names)
    for name, weight in load_file(listening / ADAPTOR_FILE).items():
        assert torch.equal(weight, load_file(speaking / ADAPTOR_FILE)[name])


def test_frozen_weights_stay_bit_equal(run, listening, monkeypatch) -> None:
    kept: list[OmniOpened] = []
    usual = OMNI_SYSTEM.open
    monkeypatch.setattr(OMNI_SYSTEM, "open", lambda *a, **k: kept.append(usual(*a, **k)) or kept[-1], raising=False)
    train(omni_config(run, out="frozen", training={"max_steps": 2}, **SPEAKING), system=OMNI_SYSTEM)
    start = AutoModelForCausalLM.from_pretrained(listening / "llm").state_dict()
    moved = kept[0].model.llm.state_dict()
    assert all(torch.equal(weight, moved[name]) for name, weight in start.items())
    adaptor = load_file(listening / ADAPTOR_FILE)
    assert all(
        torch.equal(adaptor[f"adapter.{name}"], weight) for name, weight in kept[0].model.adapter.state_dict().items()
    )


def test_lora_learns_beside_the_adaptor_and_is_merged(run) -> None:
    lora = Lora(r=2, alpha=4, targets=["q_proj"], dropout=0.0)
    stated = omni_config(run, out="lora", llm_lora=lora, trainable=["adaptor", "lora"])
    folder = train(stated, system=OMNI_SYSTEM)
    learned = AutoModelForCausalLM.from_pretrained(folder / "llm").state_dict()
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    changed = {name for name, weight in start.items() if not torch.equal(weight, learned[name])}
    assert changed == {name for name in start if "q_proj" in name}
    names = load_file(folder / "checkpoint-4/model.safetensors").keys()
    assert all(name.startswith("adapter.") or "lora_" in name for name in names)
    again = omni_config(run, out="after_lora", model="lora", training={"max_steps": 1}, **SPEAKING)
    assert OmniFacts.load(train(again, system=OMNI_SYSTEM)).llm.path == "../lora/llm"


class Kill(TrainerCallback):
    """A process that dies after a step."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["listening", "speaking"])
def test_a_killed_stage_resumes_to_the_same_weights(run, listening, speaking, monkeypatch, kind: str) -> None:
    stated = omni_config(run, out=f"killed_{kind}", kind=kind)
    usual = stage.StageTrainer
    with monkeypatch.context() as patch:
        patch.setattr(stage, "StageTrainer", lambda *a, callbacks, **k: usual(*a, callbacks=[*callbacks, Kill()], **k))
        with pytest.raises(KeyboardInterrupt):
            train(stated, system=OMNI_SYSTEM)
    folder = train(stated, system=OMNI_SYSTEM)
    undisturbed = speaking if kind == "speaking" else listening
    for file in (ADAPTOR_FILE, *((DECODER_FILE,) if kind == "speaking" else ())):
        for name, weight in load_file(folder / file).items():
            torch.testing.assert_close(weight, load_file(undisturbed / file)[name], atol=1e-6, rtol=0)


def test_a_stage_may_continue_another(run, speaking) -> None:
    again = omni_config(run, model="omni", out="again", training={"max_steps": 1, "learning_rate": 1e-12}, **SPEAKING)
    folder = train(again, system=OMNI_SYSTEM)
    for name, weight in load_file(folder / DECODER_FILE).items():
        torch.testing.assert_close(weight, load_file(speaking / DECODER_FILE)[name])
    with pytest.raises(ValueError, match="Give the same one"):
        opened(dataclasses.replace(again, decoder=dataclasses.replace(DECODER, upsample=7)))
    with pytest.raises(ValueError, match="does not listen"):
        opened(dataclasses.replace(again, model="text_llm"))


# --- laws of batches


def mean_loss(start: OmniOpened, blocks: PackedBlocks, indices: range) -> float:
    batch = start.collator()([blocks[i] for i in indices])
    with torch.no_grad():
        return start.loss(start.model, batch, start.items(batch)).item()


@pytest.mark.parametrize("attention", ["by_document", "sdpa", "eager"])
@pytest.mark.parametrize("kind", ["listening", "speaking"])
def test_packed_documents_score_as_alone(run, listening, attention: str, kind: str) -> None:
    start = opened(omni_config(run, attention=attention, kind=kind), attn_implementation=attention)
    start.model.eval()
    blocks, _ = load_blocks(start, 4, quiet=True)
    packed = mean_loss(start, blocks, range(len(blocks)))
    losses, counts = [], []
    assert sum(len(blocks.documents_of(i)) for i in range(len(blocks))) > len(blocks)
    for i in range(len(blocks)):
        for source, document in blocks.documents_of(i):
            alone = PackedBlocks([(blocks.sources[source], np.array([document]), 1.0)], 96, None, 0, 0)
            batch = start.collator()([alone[0]])
            counts.append(int(start.items(batch)))
            losses.append(mean_loss(start, alone, range(1)))
    assert packed == pytest.approx(np.average(losses, weights=counts), abs=1e-5)


@pytest.mark.parametrize("features", ["cached", "live"])
def test_live_and_cached_states_train_the_same(run, speaking, features: str) -> None:
    folder = train(omni_config(run, out=features, features=features, **SPEAKING), system=OMNI_SYSTEM)
    for name, weight in load_file(folder / DECODER_FILE).items():
        torch.testing.assert_close(weight, load_file(speaking / DECODER_FILE)[name], atol=1e-5, rtol=1e-3)


def test_two_passes_train_as_one(run, speaking) -> None:
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    folder = train(omni_config(run, out="passes", training=split, **SPEAKING), system=OMNI_SYSTEM)
    for name, weight in load_file(folder / DECODER_FILE).items():
        torch.testing.assert_close(weight, load_file(speaking / DECODER_FILE)[name], atol=1e-5, rtol=1e-3)


def test_text_that_a_user_types_is_never_a_place_for_speech(run, listening, tmp_path) -> None:
    typed = "Q: A: </s> <s> <speech> <|eot_id|>"
    turns = (Message("human", (Speech(str(run / "wav/t0.wav")), typed)), Message("assistant", (typed, (1, 2))))
    conversation = Conversation(turns, "other", "a")
    codebook = read_conversations(run / "data/chain.jsonl.gz").codebook
    write_conversations(tmp_path / "typed.jsonl", [conversation], codebook, 0)
    source = [Source(str(tmp_path / "typed.jsonl"))]
    start = opened(omni_config(run, data=source, block_size=128, dev_documents=0, **SPEAKING))
    blocks, _ = load_blocks(start, 1, quiet=True)
    block = blocks[0]
    place = block["places"] + block["places_start"]
    assert (block["labels"][place] == -100).all()
    ends = block["labels"] == start.tokenizer.eos_token_id
    assert ends.sum() == len(blocks.documents_of(0))  # one end each: `</s>` in a text is none
    said = block["said"] + block["said_start"]
    assert sorted(said.tolist()) == torch.nonzero(block["labels"] >= 0).flatten().tolist()


# --- data


def test_each_task_has_the_words_of_the_config(run, listening) -> None:
    start = opened(omni_config(run, transcripts=True))
    blocks, _ = load_blocks(start, 1, quiet=True)
    tokenised = blocks.sources[0]
    assert tokenised.task_names == ["chain", "asr"] and len(tokenised) == 60
    written = [start.tokenizer.decode(tokenised.document(i)[0]) for i in (0, 1)]
    assert written[0].endswith("A: the red one</s>") and "one" not in written[0].split("A:")[0]
    assert written[1].endswith("one A: red dog</s>")
    speaks = opened(omni_config(run, data=[Source("data/tts.jsonl.gz")], **SPEAKING))
    read, _ = load_blocks(speaks, 1, quiet=True)
    assert "two red cat A: red cat</s>" in speaks.tokenizer.decode(read.sources[0].document(0)[0])


def test_examples_without_units_are_counted(run, listening, tmp_path, capsys) -> None:
    chain = list(read_conversations(run / "data/chain.jsonl.gz"))
    codebook = read_conversations(run / "data/chain.jsonl.gz").codebook
    silent = [
        dataclasses.replace(one, messages=(one.messages[0], Message("assistant", ("red",))), id=f"{i}")
        for i, one in enumerate(chain[:4])
    ]
    write_conversations(tmp_path / "some.jsonl", [*chain[:6], *silent], codebook, 0)
    start = opened(omni_config(run, data=[Source(str(tmp_path / "some.jsonl"))], dev_documents=0, **SPEAKING))
    blocks, _ = load_blocks(start, 1, quiet=True)
    assert len(blocks.sources[0]) == 6
    assert "4 refused (4 no_units), 40.0% of all" in capsys.readouterr().out


def test_units_of_another_codebook_are_refused(run, listening, tmp_path) -> None:
    chain = list(read_conversations(run / "data/chain.jsonl.gz"))
    write_conversations(tmp_path / "foreign.jsonl", chain, FOREIGN, 0)
    start = opened(omni_config(run, data=[Source(str(tmp_path / "foreign.jsonl"))], **SPEAKING))
    with pytest.raises(CodebookMismatch):
        load_blocks(start, 1, quiet=True)


def test_the_log_says_why_it_learns_or_not(run, speaking) -> None:
    records = [json.loads(line) for line in (speaking / "log.jsonl").read_text().splitlines()]
    reports = [record for record in records if "dev_unit_loss" in record]
    assert len(reports) == 2
    for report in reports:
        assert 0 <= report["dev_blank_share"] <= 1 and report["dev_unit_error"] > 0
        assert report["dev_frames_a_unit"] > 1 and 0 <= report["dev_refused_targets"] <= 1
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 4


def test_it_learns_to_speak(run, listening) -> None:
    stated = omni_config(
        run, out="longer", training={"max_steps": 150, "eval_steps": 150, "save_steps": 150}, **SPEAKING
    )
    folder = train(stated, system=OMNI_SYSTEM)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [record for record in records if "dev_unit_error" in record][-1]
    assert last["dev_unit_error"] < 0.5 and 0.2 < last["dev_blank_share"] < 0.9


# --- the plan and the presets


@pytest.mark.parametrize("kind", ["listening", "speaking"])
def test_the_plan_counts_what_learns(run, listening, kind: str) -> None:
    stated = omni_config(run, kind=kind)
    size = OMNI_SYSTEM.size(stated, None)
    model = choose_trainable(opened(stated).model, stated, OmniOpened.parts)
    assert size.parameters == model.num_parameters()
    assert size.learning == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert make_plan(stated, size, Cluster(1, "16G")).fits


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "chain"}, "chain"),
        ({"llm_lora": Lora()}, "belong together"),
        ({"lora": Lora(), "trainable": "all"}, "llm_lora"),
        ({"encoder_layer": -1}, "-1"),
        ({"adaptor_scale": 0.0}, "adaptor-scale is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(run, changes, named) -> None:
    with pytest.raises(ValueError, match=named):
        omni_config(run, **changes)


def test_shapes_out_of_range_are_refused() -> None:
    for make, named in (
        (lambda: AdaptorShape(rate=0), "rate"),
        (lambda: DecoderShape(width=30, heads=4), "even, whole width"),
        (lambda: DecoderShape(input="word"), "state_and_word"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=named):
            make()


CONFIGS = Path(config_module.__file__).parent / "configs"
LLAMA_3 = LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2, num_key_value_heads=8,
    num_attention_heads=32, max_position_embeddings=131072,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(f"{path.parent.name}/{path.stem}" for path in CONFIGS.glob("*/stage*.yaml")))
def test_the_presets_are_planned(name: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("variants.llama_omni.stages.system.model_shape", lambda config, file: (LLAMA_3, False))
    command.main([str(CONFIGS / f"{name}.yaml"), "--run", str(tmp_path), "--plan", "--gpus", "8", "--gpu", "A100-80G"])
    printed = capsys.readouterr().out
    assert "trained" in printed
    if name == "8b/stage2":  # the published decoder: 425.7 M
        assert "425," in printed


def test_speaking_has_its_own_class(run, listening) -> None:
    assert isinstance(opened(omni_config(run, **SPEAKING)), SpeakingOpened)
    assert opened(omni_config(run)).config.adaptor == ADAPTOR

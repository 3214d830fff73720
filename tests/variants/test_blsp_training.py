"""BLSP through the one trainer: what learns, packing, resume, live and cached encoder states, the losses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blsp_oracles import FOLDER
from safetensors.torch import load_file
from tiny_blsp import SHAPE, blsp_config, make_blsp_run
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from speechgpt.dialogue import Message, Speech
from speechgpt.sampling import Sampling
from stages import stage
from stages.config import Source
from stages.counted import counted_logits
from stages.packing.blocks import PackedBlocks, load_blocks
from stages.planning.cluster import Cluster
from stages.planning.plan import make_plan
from stages.train import train
from stages.trainable import choose_trainable
from units.dataset import extract
from units.encoder.whisper_window import FullWindowFeatures
from variants.blsp import config
from variants.blsp import train as command
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.config import BlspConfig, LossWeights
from variants.blsp.data.examples import read_examples
from variants.blsp.data.labels import Label, write_labels
from variants.blsp.inference import BLSP
from variants.blsp.records import ADAPTER_FILE, BlspFacts
from variants.blsp.stages.opened import BlspOpened, divergence
from variants.blsp.stages.system import BLSP_SYSTEM
from variants.blsp.upstream import adopt
from variants.listening import row
from variants.references import PartError

CPU = {"attn_implementation": "by_document"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_blsp_run(tmp_path_factory.mktemp("blsp"))


@pytest.fixture(scope="module")
def trained(run) -> Path:
    return train(blsp_config(run), system=BLSP_SYSTEM)


def opened(config: BlspConfig, **loading) -> BlspOpened:
    found = BLSP_SYSTEM.open(config, **(loading or CPU))
    assert isinstance(found, BlspOpened)
    return found


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER_FILE)


# --- what learns and what is saved


def test_checkpoints_and_the_finished_folder_hold_the_adapter_alone(run, trained) -> None:
    names = {f"adapter.{name}" for name in SpeechAdapter(96, 32, SHAPE).state_dict()}
    assert adapter_of(trained).keys() == load_file(trained / "checkpoint-4/model.safetensors").keys() == names
    assert [path.name for path in trained.glob("*.safetensors")] == [ADAPTER_FILE] and not (trained / "llm").exists()
    facts = json.loads((trained / "speechgpt.json").read_text())
    assert facts["system"] == "blsp" and facts["config"]["kind"] == "speech"
    assert facts["extra"]["llm"]["path"] == "../text_llm" and facts["extra"]["encoder"]["path"] == "starter"
    fresh = opened(blsp_config(run)).model.adapter.state_dict()
    assert all(not torch.equal(weight, fresh[name[8:]]) for name, weight in adapter_of(trained).items())


def test_frozen_weights_stay_bit_equal(run, monkeypatch) -> None:
    kept: list[BlspOpened] = []
    usual = BLSP_SYSTEM.open
    monkeypatch.setattr(BLSP_SYSTEM, "open", lambda *a, **k: kept.append(usual(*a, **k)) or kept[-1], raising=False)
    train(blsp_config(run, out="frozen", training={"max_steps": 2}), system=BLSP_SYSTEM)
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    moved = kept[0].model.llm.state_dict()
    assert start.keys() == moved.keys() and all(torch.equal(weight, moved[name]) for name, weight in start.items())
    assert not any(weight.requires_grad for weight in kept[0].encoder.model.parameters())


def test_a_learning_llm_is_saved_too(run) -> None:
    both = blsp_config(run, out="both", trainable=["adapter", "llm"], training={"max_steps": 2})
    folder = train(both, system=BLSP_SYSTEM)
    learned = AutoModelForCausalLM.from_pretrained(folder / "llm").state_dict()
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    assert not torch.equal(start["model.embed_tokens.weight"], learned["model.embed_tokens.weight"])
    facts = BlspFacts.load(folder)
    assert facts.llm.path == "llm" and facts.llm.find(folder) == folder / "llm"


def test_another_llm_in_its_place_is_refused(run, trained, tmp_path) -> None:
    facts = BlspFacts.load(trained)
    wrong = dataclasses.replace(facts.llm, fingerprint="0" * 12)
    with pytest.raises(PartError, match="0" * 12):
        wrong.find(trained)
    with pytest.raises(PartError, match="nowhere"):
        dataclasses.replace(facts.llm, path="../nowhere").find(trained)


def test_a_stage_may_continue_another(run, trained) -> None:
    again = blsp_config(run, model="blsp", out="again", training={"max_steps": 1, "learning_rate": 1e-12})
    folder = train(again, system=BLSP_SYSTEM)
    for name, weight in adapter_of(folder).items():
        torch.testing.assert_close(weight, adapter_of(trained)[name])
    assert BlspFacts.load(folder).llm.path == "../text_llm"
    with pytest.raises(ValueError, match="Give the same ones"):
        opened(dataclasses.replace(again, adapter=dataclasses.replace(SHAPE, inner=9)))


class Kill(TrainerCallback):
    """A process that dies after a step."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_killed_stage_resumes_to_the_same_weights(run, trained, monkeypatch) -> None:
    stated = blsp_config(run, out="killed")
    usual = stage.StageTrainer
    with monkeypatch.context() as patch:
        patch.setattr(stage, "StageTrainer", lambda *a, callbacks, **k: usual(*a, callbacks=[*callbacks, Kill()], **k))
        with pytest.raises(KeyboardInterrupt):
            train(stated, system=BLSP_SYSTEM)
    assert (run / "killed/checkpoint-2/complete.json").exists() and not (run / "killed/speechgpt.json").exists()
    folder = train(stated, system=BLSP_SYSTEM)
    for name, weight in adapter_of(folder).items():
        torch.testing.assert_close(weight, adapter_of(trained)[name], atol=1e-6, rtol=0)


# --- laws of batches


@pytest.mark.parametrize("features", ["cached", "live", "features"])
def test_live_and_cached_states_and_those_of_a_feature_set_train_the_same(run, trained, features: str) -> None:
    if features == "features":
        argv = [str(run / "asr.jsonl"), str(run / features), "--features", "--layer", "1", "--processes", "1"]
        extract.main.cli(argv)
    folder = train(blsp_config(run, out=f"by_{features}", features=features), system=BLSP_SYSTEM)
    for name, weight in adapter_of(folder).items():
        torch.testing.assert_close(weight, adapter_of(trained)[name], atol=1e-6, rtol=0)


def mean_loss(start: BlspOpened, blocks: PackedBlocks, indices: range) -> float:
    batch = start.collator()([blocks[i] for i in indices])
    with torch.no_grad():
        return start.loss(start.model, batch, start.items(batch)).item()


@pytest.mark.parametrize("attention", ["by_document", "sdpa", "eager"])
@pytest.mark.parametrize("kl", [0.0, 0.5])
def test_packed_documents_score_as_alone(run, attention: str, kl: float) -> None:
    changes = {"loss": LossWeights(ce=1.0, kl=kl, temperature=2.0)}
    start = opened(blsp_config(run, attention=attention, **changes), attn_implementation=attention)
    start.model.eval()
    blocks, _ = load_blocks(start, 6, quiet=True)
    packed = mean_loss(start, blocks, range(len(blocks)))
    losses, counts = [], []
    for i in range(len(blocks)):
        assert len(blocks.documents_of(i)) > 1
        for source, document in blocks.documents_of(i):
            alone = PackedBlocks([(blocks.sources[source], np.array([document]), 1.0)], 96, None, 0, 0)
            batch = start.collator()([alone[0]])
            counts.append(int(start.items(batch)))
            losses.append(mean_loss(start, alone, range(1)))
    assert packed == pytest.approx(np.average(losses, weights=counts), abs=1e-5)


def test_text_that_a_user_types_is_never_a_place_for_speech(run, tmp_path) -> None:
    typed = "###[Human]: </s> <s> <speech> \ue0000\ue001"
    wav = Speech(str(run / "wav/t0.wav"))
    write_labels(tmp_path / "typed.jsonl", [Label("a", wav, typed, "answer", typed, typed)])
    start = opened(blsp_config(run, data=[Source(str(tmp_path / "typed.jsonl"))], block_size=128, dev_documents=0))
    blocks, _ = load_blocks(start, 1, quiet=True)
    block = blocks[0]
    place = block["places"] + block["places_start"]
    assert len(set(place.tolist())) == len(place)
    assert (block["labels"][place] == -100).all()
    assert set(block["input_ids"][place].tolist()) == {start.tokenizer.eos_token_id}
    documents = len(blocks.documents_of(0))
    trained = block["input_ids"][block["labels"] >= 0]
    assert (trained == start.tokenizer.eos_token_id).sum() == documents  # one end each: `</s>` in a text is none


# --- losses


def test_divergence_of_a_model_from_itself_is_none(run) -> None:
    scores = torch.randn(5, 7, generator=torch.manual_seed(0))
    assert divergence(scores, scores, 2.0).item() == pytest.approx(0, abs=1e-6)
    other = torch.randn(5, 7, generator=torch.manual_seed(1))
    p, q = (other / 2).softmax(-1), (scores / 2).softmax(-1)
    assert divergence(scores, other, 2.0).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-5)


def test_counted_logits_are_those_of_the_whole_row(run) -> None:
    llm = opened(blsp_config(run)).model.llm.eval()
    ids = torch.randint(5, 100, (2, 9), generator=torch.manual_seed(0))
    labels = ids.clone()
    labels[0, :6] = labels[1, 3:] = -100
    whole = llm(ids).logits[:, :-1]
    found, tokens = counted_logits(llm, {"input_ids": ids}, labels)
    counted = labels[:, 1:] != -100
    torch.testing.assert_close(found, whole[counted].float())
    assert tokens.tolist() == labels[:, 1:][counted].tolist()


def test_divergence_alone_trains(run) -> None:
    stated = blsp_config(run, out="kd", loss=LossWeights(ce=0.0, kl=1.0), training={"max_steps": 12})
    train(stated, system=BLSP_SYSTEM)
    records = [json.loads(line) for line in (run / "kd/log.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0] and all(loss >= 0 for loss in losses)


def test_divergence_needs_transcripts(run, tmp_path) -> None:
    row = {"audio": str(run / "wav/t0.wav"), "text": "the red one"}  # as the published code writes it
    (tmp_path / "published.jsonl").write_text(json.dumps(row) + "\n")
    source = [Source(str(tmp_path / "published.jsonl"))]
    with pytest.raises(ValueError, match="holds no documents"):
        load_blocks(opened(blsp_config(run, data=source, loss=LossWeights(kl=1.0))), 1)
    start = opened(blsp_config(run, data=source))
    start.config.block_size = 512  # two documents; more than the model has positions, but nothing is trained here
    blocks, _ = load_blocks(start, 1, quiet=True)
    assert len(blocks.documents_of(0)) > 1


# --- data


def test_published_rows_and_segments_are_read(run, tmp_path) -> None:
    rows = [{"audio": "wav/t0.wav", "text": "one"}, {"audio": "wav/t0.wav:1600:3200", "text": "two"}]
    (run / "published.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_examples(run / "published.jsonl", "Continue.")
    assert first.sounds == [Speech(str(run / "wav/t0.wav"))] and first.messages[0].parts[0] == "Continue."
    assert second.sounds == [Speech(str(run / "wav/t0.wav"), 0.1, 0.2)]


def test_recordings_that_cannot_be_read_are_counted(run, tmp_path, capsys) -> None:
    labels = [Label(f"t{i}", Speech(str(run / f"wav/t{i}.wav")), "one", "answer", "", "red") for i in range(4)]
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    labels += [Label("broken", Speech(str(tmp_path / "broken.wav")), "one", "answer", "", "red")]
    write_labels(tmp_path / "some.jsonl", labels)
    start = opened(blsp_config(run, data=[Source(str(tmp_path / "some.jsonl"))], dev_documents=0))
    blocks, _ = load_blocks(start, 1, quiet=True)
    assert len(blocks.sources[0]) == 4
    assert "1 refused (1 unreadable_audio)" in capsys.readouterr().out


def test_stage_1_tunes_the_llm_on_text(run) -> None:
    data = [Source("chats.jsonl", hold_out=False)]
    stated = blsp_config(run, stage="stage1", kind="text", out="tuned", data=data, trainable="all", samples=0)
    folder = train(stated, system=BLSP_SYSTEM)
    tuned = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    start = AutoModelForCausalLM.from_pretrained(run / "text_llm").state_dict()
    assert not torch.equal(tuned["lm_head.weight"], start["lm_head.weight"])
    assert (folder / "tokenizer.json").exists() and not (folder / "speechgpt.json").exists()
    with pytest.raises(ValueError, match="holds recordings"):
        train(dataclasses.replace(stated, out="no", data=[Source("labels.jsonl")]), system=BLSP_SYSTEM)


def test_stage_1_may_learn_questions_in_pieces_too(run) -> None:
    data = [Source("chats.jsonl", hold_out=False)]
    stated = blsp_config(run, kind="text", data=data, trainable="all", text_form="both")
    start = BLSP_SYSTEM.open(stated, **CPU)
    blocks, _ = load_blocks(start, 1, quiet=True)
    tokenised, template = blocks.sources[0], start.template
    assert len(tokenised) == 30  # 15 chats, twice
    one, pieces = (tokenised.document(i)[0].tolist() for i in (0, 1))
    asked = Message("human", ("one red",))
    prompt = row(template.prompt([asked]), [], 0).ids
    assert pieces[: len(prompt)] == prompt and one[: len(prompt)] != prompt


def test_the_plan_counts_the_adapter(run) -> None:
    stated = blsp_config(run)
    size = BLSP_SYSTEM.size(stated, None)
    model = choose_trainable(opened(stated).model, stated, BlspOpened.parts)
    assert size.parameters == model.num_parameters()
    assert size.learning == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert make_plan(stated, size, Cluster(1, "16G")).fits


@pytest.mark.parametrize("window", ["full", "utterance"])
def test_whisper_is_an_encoder_too(run, tmp_path_factory, window: str) -> None:
    folder = tmp_path_factory.mktemp("whisper") / "adopted"
    encoder = str(adopt(FOLDER / "variant/checkpoint", folder) / "encoder")
    changes = {"encoder": encoder, "encoder_layer": 0, "window": window, "training": {"max_steps": 1}}
    trained = train(blsp_config(run, out=f"whisper-{window}", samples=0, **changes), system=BLSP_SYSTEM)
    model = BLSP.from_pretrained(trained)
    assert isinstance(model.encoder, FullWindowFeatures) == (window == "full") and model.facts.width == 24
    assert model.answer(run / "wav/t0.wav", Sampling(max_new_tokens=2)).finished in (True, False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "chain"}, "chain"),
        ({"adapter": {"kernels": [4], "strides": [2]}}, "odd"),
        ({"loss": {"ce": 0.0, "kl": 0.0}}, "both 0; at least one"),
        ({"encoder_layer": -1}, "-1"),
        ({"norm_gain": 0.0}, "norm-gain is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(run, changes, named) -> None:
    with pytest.raises((ValueError, TypeError), match=named):
        from variants.blsp.adapter_shape import AdapterShape

        given = dict(changes)
        if "adapter" in given:
            given["adapter"] = AdapterShape(**given["adapter"])
        if "loss" in given:
            given["loss"] = LossWeights(**given["loss"])
        blsp_config(run, **given)


CONFIGS = Path(config.__file__).parent / "configs"


@pytest.mark.parametrize("name", ["toy/stage1", "toy/stage2", "smol/hear", "smol/stage2", "7b/stage1", "7b/stage2"])
def test_the_presets_are_planned(name: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("variants.blsp.stages.system.model_shape", lambda config, file: (LLAMA_2, False))
    command.main([str(CONFIGS / f"{name}.yaml"), "--run", str(tmp_path), "--plan", "--gpus", "8", "--gpu", "A100-80G"])
    printed = capsys.readouterr().out
    assert "all trained" in printed if name.endswith("1") else "trained" in printed
    if name == "7b/stage2":  # the published adapter on Llama 2's width and Whisper small's
        assert "47,467,520 trained" in printed


LLAMA_2 = LlamaConfig(vocab_size=32000, num_hidden_layers=2)

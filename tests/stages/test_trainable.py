"""Which weights learn (embeddings, then all; adapters, alone or merged), and what the log holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_run import make_run, stage_config
from tiny_tokenizers import KINDS, special_words
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
)
from varlen_reference import varlen_attn

import stages.stage
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Dialogue, Message
from speechgpt.generation.generate import generate
from speechgpt.sampling import Sampling
from stages.config import Lora, Rows, Source, StageConfig
from stages.packing.attention import VARLEN
from stages.train import train
from stages.unit_system.system import UNIT_SYSTEM

CHAT = {"stage": "stage3", "model": "stage1", "widen": None, "data": [Source("data/chat.jsonl.gz")]}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run folder with stage 1 trained in it."""
    run = make_run(tmp_path_factory.mktemp("built"))
    train(stage_config(run, training={"max_steps": 2}))
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# --- what learns


def test_embeddings_alone(run) -> None:
    out = train(stage_config(run, out="embeddings", trainable="embeddings", **CHAT))
    assert moved(weights(run / "stage1"), weights(out)) == {"model.embed_tokens.weight"}  # tied: both matrices


def test_embeddings_first_then_all(run) -> None:
    first = {
        "trainable": "embeddings_then_all",
        "embeddings_steps": 3,
        "training": {"weight_decay": 0.1, "save_steps": 3},
    }
    out = train(stage_config(run, out="first3", **first, **CHAT))
    assert moved(weights(run / "stage1"), weights(out / "checkpoint-3")) == {"model.embed_tokens.weight"}
    assert len(moved(weights(run / "stage1"), weights(out))) == len(weights(out))  # step 4 moved all
    for path in ("config.json", "speechgpt.json", "model.safetensors"):  # killed after step 3, it goes on the same
        (out / path).unlink()
    after = weights(out / "checkpoint-4")
    (out / "checkpoint-4" / "complete.json").unlink()
    torch.testing.assert_close(
        weights(train(stage_config(run, out="first3", **first, **CHAT))), after, atol=1e-6, rtol=0
    )


def test_a_schedule_without_groups_is_refused(run) -> None:
    config = stage_config(
        run,
        out="no",
        trainable="embeddings_then_all",
        embeddings_steps=2,
        **CHAT,
        training={"lr_scheduler_type": "reduce_lr_on_plateau"},
    )
    with pytest.raises(ValueError, match="does not go with reduce_lr_on_plateau; use linear, cosine"):
        train(config)


# --- embedding rows beside the other weights


def steps_of(run: Path, out: str, **rows) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[int]]:
    """Weights before and after one step of Adam at a constant rate of 1e-3, and the ids of units and special tokens."""
    training = {"max_steps": 1, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "warmup_steps": 0}
    config = stage_config(run, out=out, **CHAT, rows=Rows(**rows), training={**training, "weight_decay": 0.1})
    added = UNIT_SYSTEM.open(config, attn_implementation="sdpa").added_tokens
    assert added is not None
    return weights(run / "stage1"), weights(train(config)), list(added)


def test_rows_learn_at_their_own_rate(run) -> None:
    before, after, _ = steps_of(run, "rate", rate=20.0)
    far = {name: float((after[name] - weight).abs().max()) for name, weight in before.items()}
    rows = far.pop("model.embed_tokens.weight")
    assert rows == pytest.approx(20e-3, rel=0.2) and max(far.values()) == pytest.approx(1e-3, rel=0.2)


def test_rows_of_words_stay_as_they_are(run) -> None:
    before, after, added = steps_of(run, "kept", words="keep", rate=5.0)
    old, new = before.pop("model.embed_tokens.weight"), after.pop("model.embed_tokens.weight")
    words = sorted(set(range(len(old))) - set(added))
    assert torch.equal(new[words], old[words]) and words
    assert (new[added] != old[added]).any(dim=1).sum() > len(added) // 2  # units and special tokens learn
    assert moved(before, after) == set(before)


def test_kept_rows_go_on_after_a_kill(run) -> None:
    first = {"rows": Rows(10.0, "keep"), "training": {"save_steps": 2}}
    out = train(stage_config(run, out="kept_on", **first, **CHAT))
    whole = weights(out)
    for path in ("config.json", "speechgpt.json", "model.safetensors"):
        (out / path).unlink()
    (out / "checkpoint-4" / "complete.json").unlink()
    again = weights(train(stage_config(run, out="kept_on", **first, **CHAT)))
    torch.testing.assert_close(again, whole, atol=1e-6, rtol=0)


def test_rows_that_cannot_be(run, monkeypatch) -> None:
    with pytest.raises(ValueError, match="leave it out with lora"):
        stage_config(run, out="no", **CHAT, rows=Rows(2.0), lora=Lora())
    with pytest.raises(ValueError, match="learn or keep"):
        Rows(words="forget")  # type: ignore[arg-type]
    monkeypatch.setattr(stages.stage, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="use zero2"):
        train(stage_config(run, out="no", **CHAT, rows=Rows(words="keep")))


# --- adapters


def adapted(run: Path, out: str, **lora) -> StageConfig:
    return stage_config(run, out=out, lora=Lora(r=2, alpha=4, dropout=0.0, **lora), **CHAT)


def test_merged_is_the_model_with_its_adapter(run) -> None:
    out = train(adapted(run, "merged"))
    base = AutoModelForCausalLM.from_pretrained(run / "stage1")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        plain = base(tokens).logits
        unmerged = PeftModel.from_pretrained(base, out / "adapter")(tokens).logits
        whole = AutoModelForCausalLM.from_pretrained(out)(tokens).logits
    torch.testing.assert_close(whole, unmerged, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(whole, plain, atol=1e-3)


def test_an_adapter_alone_on_request(run) -> None:
    out = train(adapted(run, "alone", merge=False))
    names = {path.name for path in out.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "speechgpt.json"} <= names
    assert "model.safetensors" not in names and "config.json" not in names
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run / "stage1")
    merged = AutoModelForCausalLM.from_pretrained(train(adapted(run, "merged_too")))
    model, tokens = AutoModelForCausalLM.from_pretrained(out), torch.arange(12)[None]  # opens base and adapter
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, merged(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("merge", [True, False])
def test_a_stage_ended_anew_holds_nothing_of_its_other_end(run, merge: bool) -> None:
    name = f"from_{merge}"
    first = train(adapted(run, name, merge=merge))
    (first / "speechgpt.json").unlink()
    out = train(adapted(run, name, merge=not merge))
    assert (out / "model.safetensors").exists() is not merge
    assert (out / "adapter_config.json").exists() is (out / "adapter_model.safetensors").exists() is merge


def test_targets_that_are_not_there_are_named(run) -> None:
    config = stage_config(run, out="no", lora=Lora(targets=["q_proj", "c_attn"]), **CHAT)
    with pytest.raises(ValueError, match=r"the model has no \['c_attn'\]; its modules are .*'v_proj'"):
        train(config)


def test_few_bits_need_their_library(run, monkeypatch) -> None:
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *_: False)
    with pytest.raises(ValueError, match="bits: 4 needs bitsandbytes; pip install"):
        train(adapted(run, "no", bits=4))


@pytest.mark.parametrize("lora", [None, Lora(r=2, dropout=0.0)])
def test_a_stage_with_bounds_of_documents_trains_the_same(run, monkeypatch, lora) -> None:
    changes = {**CHAT, "lora": lora, "training": {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}}
    masked = log(train(stage_config(run, out=f"masked_{lora is None}", attention="sdpa", **changes)))
    usual = stages.stage.loading_arguments
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)  # which needs no GPU
    monkeypatch.setattr(stages.stage, "loading_arguments", lambda *a: {**usual(*a), "attn_implementation": VARLEN})
    printed = log(train(stage_config(run, out=f"bounds_{lora is None}", **changes)))
    for name in ("loss", "dev_text_loss"):
        assert [r[name] for r in printed if name in r] == pytest.approx(
            [r[name] for r in masked if name in r], abs=1e-3
        )


# --- other architectures, tied and untied

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def gemma3(**text: object) -> Gemma3Config:
    """A model that also reads images: the text model's config is a part of its config."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokens = {"mm_tokens_per_image": 4, "boi_token_index": 1, "eoi_token_index": 2, "image_token_index": 3}
    return Gemma3Config(text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14}, **tokens)


OTHERS = {
    "qwen2": (Qwen2Config, {**SHAPE, "num_key_value_heads": 1, "tie_word_embeddings": False}, ["q_proj", "v_proj"]),
    "gemma": (
        GemmaConfig,
        {**SHAPE, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
        ["q_proj"],
    ),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}, ["c_attn"]),
    "gemma3": (gemma3, {**SHAPE, "head_dim": 16, "num_key_value_heads": 1}, ["q_proj"]),
    "llama3": (LlamaConfig, {**SHAPE, "num_key_value_heads": 1, "tie_word_embeddings": True}, ["q_proj"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_causal_model_goes_through_the_stages(run, kind: str) -> None:
    tokenizer = KINDS["gemma" if kind == "gemma3" else kind](run)
    make, shape, targets = OTHERS[kind]
    torch.manual_seed(0)
    start = AutoModelForCausalLM.from_config(
        make(
            vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, **shape
        )
    )
    for part in (tokenizer, start):
        part.save_pretrained(run / kind)
    widening = {"init": "centres"} if kind != "gpt2" else {"init": "random"}
    config = stage_config(run, model=kind, out=f"{kind}_stage1", training={"max_steps": 2})
    config.widen.init = widening["init"]
    one = train(config)
    three = train(stage_config(run, **{**CHAT, "model": one.name}, out=f"{kind}_stage3", lora=Lora(targets=targets)))
    model = AutoModelForCausalLM.from_pretrained(three)
    rows = model.config.get_text_config().vocab_size
    assert type(model) is type(start) and rows % 64 == 0
    assert UNIT_SYSTEM.size(stage_config(run, model=kind), None).rows == rows
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (start.get_output_embeddings().weight is start.get_input_embeddings().weight)
    assert CheckpointFacts.load(three).first_unit_id == len(AutoTokenizer.from_pretrained(run / kind))
    dialogue = Dialogue(AutoTokenizer.from_pretrained(three))
    for form in ("text", "units", "chain"):
        [reply] = generate(
            model, dialogue, [dialogue.prompt([Message("human", ("red dog",))])], form, Sampling(max_new_tokens=9)
        )
        assert reply and not set(reply) & special_words(dialogue)


# --- what is written down


def test_the_log_tells_tasks_kinds_and_speed_apart(run) -> None:
    out = train(stage_config(run, out="logged", **{**CHAT, "stage": "stage2"}, training={"eval_steps": 2}))
    steps = [record for record in log(out) if "loss" in record]
    assert all(record["tokens_per_second"] > 0 and 0 < record["fill"] <= 1 for record in steps)
    held_out = [record for record in log(out) if "dev_text_loss" in record]
    assert [record["step"] for record in held_out] == [2, 4]
    for name in ("loss", "ppl", "accuracy"):
        assert f"text_{name}" in held_out[0]["tasks"]["asr"] and f"text_{name}" in held_out[0]["tasks"]["chat"]
    # what all lose on average lies between what each does
    each = [figures["text_loss"] for figures in held_out[0]["tasks"].values()]
    assert min(each) <= held_out[0]["dev_text_loss"] <= max(each)
    assert list((out / "runs").rglob("events.out.tfevents*"))  # tensorboard


def test_samples_show_replies(run) -> None:
    out = train(stage_config(run, out="sampled", samples=2, **{**CHAT, "stage": "stage2"}, training={"eval_steps": 4}))
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [sample["task"] for sample in samples] == ["asr", "chat"] and {sample["step"] for sample in samples} == {4}
    for sample in samples:
        assert sample["prompt"].endswith("[SpeechGPT] :") and sample["expected"].endswith("<eoa>")
    assert "<sosp>" in samples[0]["prompt"] and "<sosp>" not in samples[1]["prompt"]
    none = train(stage_config(run, out="unsampled", samples=0, **CHAT))
    assert not (none / "samples.jsonl").exists()
    assert weights(none).keys() and not moved(weights(none), weights(train(stage_config(run, out="again", **CHAT))))


@pytest.mark.slow
def test_a_compiled_stage_trains_the_same(run) -> None:
    compiled = train(stage_config(run, out="compiled", **CHAT, training={"torch_compile": True}))
    plain = train(stage_config(run, out="plain", **CHAT))
    losses = [[record["loss"] for record in log(folder) if "loss" in record] for folder in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)

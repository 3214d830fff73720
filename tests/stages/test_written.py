"""The written folder scores as the trained model did: with adapters on tied and untied embeddings, merged or not, after
widening, after a move; and the stage ends with an error where it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_run import make_run, stage_config
from tiny_system import TinyOpened, TinySystem, write_spoken_set
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

import stages.finished
import stages.written
from speechgpt.inference import SpeechGPT
from speechgpt.language_models.adapters import BaseModelError, find_base, open_language_model
from stages.config import Lora, Source, StageConfig, Widening
from stages.system import Opened
from stages.train import train
from stages.unit_system.opened import UnitOpened
from stages.written import WrittenModelError, scores

CHAT = {"stage": "stage3", "widen": None, "data": [Source("data/chat.jsonl.gz")]}
FAST = {"max_steps": 20, "learning_rate": 5e-2}
TOKENS = torch.arange(263, 300)[None]  # words of the training texts
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def put_llm(run: Path, folder: str, tied: bool, kind: str = "llama") -> None:
    """A random LLM with the run's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.2, "tie_word_embeddings": tied, **ids}
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **common)
    else:
        config = LlamaConfig(max_position_embeddings=128, **SHAPE, **common)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(run / folder)
    tokenizer.save_pretrained(run / folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run folder with stage 1 trained from LLMs with tied and untied embeddings."""
    run = make_run(tmp_path_factory.mktemp("built"))
    for name, tied, kind in (("tied", True, "llama"), ("untied", False, "llama"), ("gpt2", True, "gpt2")):
        put_llm(run, f"llm_{name}", tied, kind)
        train(stage_config(run, model=f"llm_{name}", out=name, training={"max_steps": 2}))
    return run


@pytest.fixture
def trained(monkeypatch) -> list[torch.Tensor]:
    """Logits of TOKENS by the trained model, at the end of each stage."""
    found: list[torch.Tensor] = []
    usual = stages.finished._write

    def spy(trainer, *args) -> None:
        trainer.model.eval()
        with torch.no_grad():
            found.append(trainer.model(input_ids=TOKENS, position_ids=TOKENS - 263, use_cache=False).logits.clone())
        usual(trainer, *args)

    monkeypatch.setattr(stages.finished, "_write", spy)
    return found


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=TOKENS).logits


def close(one: torch.Tensor, two: torch.Tensor) -> None:
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def adapted(run: Path, model: str, out: str, targets: list[str], merge: bool = True) -> StageConfig:
    lora = Lora(r=4, dropout=0.0, targets=targets, merge=merge)
    return stage_config(run, model=model, out=out, lora=lora, training=FAST, **CHAT)


# --- adapters on embeddings


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("model", "targets"),
    [
        ("tied", ["q_proj", "lm_head"]),
        pytest.param("tied", ["embed_tokens"], marks=pytest.mark.slow),
        pytest.param("tied", ["q_proj", "lm_head", "embed_tokens"], marks=pytest.mark.slow),
        pytest.param("untied", ["lm_head"], marks=pytest.mark.slow),
        ("untied", ["embed_tokens", "lm_head"]),
        ("gpt2", ["c_attn", "wte"]),
    ],
)
def test_adapters_on_embeddings_are_written_as_trained(run, trained, model: str, targets, merge: bool) -> None:
    out = train(adapted(run, model, f"{model}_{'_'.join(targets)}_{merge}", targets, merge))
    start = AutoModelForCausalLM.from_pretrained(run / model)
    assert not torch.allclose(trained[0], logits(start), atol=1e-2)
    close(logits(AutoModelForCausalLM.from_pretrained(out)), trained[0])
    adapter = out / "adapter" if merge else out
    close(logits(PeftModel.from_pretrained(start, adapter)), trained[0])
    if merge:  # a later stage trains it on
        train(stage_config(run, model=out.name, out=f"{out.name}_next", training={"max_steps": 1}, **CHAT))


# --- an adapter alone


def test_an_adapter_is_opened_by_all_and_after_a_move(run, tmp_path, trained) -> None:
    place = tmp_path / "run"
    for name in ("tied", "data", "unit_encoder"):
        shutil.copytree(run / name, place / name)
    out = train(adapted(place, "tied", "alone", ["q_proj", "lm_head"], merge=False))
    close(logits(AutoModelForCausalLM.from_pretrained(out)), trained[0])
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    place.rename(moved)
    assert find_base(moved / "alone") == str(moved / "tied")
    speech = SpeechGPT.from_pretrained(moved / "alone")
    close(logits(speech.model), trained[0])
    assert speech.chat("red blue") is not None
    following = train(
        stage_config(moved, model="alone", out="next", training={"max_steps": 1, "learning_rate": 0.0}, **CHAT)
    )
    close(logits(AutoModelForCausalLM.from_pretrained(following)), trained[0])
    (moved / "tied").rename(moved / "away")
    with pytest.raises(FileNotFoundError, match="alone holds an adapter, and its base model is neither .*tied nor"):
        SpeechGPT.from_pretrained(moved / "alone")
    shutil.copytree(run / "untied", moved / "tied")
    with pytest.raises(BaseModelError, match="tied is not the base model that the adapter in .*alone was trained on"):
        SpeechGPT.from_pretrained(moved / "alone")


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]])
def test_a_stage_from_an_adapter_alone_trains_all_weights(run, targets: list[str]) -> None:
    name = f"alone_{'_'.join(targets)}"
    train(adapted(run, "tied", name, targets, merge=False))
    following = train(stage_config(run, model=name, out=f"{name}_next", training={"max_steps": 2}, **CHAT))
    before, after = open_language_model(run / name, merge=True), AutoModelForCausalLM.from_pretrained(following)
    assert all(weight.requires_grad for weight in before.parameters())
    learned = dict(after.named_parameters())
    for name, weight in before.named_parameters():
        assert not torch.equal(weight, learned[name]), name


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"base_model_name_or_path": 3}'])
def test_a_damaged_adapter_config_is_named(tmp_path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(BaseModelError, match="adapter_config.json"):
        find_base(tmp_path)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("init", ["random", "centres"])
def test_an_adapter_after_widening_keeps_the_new_rows(run, tmp_path, trained, init: str, half: bool) -> None:
    for merge in (True, False):
        lora, widening = Lora(r=2, dropout=0.0, merge=merge), Widening("unit_encoder", init)
        out = train(
            stage_config(
                run,
                model="llm_tied",
                out=f"wide_{init}_{half}_{merge}",
                lora=lora,
                widen=widening,
                training={"bf16": half},
            )
        )
        near = {"atol": 0.3, "rtol": 0.1} if half else {"atol": 1e-4, "rtol": 1e-4}
        opened = AutoModelForCausalLM.from_pretrained(out)
        assert opened.config.vocab_size >= len(AutoTokenizer.from_pretrained(out))
        torch.testing.assert_close(logits(opened).float(), trained[-1].float(), **near)
    moved = Path(shutil.move(out, tmp_path / "moved"))
    close(logits(SpeechGPT.from_pretrained(moved, dtype="float32").model), logits(opened.float()))
    assert find_base(moved) == str(moved / "base")


# --- what is not written as it was trained


def damaged(model, folder: Path, state_dict=None, usual=UnitOpened.save) -> None:
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights["model.layers.1.mlp.down_proj.weight"] *= -1
    model.save_pretrained(folder, state_dict=weights)


def test_a_folder_that_scores_otherwise_is_not_finished(run, monkeypatch) -> None:
    monkeypatch.setattr(Opened, "save", lambda self, *args, **named: damaged(*args, **named))
    config = stage_config(run, model="tied", out="wrong", training=FAST, **CHAT)
    with pytest.raises(WrittenModelError, match=r"loss \d\.\d+ by the written folder, \d\.\d+ by the trained model"):
        train(config)
    left = {path.name for path in (run / "wrong").iterdir()}
    assert not left & {"config.json", "model.safetensors", "speechgpt.json"}
    monkeypatch.undo()
    assert (train(config) / "speechgpt.json").exists()  # from its last checkpoint


def test_without_held_out_documents_training_documents_are_scored(run, monkeypatch, capsys) -> None:
    train(stage_config(run, model="tied", out="none_held", dev_documents=0, training=FAST, **CHAT))
    assert "4 documents: loss" in capsys.readouterr().out


@pytest.mark.parametrize("half", [False, True])
def test_the_written_model_is_scored_in_the_precision_of_training(run, monkeypatch, half: bool) -> None:
    """float32 beside bfloat16 cost SmolLM2 .15 nats a token: a finished model was refused."""
    halved: list[bool] = []

    def spy(*args) -> list[float]:
        halved.append(torch.is_autocast_enabled("cpu"))
        return scores(*args)

    monkeypatch.setattr(stages.written, "scores", spy)
    training = {**FAST, "max_steps": 2, "bf16": half}
    train(stage_config(run, model="tied", out=f"half_{half}", training=training, **CHAT))
    assert halved == [half]


def test_a_tokenizer_that_is_written_otherwise_is_refused(run, monkeypatch) -> None:
    usual = stages.finished._write

    def other(trainer, opened, system, part) -> None:
        usual(trainer, opened, system, part)
        path = part / "tokenizer.json"
        state = json.loads(path.read_text())
        state["added_tokens"] = state["added_tokens"][:-1]
        path.write_text(json.dumps(state))

    monkeypatch.setattr(stages.finished, "_write", other)
    with pytest.raises(WrittenModelError, match="tokenizer in .* words"):
        train(stage_config(run, model="tied", out="other_words", training={"max_steps": 1}, **CHAT))


def test_another_system_is_checked_too(run, monkeypatch, tmp_path) -> None:
    write_spoken_set(run / "spoken")
    config = stage_config(
        run,
        model="text_llm",
        out="tiny",
        widen=None,
        trainable=["adapter"],
        data=[Source("spoken/spoken.jsonl")],
        samples=0,
        training=FAST,
    )
    usual = TinyOpened.save

    def silent(self, model, folder, state_dict=None) -> None:
        usual(self, model, folder, state_dict)
        path = folder / "adapter.safetensors"
        save_file({name: weight * 0 for name, weight in load_file(path).items()}, path)

    monkeypatch.setattr(TinyOpened, "save", silent)
    with pytest.raises(WrittenModelError, match="by the written folder"):
        train(config, TinySystem())
    monkeypatch.undo()
    assert (train(config, TinySystem()) / "speechgpt.json").exists()


def test_save_and_load_are_overridden_together() -> None:
    with pytest.raises(TypeError, match="Half overrides one of save and load"):
        type("Half", (Opened,), {"save": lambda *args: None})

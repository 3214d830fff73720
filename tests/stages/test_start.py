"""Where a stage starts: the order of checks, models from the hub, and how the weights are loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from tiny_run import CODEBOOK, make_run, stage_config
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, MptConfig

from stages import start
from stages.config import Lora, StageConfig
from stages.packing.attention import VARLEN
from stages.planning.plan import memory
from stages.start import find_start, loading_arguments
from stages.train import train
from stages.trainable import choose_trainable
from stages.unit_system.opened import UnitOpened
from stages.unit_system.start import open_start
from stages.unit_system.system import UNIT_SYSTEM


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run folder with stage 1 trained in it."""
    run = make_run(tmp_path_factory.mktemp("built"))
    train(stage_config(run, training={"max_steps": 1}))
    return run


def second(run: Path, model: str) -> StageConfig:
    return stage_config(run, stage="stage2", model=model, out="stage2", widen=None)


@pytest.mark.parametrize("name", ["codebook.json", "centres.safetensors"])
def test_a_missing_unit_encoder_is_reported_before_the_model_is_opened(tmp_path, monkeypatch, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "unit_encoder" / name).unlink()
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(FileNotFoundError, match=f"unit_encoder has no {name}.*python -m units.encoder.fit --manifest"):
        train(stage_config(run))


@pytest.mark.parametrize("kind", [BloomConfig, MptConfig, MambaConfig])
def test_a_model_that_counts_no_positions_is_refused_before_it_is_opened(tmp_path, monkeypatch, kind) -> None:
    run = make_run(tmp_path / "run")
    kind().save_pretrained(run / "text_llm")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    name = kind.model_type
    with pytest.raises(ValueError, match=f"text_llm: the config of a {name} model has no max_position_embeddings"):
        train(stage_config(run))


def test_a_model_with_units_comes_whole_from_the_hub(run, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: asked.append(name) or str(run / "stage1"))
    _, tokenizer, codebook = open_start(second(run, "someone/speechgpt"))
    assert asked == ["someone/speechgpt"] and codebook == CODEBOOK and "<3>" in tokenizer.get_vocab()
    assert (
        find_start(stage_config(run, model="someone/llama"), whole=False) == "someone/llama"
    )  # a text LLM: transformers fetches it
    assert len(asked) == 1


def test_a_model_that_the_hub_does_not_have_is_refused(run) -> None:
    with pytest.raises(
        FileNotFoundError, match="no folder .*someone/other, and the hub gave none .*hf download someone/"
    ):
        train(second(run, "someone/other"))
    with pytest.raises(FileNotFoundError, match="Train it first"):
        train(second(run, "a name that no hub has"))


@pytest.mark.parametrize(
    ("capability", "precision", "flash"),
    [
        ((8, 0), "bf16", True),
        ((9, 0), "fp16", True),
        ((7, 5), "fp16", False),
        ((7, 0), "bf16", False),
        ((9, 0), None, False),
    ],
)
def test_flash_attention_is_taken_where_it_runs(monkeypatch, capability, precision: str | None, flash: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(start, "is_flash_attn_2_available", lambda: True)
    loading = loading_arguments(stage_config(Path("runs")), arguments_of(precision))
    assert (loading.get("attn_implementation") == "flash_attention_2") == flash


@pytest.mark.parametrize(
    ("capability", "precision", "found"),
    [(None, "bf16", "no GPU"), ((7, 5), "fp16", "one of 7.5"), ((9, 0), None, "float32"), ((8, 0), "bf16", None)],
)
def test_varlen_is_refused_where_it_does_not_run(
    monkeypatch, capability, precision: str | None, found: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    config = stage_config(Path("runs"), attention=VARLEN)
    if found is None:
        assert loading_arguments(config, arguments_of(precision))["attn_implementation"] == VARLEN
        return
    with pytest.raises(ValueError, match=f"varlen needs a GPU of compute capability 8.0.*{found}.*attention: auto"):
        loading_arguments(config, arguments_of(precision))


@pytest.mark.parametrize(("precision", "computed"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_few_bits_compute_in_the_run_s_half_precision(monkeypatch, precision: str, computed: torch.dtype) -> None:
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda *_: True)
    loading = loading_arguments(stage_config(Path("runs"), lora=Lora(bits=4)), arguments_of(precision))
    assert loading["quantization_config"].bnb_4bit_compute_dtype == computed


def arguments_of(precision: str | None, deepspeed: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(bf16=precision == "bf16", fp16=precision == "fp16", deepspeed=deepspeed)


@pytest.mark.parametrize("precision", ["bf16", "fp16", None])
@pytest.mark.parametrize("deepspeed", ["zero2", None])
@pytest.mark.parametrize("lora", [Lora(), None])
def test_weights_are_loaded_as_the_plan_counts_them(run, precision, deepspeed, lora) -> None:
    training = {"deepspeed": deepspeed} | ({precision: True} if precision else {})
    config = stage_config(run, lora=lora, training=training)
    size = UNIT_SYSTEM.size(config, None)
    loaded = loading_arguments(config, arguments_of(precision, deepspeed))["dtype"]
    assert memory(config, size, 2)["weights"] == loaded.itemsize * size.parameters


def test_adapters_on_fp16_weights_learn_in_fp32(run) -> None:
    config = stage_config(run, model="stage1", widen=None, lora=Lora())
    model, _, _ = open_start(config, **loading_arguments(config, arguments_of("fp16")))
    model = choose_trainable(model, config, UnitOpened.parts)
    kinds = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert model.base_model.model.dtype == torch.float16 and kinds == {torch.float32}

"""The plan: the paper's tokens, a model's true size, and changes after which it fits."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from stage_configs import CONFIGS, parsed
from tiny_run import make_run, stage_config
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stages.config import Lora, Source, StageConfig, Widening
from stages.planning.cluster import Cluster
from stages.planning.hardware import GPUS, find_gpu, multiplying_parameters, this_gpu, train_flops
from stages.planning.page import host_rows, rows
from stages.planning.plan import Plan, make_plan, memory
from stages.train import main
from stages.trainable import add_adapters, choose_trainable
from stages.unit_system.opened import UnitOpened
from stages.unit_system.start import open_start
from stages.unit_system.system import UNIT_SYSTEM
from units.runtime.command import WRONG_CALL


def preset(monkeypatch, name: str) -> tuple[StageConfig, Path]:
    file = CONFIGS / f"{name}.yaml"
    return parsed(monkeypatch, str(file)), file


def planned(config: StageConfig, cluster: Cluster, file: Path) -> Plan:
    return make_plan(config, UNIT_SYSTEM.size(config, file), cluster)


def test_13b_on_96_gpus_is_the_paper_s_budget(monkeypatch) -> None:
    tokens = {"stage1": (768 * 1024, 900), "stage2": (1536 * 512, 2100)}
    for stage, (per_step, steps) in tokens.items():
        config, file = preset(monkeypatch, f"13b/{stage}")
        plan = planned(config, Cluster(96, "A100-80G", 0.4), file)
        assert (plan.tokens_per_step, plan.steps, plan.tokens) == (per_step, steps, per_step * steps)
        assert (
            plan.fits and plan.size.parameters == 13_015_864_320 + 2 * 1024 * 5120
        )  # Llama-13B, and 1,024 new rows twice
        # 6 operations a parameter and token, and no attention, would take as long at least
        least = 6 * 12.8e9 * plan.tokens / (96 * 312e12 * 0.4) / 3600
        assert plan.hours is not None and least < plan.hours < 1.2 * least
    config, file = preset(monkeypatch, "13b/stage3")  # whose 128 blocks, by 4, do not divide among 96
    plan = planned(config, Cluster(96), file)
    assert (plan.gpus, plan.accumulation, plan.tokens_per_step) == (32, 1, 128 * 1024)
    assert any("do not divide among 96 GPUs: start this stage on 32" in warning for warning in plan.warnings)
    assert planned(config, Cluster(8), file).tokens_per_step == 128 * 1024


def test_the_command_prints_it(capsys) -> None:
    main([str(CONFIGS / "13b/stage1.yaml"), "--plan", "--gpus", "96", "--gpu", "A100-80G"])
    printed = capsys.readouterr().out
    assert "768 blocks of 1,024 = 786,432 tokens: 4 a GPU x 2 passes x 96 GPUs" in printed
    assert "900 steps, 707,788,800 tokens" in printed
    assert re.search(r"[\d.]+ hours at 40% MFU", printed) and "DOES NOT FIT" not in printed
    for part in ("weights", "gradients", "Adam", "activations", "logits"):
        assert part in printed


@pytest.mark.parametrize("gpu", ["32G", "V100-32G"])
def test_7b_on_8_gpus_of_32_gb_fits_after_the_suggested_changes(monkeypatch, capsys, gpu: str) -> None:
    file = str(CONFIGS / "7b/stage1.yaml")
    main([file, "--plan", "--gpus", "8", "--gpu", gpu])
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    options = re.search(r"change +(--.*?)   ", printed)[1].split()
    main([file, "--plan", "--gpus", "8", "--gpu", gpu, *options])
    after = capsys.readouterr().out
    assert "DOES NOT FIT" not in after
    assert "768 blocks of 1,024 = 786,432 tokens" in after  # and learns the same
    if gpu == "V100-32G":
        assert "has no bf16: --training.bf16 false --training.fp16 true" in printed


def test_every_preset_fits_on_the_gpus_that_its_file_names(monkeypatch) -> None:
    for size, gpus, gpu in (("7b", 96, "A100-80G"), ("13b", 96, "A100-80G"), ("1b", 1, "RTX3090-24G")):
        for stage in ("stage1", "stage2", "stage3"):
            config, file = preset(monkeypatch, f"{size}/{stage}")
            assert planned(config, Cluster(8 if stage == "stage3" and gpus > 1 else gpus, gpu), file).fits


def test_a_plan_reports_that_nothing_helps(monkeypatch, capsys) -> None:
    config, file = preset(monkeypatch, "13b/stage1")
    smaller = planned(config, Cluster(8, "T4-16G"), file).changes
    assert smaller is not None and smaller["deepspeed"] == "zero3_offload"
    changed = dataclasses.replace(config, training={**config.training, **smaller})
    assert planned(changed, Cluster(8, "T4-16G"), file).fits
    assert planned(config, Cluster(1, "3G"), file).changes is None
    main([str(file), "--plan", "--gpus", "1", "--gpu", "3G"])
    assert "nothing helps: more GPUs, larger ones, or a smaller model" in capsys.readouterr().out


def test_more_sharding_needs_less_memory_and_more_blocks_need_more(monkeypatch) -> None:
    config, file = preset(monkeypatch, "7b/stage1")
    size = UNIT_SYSTEM.size(config, file)

    def total(**training) -> float:
        changed = dataclasses.replace(config, training={**config.training, **training})
        return sum(memory(changed, size, 8).values())

    needs = [total(deepspeed=name) for name in (None, "zero1", "zero2", "zero3", "zero3_offload")]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] > needs[1] > total(deepspeed=None, fsdp=True)  # which shards all three, the weights in fp32
    assert total(per_device_train_batch_size=16) > total() > total(per_device_train_batch_size=4)
    assert total(gradient_checkpointing=False) > total()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("planned"))


@pytest.mark.parametrize("lora", [None, Lora(r=3)])
def test_parameters_are_those_of_the_model_itself(run, lora: Lora | None) -> None:
    config = stage_config(run, widen=Widening("unit_encoder", "random"), lora=lora)
    size = UNIT_SYSTEM.size(config, None)
    model, _, _ = open_start(config)
    assert size.parameters == model.num_parameters() and not size.notes
    if lora:
        model = add_adapters(model, lora)
        assert size.learning == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def test_the_plan_names_data_that_are_not_there_yet(run) -> None:
    config = stage_config(run)
    plan = make_plan(config, UNIT_SYSTEM.size(config, None), Cluster(1))
    assert "data" not in dict(rows(config, Cluster(1), plan))
    config.data.append(Source("data/text.jsonl.gz"))
    assert dict(rows(config, Cluster(1), plan))["data"] == f"not in {run} yet: data/text.jsonl.gz"


@pytest.mark.parametrize("model", ["somebody/no-such-llm", "no such name", "stage2"])
def test_a_plan_for_a_model_that_does_not_exist_names_it(run, capsys, model: str) -> None:
    options = ["--stage", "stage2", "--model", model, "--out", "s", "--data", "[{path: units/train}]"]
    with pytest.raises(SystemExit) as ended:
        main.cli([*options, "--run", str(run), "--training", "{max_steps: 4}", "--plan"])
    assert ended.value.code == WRONG_CALL
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line]
    assert model in line and ("hf download" in line or f"train {model} first" in line)


def test_a_stage_not_trained_yet_is_planned_by_its_neighbour(run, tmp_path) -> None:
    one, two = tmp_path / "stage1.yaml", tmp_path / "stage2.yaml"
    one.write_text("stage: stage1\nmodel: text_llm\nout: stage1\nwiden: {encoder: unit_encoder}\ndata: []\n")
    two.write_text("out: stage2\n")
    config = stage_config(run, stage="stage2", model="stage1", out="stage2", widen=None)
    words = UNIT_SYSTEM.size(config, two).rows
    assert words == UNIT_SYSTEM.size(stage_config(run), one).rows
    assert words > AutoModelForCausalLM.from_pretrained(run / "text_llm").config.vocab_size


def test_gpus_are_found_by_name_and_by_what_cuda_calls_them() -> None:
    assert find_gpu("a100-80g") is GPUS["A100-80G"] and find_gpu("48G").tflops is None
    with pytest.raises(ValueError, match="'P100' is not known; it is one of .*A100-80G"):
        find_gpu("P100")
    for name, gib, expected in (
        ("NVIDIA A100-SXM4-80GB", 79.1, "A100-80G"),
        ("NVIDIA A100-PCIE-40GB", 39.4, "A100-40G"),
        ("NVIDIA H200", 139.7, "H200-141G"),
        ("NVIDIA GeForce RTX 3090", 23.7, "RTX3090-24G"),
        ("NVIDIA L4", 22.0, "L4-24G"),
        ("NVIDIA RTX A6000", 47.5, "A6000-48G"),
        ("Tesla V100-SXM2-32GB", 31.7, "V100-32G"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100-80G"),
        ("NVIDIA H100 PCIe", 79.6, "H100-PCIE-80G"),
        ("NVIDIA H100 NVL", 93.6, "H100-NVL-94G"),
        ("NVIDIA H200 NVL", 139.7, "H200-NVL-141G"),
    ):
        assert this_gpu(name, gib).name == expected
    assert this_gpu("NVIDIA Quadro 4000", 2.0) is None


def test_only_trained_weights_need_weight_gradients(run) -> None:
    assert train_flops(10, 0, 0, 0) == 60 and train_flops(10, 2, 3, 4.5) == 60 + 6 * 2 * 3 * 4.5
    for changes in ({}, {"trainable": "embeddings"}, {"lora": Lora(r=3)}):
        config = stage_config(run, widen=Widening("unit_encoder", "random"), **changes)
        size = UNIT_SYSTEM.size(config, None)
        model = choose_trainable(open_start(config)[0], config, UnitOpened.parts)
        assert size.updated == multiplying_parameters(model, learning=True)
        head = model.get_output_embeddings().weight.numel()
        added = size.learning if config.lora else 0
        assert multiplying_parameters(model) == size.multiplying + added
        assert size.updated == (head if changes.get("trainable") else added or size.multiplying)
    untied = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=9,
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=4,
            tie_word_embeddings=False,
        )
    )
    for weight in untied.model.layers.parameters():
        weight.requires_grad_(False)
    untied.model.norm.weight.requires_grad_(False)
    assert multiplying_parameters(untied, learning=True) == 9 * 4  # the output embedding; input rows are only looked up
    whole = multiplying_parameters(untied)
    projection = untied.model.layers[0].self_attn.q_proj
    projection.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    projection.weight.quant_state = SimpleNamespace(shape=torch.Size([4, 4]))  # as bitsandbytes packs 16 weights
    assert multiplying_parameters(untied) == whole


def test_a_plan_advises_against_checkpointing_where_memory_suffices(monkeypatch, capsys) -> None:
    file = str(CONFIGS / "1b/stage1.yaml")
    main([file, "--plan", "--gpus", "1", "--gpu", "H100-80G"])
    printed = capsys.readouterr().out
    assert "a step a quarter shorter: --training.gradient_checkpointing false" in printed
    least = float(re.search(r"without gradient checkpointing it would be ([\d.]+) GiB", printed)[1])
    main([file, "--plan", "--gpus", "1", "--gpu", "H100-80G", "--training.gradient_checkpointing", "false"])
    printed = capsys.readouterr().out
    assert (
        float(re.search(r"memory per GPU +([\d.]+) GiB", printed)[1]) == least
        and "without gradient checkpointing" not in printed
    )
    main([file, "--plan", "--gpus", "1", "--gpu", "16G", "--training.per_device_train_batch_size", "16"])
    assert "without gradient checkpointing" not in capsys.readouterr().out


def test_host_memory_is_counted_for_all_processes_of_a_machine(monkeypatch) -> None:
    config, file = preset(monkeypatch, "13b/stage1")
    sharded = dataclasses.replace(config, training={**config.training, "deepspeed": None, "fsdp": True})
    printed = dict(host_rows(sharded, planned(sharded, Cluster(96), file)))["host memory"]
    assert (
        printed == "49 GiB for each GPU while the model is loaded: 388 on a machine of 8; zero3 loads a share on each"
    )
    assert "host memory" not in dict(host_rows(config, planned(config, Cluster(96), file)))  # zero3
    config, file = preset(monkeypatch, "1b/stage3")
    printed = dict(host_rows(config, planned(config, Cluster(1), file)))["host memory"]
    assert printed == "2 GiB for each GPU while the model is loaded"  # half precision, as adapters are trained

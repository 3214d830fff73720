"""The attention of each kind of causal LLM: ours refuses what it does not compute, and auto finds one that is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from tiny_run import make_run, stage_config
from transformers import AutoModelForCausalLM, AutoTokenizer
from varlen_reference import varlen_attn

from stages.config import Source
from stages.packing.attention import BY_DOCUMENT, VARLEN, AttentionError, by_document, varlen
from stages.packing.check import check_attention, check_packing, choose_attention, differences, set_attention
from stages.train import train

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, **IDS}
SHAPE |= {"max_position_embeddings": 128}
FEW = {"num_key_value_heads": 1}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 128, **IDS}
LATENT = {
    "num_key_value_heads": 2,
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 2,
}
LOCAL = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8}

# name: (config, its settings, the attention that auto finds on a CPU)
KINDS = {
    "llama": (hf.LlamaConfig, {**SHAPE, **FEW}, BY_DOCUMENT),
    "qwen3": (hf.Qwen3Config, {**SHAPE, **FEW, "head_dim": 16}, BY_DOCUMENT),
    "phi3": (hf.Phi3Config, {**SHAPE, **FEW, "sliding_window": 8}, BY_DOCUMENT),
    "gemma3": (hf.Gemma3TextConfig, {**SHAPE, **FEW, "head_dim": 16, "sliding_window": 8}, BY_DOCUMENT),
    "deepseek_v3": (hf.DeepseekV3Config, {**SHAPE, **LATENT}, BY_DOCUMENT),
    "gemma2": (
        hf.Gemma2Config,
        {**SHAPE, **FEW, "head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 2.0},
        "eager",
    ),
    "gpt-oss": (hf.GptOssConfig, {**SHAPE, **FEW, **EXPERTS, "head_dim": 16, "sliding_window": 8}, "eager"),
    "gptj": (
        hf.GPTJConfig,
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 128, **IDS},
        "eager",
    ),
    "gpt_neo": (hf.GPTNeoConfig, {"hidden_size": 32, "max_position_embeddings": 128, **LOCAL, **IDS}, "eager"),
    "falcon": (hf.FalconConfig, {**FALCON, "alibi": False}, "sdpa"),
}
OF_ISSUE = ("deepseek_v3", "gemma2", "gpt-oss", "gptj", "gpt_neo", "falcon")


def model_of(kind: str, vocab: int = 64, **loading):
    make, settings, _ = KINDS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make(vocab_size=vocab, **settings), **loading).eval()
    with torch.no_grad():  # as initialised, attention hardly matters
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name and "wte" not in name:
                weight.mul_(6)
            if "sink" in name:
                weight.fill_(2.0)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_auto_finds_an_attention_that_is_right(kind: str) -> None:
    model = model_of(kind)
    set_attention(model, BY_DOCUMENT)
    choose_attention(model, half=False)
    assert model.config._attn_implementation == KINDS[kind][2]
    check_packing(model)
    check_attention(model)
    ids = [torch.randint(3, 60, (length,), generator=torch.manual_seed(1)) for length in (5, 20, 9)]
    positions = torch.cat([torch.arange(len(one)) for one in ids])[None]
    with torch.no_grad():
        packed = model(input_ids=torch.cat(ids)[None], position_ids=positions, use_cache=False).logits[0]
        usual = model_of(kind)  # in the attention that transformers chooses
        alone = torch.cat([usual(input_ids=one[None], use_cache=False).logits[0] for one in ids])
    torch.testing.assert_close(packed, alone, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("kind", ["gemma2", "gpt-oss"])
@pytest.mark.parametrize("attention", [BY_DOCUMENT, VARLEN])
def test_an_attention_of_ours_refuses_what_it_does_not_compute(monkeypatch, kind: str, attention: str) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    model = model_of(kind, attn_implementation=attention)
    named = {"gemma2": "softcap", "gpt-oss": "s_aux"}[kind]
    with pytest.raises(AttentionError, match=f"needs {named}, which attention: {attention} does not compute"):
        check_packing(model)
    with pytest.raises(AttentionError, match=named):  # in generation too
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)


@pytest.mark.parametrize("attend", [by_document, varlen])
@pytest.mark.parametrize("given", [{"position_bias": torch.ones(1)}, {"is_causal": False}, {"anything": 0}])
def test_any_argument_of_unknown_effect_is_refused(attend, given) -> None:
    parts = torch.randn(3, 1, 2, 4, 8)
    with pytest.raises(AttentionError, match=next(iter(given))):
        attend(torch.nn.Module(), *parts, None, position_ids=torch.arange(4)[None], **given)
    plain, _ = attend(torch.nn.Module(), *parts, None, position_ids=torch.arange(4)[None], is_causal=True, s_aux=None)
    assert plain.shape == (1, 4, 2, 8)


def test_varlen_takes_values_of_another_width(monkeypatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    model = model_of("deepseek_v3", attn_implementation=VARLEN)
    check_packing(model)
    check_attention(model)


@pytest.mark.parametrize(("wrong", "half"), [("scale", False), ("gradient", False), ("gradient", True)])
def test_an_attention_that_computes_something_else_is_found(monkeypatch, wrong: str, half: bool) -> None:
    usual = by_document

    def other(module, query, key, value, *args, **named):
        found, _ = usual(module, query * 1.5 if wrong == "scale" else query, key, value, *args, **named)
        return found if wrong == "scale" else found.detach() + 0 * found, None

    hf.AttentionInterface.register("other", other)
    model = model_of("llama", attn_implementation="other")
    check_packing(model)
    what = {"scale": "scores", "gradient": "gradients"}[wrong]
    with pytest.raises(AttentionError, match=f"LlamaForCausalLM with other attention .* the {what} of packed"):
        check_attention(model, half)
    assert model.config._attn_implementation == "other"
    choose_attention(model, half)
    assert model.config._attn_implementation == "sdpa"


def test_a_token_that_is_rounding_alone_is_not_compared() -> None:
    """Gradients of the tokens that all others attend to may move by more than their size in half precision."""
    own = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    rounded = [own * 1.05, own * 0.97]
    rounded[1][3] *= -2
    off, allowed = differences(own * torch.where(torch.arange(20) == 3, 5.0, 1.02)[:, None], own, rounded)
    assert off == pytest.approx(0.02, rel=1e-3) and allowed == pytest.approx(0.15, rel=1e-3)
    wrong = own.clone()
    wrong[7] *= 8
    assert differences(wrong, own, rounded)[0] > allowed
    assert not differences(own * torch.nan, own, rounded)[0] <= allowed
    assert differences(wrong, own, [])[1] == 1e-3


MACHINE_ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.distributed.DistBackendError("NCCL error"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)
MISFITS = (
    RuntimeError("FlashAttention forward only supports head dimension at most 256"),
    NotImplementedError("no kernel for this device"),
    TypeError("got an unexpected keyword argument"),
    IndexError("index out of range"),
    AttentionError("this model needs sinks"),
)


@pytest.mark.parametrize("error", [*MACHINE_ERRORS, *MISFITS], ids=lambda error: str(error)[:30])
def test_auto_goes_on_after_a_misfit_only(monkeypatch, error: Exception) -> None:
    def failing(*args, **named) -> None:
        raise error

    hf.AttentionInterface.register("failing", failing)
    model = model_of("llama", attn_implementation="failing").train()
    hooks = len(model._forward_pre_hooks)
    if any(error is one for one in MACHINE_ERRORS):
        with pytest.raises(type(error)) as raised:
            choose_attention(model, half=False)
        assert raised.value is error
        assert model.config._attn_implementation == "failing"
    else:
        choose_attention(model, half=False)
        assert model.config._attn_implementation == "sdpa"
    assert model.training and len(model._forward_pre_hooks) == hooks


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("built"))


@pytest.mark.parametrize("kind", OF_ISSUE)
def test_a_stage_on_a_cpu_trains(run, kind: str, capsys) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    model_of(kind, len(tokenizer)).save_pretrained(run / kind)
    tokenizer.save_pretrained(run / kind)
    out = train(stage_config(run, model=kind, out=f"{kind}_stage1"))
    printed = capsys.readouterr().out
    assert ("attention: auto is" in printed) == kind.startswith(("gemma2", "gpt-oss", "falcon"))
    losses = [record["loss"] for record in map(json.loads, (out / "log.jsonl").open()) if "loss" in record]
    assert len(losses) == 4
    following = stage_config(
        run, stage="stage2", model=out.name, out=f"{kind}_stage2", widen=None, data=[Source("data/chat.jsonl.gz")]
    )
    assert (train(following) / "speechgpt.json").exists()


@pytest.mark.parametrize(("kind", "named"), [("gpt-oss", "s_aux"), ("gemma2", "softcap")])
def test_a_named_attention_that_does_not_fit_ends_the_stage(run, kind: str, named: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    model_of(kind, len(tokenizer)).save_pretrained(run / f"named_{kind}")
    tokenizer.save_pretrained(run / f"named_{kind}")
    with pytest.raises(AttentionError, match=named):
        train(stage_config(run, model=f"named_{kind}", out=f"named_{kind}_1", attention=BY_DOCUMENT))


def test_alibi_is_refused_before_the_model_is_opened(tmp_path, monkeypatch) -> None:
    run = make_run(tmp_path / "run")
    hf.FalconConfig(**FALCON, alibi=True).save_pretrained(run / "text_llm")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match="text_llm: the config of a falcon model .* alibi"):
        train(stage_config(run))

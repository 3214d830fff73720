"""Packed is unpacked: for each architecture and each way to attend, a document in a block scores as it does alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_documents import flat, pack
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids
from varlen_reference import varlen_attn

from stages.held_out import token_losses
from stages.packing.attention import BY_DOCUMENT, VARLEN, any_length, bounds, takes_bounds, varlen
from stages.packing.blocks import PackedBlocks, best_fit, flattened
from stages.packing.check import PackingCheck, check_packing

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
KINDS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama tied, grouped": LlamaConfig(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "llama 3": LlamaConfig(
        **SHAPE,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen2 tied": Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, num_key_value_heads=1, tie_word_embeddings=False),
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=None),
    "mistral, sliding": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=6),
    "gemma tied": GemmaConfig(**SHAPE, head_dim=8, num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2 tied": GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}


def model_of(kind: str, attention: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind], attn_implementation=attention).eval()
    with torch.no_grad():  # as initialised, attention hardly matters
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(5)
    return model


def corpus() -> tuple[list[list[int]], list[list[bool]], PackedBlocks]:
    """Documents, which of their tokens count, and blocks that hold each of them once."""
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 48, n).tolist() for n in (7, 20, 1, 13, 9, 5, 20, 3)]
    train = [(draw.random(len(d)) < 0.7).tolist() for d in documents]
    return documents, train, pack(flat(*documents, train=train), 24, len(best_fit([len(d) for d in documents], 24)))


@torch.no_grad()
def one_by_one(model: PreTrainedModel) -> list[float]:
    losses = []
    for ids, mask in zip(*corpus()[:2], strict=True):
        scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
        each = -scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)]
        losses += each[torch.tensor(mask[1:], dtype=torch.bool)].tolist()
    return losses


@pytest.fixture
def varlen_without_gpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_given_by_their_bounds_score_as_alone(kind: str, varlen_without_gpu) -> None:
    model, (_, _, blocks) = model_of(kind, VARLEN), corpus()
    alone = one_by_one(model_of(kind, "sdpa"))
    with torch.no_grad():
        packed = torch.cat([token_losses(model, block)[0] for block in blocks]).tolist()
        row = model(**flattened(list(blocks)), use_cache=False).loss.item()
    assert sorted(packed) == pytest.approx(sorted(alone), abs=1e-4)
    assert row == pytest.approx(np.mean(alone), abs=1e-5)
    check_packing(model)


def test_bounds_are_those_that_transformers_computes() -> None:
    blocks = list(corpus()[2])
    given = flattened(blocks)
    (starts, again), (longest, _) = prepare_fa_kwargs_from_position_ids(given["position_ids"])
    assert torch.equal(given["cu_seq_lens_q"], starts) and torch.equal(given["cu_seq_lens_k"], again)
    assert given["cu_seq_lens_q"].dtype == torch.int32
    assert given["max_length_q"] == given["max_length_k"] == longest.item() and type(given["max_length_q"]) is int


def test_varlen_refuses_dropout(varlen_without_gpu) -> None:
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(**SHAPE, attention_dropout=0.1), attn_implementation=VARLEN
    ).train()
    with pytest.raises(ValueError, match="varlen has no dropout, and the model's is 0.1; choose another"):
        model(**flattened(list(corpus()[2])), use_cache=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen is a kernel of GPUs")
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_varlen_on_a_gpu_is_sdpa_with_a_mask(window: int | None, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    positions = torch.cat([torch.arange(n) for n in (7, 20, 1, 13, 23)])[None].cuda()
    first = torch.randn(1, 4, 64, 32, device="cuda"), *torch.randn(2, 1, 2, 64, 32, device="cuda")  # two heads a key
    document = (positions == 0).cumsum(1)
    apart = torch.arange(64, device="cuda")[:, None] - torch.arange(64, device="cuda")
    mask = (document[:, :, None] == document[:, None]) & (apart >= 0) & (apart < (window or 64))
    exact = [part.double().requires_grad_() for part in first]
    expected = scaled_dot_product_attention(*exact, attn_mask=mask[:, None], enable_gqa=True).transpose(1, 2)
    parts = [part.to(precision).requires_grad_() for part in first]
    module = torch.nn.Module()
    found, _ = varlen(module, *parts, None, sliding_window=window, **bounds(positions))
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found.double() * weights).sum().backward()
    for part, whole in zip(parts, exact, strict=True):
        torch.testing.assert_close(part.grad.double(), whole.grad, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("attention", ["sdpa", "eager", BY_DOCUMENT])
@pytest.mark.parametrize("kind", KINDS)
def test_the_packed_loss_is_that_of_documents_one_by_one(kind: str, attention: str) -> None:
    model, (_, _, blocks) = model_of(kind, attention), corpus()
    alone = one_by_one(model)
    with torch.no_grad():
        packed = torch.cat([token_losses(model, block)[0] for block in blocks]).tolist()
        batch = {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
        whole = model(**batch, use_cache=False).loss.item()  # the Trainer, too, turns the cache off
        row = model(**flattened(list(blocks)), use_cache=False).loss.item()
    assert sorted(packed) == pytest.approx(sorted(alone), abs=1e-4)
    assert whole == pytest.approx(np.mean(alone), abs=1e-5)
    assert row == pytest.approx(np.mean(alone), abs=1e-5)  # as flash-attention gets it
    check_packing(model)


@pytest.mark.parametrize("attention", ["sdpa", BY_DOCUMENT, VARLEN])
@pytest.mark.parametrize("kind", ["llama", "mistral, sliding"])
def test_gradients_too(kind: str, attention: str, varlen_without_gpu) -> None:
    (documents, train, blocks), model = corpus(), model_of(kind, attention)
    batch = {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
    if takes_bounds(model):
        batch = flattened(list(blocks))
    model(**batch, use_cache=False).loss.backward()
    packed = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    count = sum(sum(mask[1:]) for mask in train)
    for ids, mask in zip(documents, train, strict=True):
        if sum(mask[1:]):
            labels = torch.tensor([[token if counted else -100 for token, counted in zip(ids, mask, strict=True)]])
            (model(input_ids=torch.tensor([ids]), labels=labels).loss * sum(mask[1:]) / count).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(packed[name], weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_flex_attention_too() -> None:
    model, (_, _, blocks) = model_of("llama", "flex_attention"), corpus()
    with torch.no_grad():  # on a CPU it knows no other
        packed = torch.cat([token_losses(model, block)[0] for block in blocks]).tolist()
    assert sorted(packed) == pytest.approx(sorted(one_by_one(model_of("llama", "sdpa"))), abs=1e-4)


class Deaf(torch.nn.Module):
    """A model to which position_ids say nothing."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device

    def forward(self, input_ids, position_ids=None, use_cache=None):
        return self.model(input_ids=input_ids)


def test_a_model_that_ignores_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="lets packed documents attend to each other.*choose another attention"):
        check_packing(Deaf(model_of("llama", "sdpa")))


def test_half_precision_by_document_is_no_worse_than_masked() -> None:
    (_, _, blocks), exact = corpus(), sorted(one_by_one(model_of("llama", "sdpa")))
    off = {}
    for attention in ("sdpa", BY_DOCUMENT):
        model = model_of("llama", attention)
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.cat([token_losses(model, block)[0] for block in blocks]).tolist()
        off[attention] = np.abs(np.sort(found) - exact).mean()
    assert off[BY_DOCUMENT] <= 1.2 * off["sdpa"] < 0.1


def test_a_model_that_keeps_positions_to_itself_gets_a_mask() -> None:
    model = model_of("llama", BY_DOCUMENT)
    for layer in model.model.layers:  # as an architecture would that does not hand position_ids on to attention
        attend = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, attend=attend, position_ids=None, **kwargs: attend(*args, **kwargs)
    PackingCheck("auto").on_train_begin(None, None, None, model=model)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation(BY_DOCUMENT)
    with pytest.raises(ValueError, match="by_document attention lets packed documents attend to each other"):
        PackingCheck(BY_DOCUMENT).on_train_begin(None, None, None, model=model)


def test_generating_by_document_is_generating() -> None:
    prompt = torch.tensor([[5, 6, 7, 8]])
    written = [
        model_of("qwen2 tied", attention).generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0).tolist()
        for attention in ("sdpa", BY_DOCUMENT, VARLEN)
    ]
    assert written[0] == written[1] == written[2]


def test_lengths_are_computed_once_for_all_layers(monkeypatch) -> None:
    looks: list[int] = []
    usual = torch.nonzero
    monkeypatch.setattr(torch, "nonzero", lambda *a, **k: looks.append(1) or usual(*a, **k))
    model, blocks = model_of("llama", BY_DOCUMENT), list(corpus()[2])
    batch = {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
    model(**batch, use_cache=False).loss.backward()
    assert len(looks) == 1
    once = {"input_ids": batch["input_ids"][:2], "position_ids": torch.arange(24)[None]}  # positions for both rows
    with torch.no_grad():
        both = model(**once, use_cache=False).logits
        alone = model(once["input_ids"][:1], position_ids=once["position_ids"], use_cache=False).logits
    torch.testing.assert_close(both[:1], alone)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with any_length():
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before

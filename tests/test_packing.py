"""Packed is unpacked: for each architecture and each way to attend, a document in a block scores as it does alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_stage_data import flat, pack
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

from stages.attention import BY_DOCUMENT
from stages.data import PackedBlocks, best_fit, flattened
from stages.start import PackingCheck, check_packing
from stages.watch import token_losses

SHAPE = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 64}  # fmt: skip
KINDS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "llama tied, grouped": LlamaConfig(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "llama 3": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    "qwen2 tied": Qwen2Config(**SHAPE, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, num_key_value_heads=1, tie_word_embeddings=False),
    "mistral": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=None),
    "mistral, sliding": MistralConfig(**SHAPE, num_key_value_heads=1, sliding_window=6),
    "gemma tied": GemmaConfig(**SHAPE, head_dim=8, num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2 tied": GPT2Config(vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}  # fmt: skip


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


@pytest.mark.parametrize("attention", ["sdpa", BY_DOCUMENT])
@pytest.mark.parametrize("kind", ["llama", "mistral, sliding"])
def test_gradients_too(kind: str, attention: str) -> None:
    (documents, train, blocks), model = corpus(), model_of(kind, attention)
    batch = {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
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


def test_a_model_that_does_not_look_at_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="lets packed documents see one another.*choose another attention"):
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
    with pytest.raises(ValueError, match="by_document attention lets packed documents see one another"):
        PackingCheck(BY_DOCUMENT).on_train_begin(None, None, None, model=model)


def test_generating_by_document_is_generating() -> None:
    prompt = torch.tensor([[5, 6, 7, 8]])
    written = [
        model_of("qwen2 tied", attention).generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0).tolist()
        for attention in ("sdpa", BY_DOCUMENT)
    ]
    assert written[0] == written[1]

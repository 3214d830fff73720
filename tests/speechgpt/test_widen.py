"""Widening a text LLM: old rows stay, new rows are added in the right place with the right scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_run import K, make_run
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from speechgpt.widen import ROW_MULTIPLE, widen
from units.encoder.kmeans import load_centres


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A tiny run folder: its text LLM and its centres."""
    return make_run(tmp_path_factory.mktemp("built"))


def opened(run: Path):
    return AutoTokenizer.from_pretrained(run / "text_llm"), AutoModelForCausalLM.from_pretrained(
        run / "text_llm"
    ).eval()


@pytest.mark.parametrize("init", ["random", "mean", "centres"])
def test_widening_keeps_tokenizer_and_weights(built, init: str) -> None:
    tokenizer, model = opened(built)
    prompt = tokenizer("red is my dog", return_tensors="pt")
    rows, old = len(tokenizer), model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        expected = model(**prompt).logits
    centres = load_centres(built / "unit_encoder/centres.safetensors")
    vocab = widen(tokenizer, model, K, init, centres, seed=1)
    new = model.get_input_embeddings().weight.detach()
    assert torch.equal(new[:rows], old)
    assert len(new) % ROW_MULTIPLE == 0 and len(new) >= len(tokenizer) == rows + K + 9
    assert vocab.first_unit_id == rows and model.config.vocab_size == len(new)
    assert torch.equal(tokenizer("red is my dog", return_tensors="pt")["input_ids"], prompt["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**prompt).logits[..., :rows], expected, atol=1e-6, rtol=0)
    units = new[rows : rows + K]
    assert units.isfinite().all() and len(units.unique(dim=0)) == K
    again, other = opened(built)
    widen(again, other, K, init, centres, seed=1)
    assert torch.equal(other.get_input_embeddings().weight, new)
    with pytest.raises(ValueError, match="has <0> already; widen a text LLM"):
        widen(tokenizer, model, K)


def test_init_centres_places_similar_units_near_each_other(built) -> None:
    tokenizer, model = opened(built)
    centres = torch.randn(K, 6, generator=torch.manual_seed(4))
    centres[1] = centres[0] + 0.01
    vocab = widen(tokenizer, model, K, "centres", centres)
    units = model.get_input_embeddings().weight[vocab.first_unit_id : vocab.first_unit_id + K].detach()
    distances = torch.cdist(units, units)[0]
    assert distances[1] < 0.5 * distances[2:].min()
    with pytest.raises(ValueError, match="needs the 10 centres"):
        widen(*opened(built), K, "centres", centres[:4])


def test_new_rows_have_the_scale_of_their_matrix(built) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built / "text_llm")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            tie_word_embeddings=False,
        )
    )
    matrices = [part.weight.data for part in (model.get_input_embeddings(), model.get_output_embeddings())]
    for weight, deviation in zip(matrices, (1.0, 0.01)):
        weight.normal_(0, deviation)
    vocab = widen(tokenizer, model, 100, "centres", torch.randn(100, 6, generator=torch.manual_seed(4)))
    for part, deviation in zip((model.get_input_embeddings(), model.get_output_embeddings()), (1.0, 0.01)):
        units = part.weight[vocab.first_unit_id : vocab.first_unit_id + 100].detach()
        assert units.std().item() == pytest.approx(deviation, rel=0.2)


@pytest.mark.parametrize(("init", "around"), [("random", "zero"), ("mean", "mean"), ("centres", "mean")])
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_a_scale_is_a_multiple_of_the_deviation_of_the_old_rows(built, init: str, around: str, scale: float) -> None:
    tokenizer, model = opened(built)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.5)  # a mean that is not 0
    old = model.get_input_embeddings().weight[: len(tokenizer)].detach().clone()
    vocab = widen(tokenizer, model, 200, init, torch.randn(200, 6, generator=torch.manual_seed(4)), scale=scale)
    units = model.get_input_embeddings().weight[vocab.first_unit_id : vocab.first_unit_id + 200].detach()
    place = old.mean(0) if around == "mean" else torch.zeros_like(old[0])
    assert (units - place).std().item() == pytest.approx(scale * old.std().item(), rel=0.15, abs=1e-3)
    assert (units - place).mean().abs() < 0.2 * max(scale, 0.05) * old.std()


@pytest.mark.parametrize("scale", [-1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(built, scale: float) -> None:
    with pytest.raises(ValueError, match="scale is .*at least 0"):
        widen(*opened(built), K, "mean", scale=scale)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [K, 100])  # with its markers fewer rows than the filler, and more
@pytest.mark.parametrize("init", ["random", "mean", "centres"])
def test_padding_rows_of_the_base_model_change_nothing(built, init: str, size: int, tied: bool) -> None:
    widened = []
    for filler in (0, 70):
        tokenizer = AutoTokenizer.from_pretrained(built / "text_llm")
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            tie_word_embeddings=tied,
        )
        model = LlamaForCausalLM(config)
        words = len(tokenizer)
        model.resize_token_embeddings(words + filler)
        with torch.no_grad():
            for part in (model.get_input_embeddings(), model.get_output_embeddings()):
                part.weight[words:] = 7.0  # far from any word
        vocab = widen(tokenizer, model, size, init, torch.randn(size, 6, generator=torch.manual_seed(4)))
        assert vocab.first_unit_id == words and model.config.vocab_size % ROW_MULTIPLE == 0
        assert model.config.vocab_size == model.lm_head.out_features < words + size + 9 + ROW_MULTIPLE
        widened.append(model.state_dict())
    plain, padded = widened
    assert plain.keys() == padded.keys() and all(torch.equal(padded[name], plain[name]) for name in plain)

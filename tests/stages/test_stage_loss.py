"""The weighted loss: the Trainer's own at weight 1, less of units below it, and of the counted tokens alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_run import make_run, stage_config

from speechgpt.vocab import UnitVocab
from stages.counted import counted_logits
from stages.packing.attention import takes_one_row
from stages.packing.blocks import load_blocks, stacked
from stages.unit_system.opened import weighted_loss
from stages.unit_system.system import UNIT_SYSTEM

VOCAB = UnitVocab(6, 4, {})  # tokens 0-5 are text, 6-9 units


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([1, 7, 8, 2, 9, 9])
    return torch.randn(6, 12, generator=generator), labels


def test_weight_one_is_the_plain_loss(batch) -> None:
    logits, labels = batch
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert weighted_loss(VOCAB, 1.0, logits, labels, 6).item() == pytest.approx(plain.item(), rel=1e-6)


def test_units_weigh_less_and_text_the_same(batch) -> None:
    logits, labels = batch
    losses = [weighted_loss(VOCAB, weight, logits, labels, 6).item() for weight in (0.0, 0.5, 1.0)]
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-6)
    is_text = labels < VOCAB.first_unit_id
    assert losses[0] == pytest.approx(weighted_loss(VOCAB, 1.0, logits[is_text], labels[is_text], 6).item(), rel=1e-6)


def test_the_count_of_the_whole_batch_divides(batch) -> None:
    logits, labels = batch
    own = weighted_loss(VOCAB, 0.3, logits, labels, 6).item()
    assert weighted_loss(VOCAB, 0.3, logits, labels, 12).item() == pytest.approx(own / 2, rel=1e-6)  # 6 tokens count


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize(
    ("rows", "counted", "size"), [(1, 1, 64), (1, 64, 64), (1, 65, 128), (1, 140, 150), (2, 70, 128), (1, 0, 0)]
)
def test_the_output_layer_has_few_sizes(rows: int, counted: int, size: int, knows: bool) -> None:
    """On CPUs a matrix product is compiled for each new size, and kept. Some models know no logits_to_keep."""
    whole, labels = torch.randn(rows, 150, 8), torch.full((rows, 150), -100)
    labels[:, 1 + torch.randperm(149)[:counted]] = 3
    sizes: list[int] = []

    def model(logits_to_keep: torch.Tensor | slice = slice(None)) -> SimpleNamespace:
        logits = whole[:, logits_to_keep if knows else slice(None)]
        sizes.append(logits.shape[1])
        return SimpleNamespace(logits=logits)

    logits, tokens = counted_logits(model, {}, labels)
    assert sizes == [size if knows else 150] and tokens.tolist() == [3] * (rows * counted)
    assert torch.equal(logits, whole[:, :-1][labels[:, 1:] == 3])


@pytest.mark.parametrize("attention", ["by_document", "sdpa"])
def test_a_stage_has_the_loss_and_the_gradient_of_all_logits(attention: str, tmp_path: Path) -> None:
    """Whether blocks are the rows of a batch or one row, and though logits are computed at counted tokens alone."""
    config = stage_config(make_run(tmp_path), unit_loss_weight=0.3, attention=attention)
    opened = UNIT_SYSTEM.open(config, attn_implementation=attention)
    assert takes_one_row(opened.model) == (attention == "by_document")
    blocks = [load_blocks(opened, 2, quiet=True)[0][number] for number in (0, 1)]
    batch, model = stacked(blocks), opened.model
    batch["labels"][0, :40] = batch["labels"][1, -30:] = -100
    for block, labels in zip(blocks, batch["labels"]):
        block["labels"] = labels

    items = opened.items(batch)
    logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[:, :-1].flatten(0, 1)
    labels = batch["labels"][:, 1:].flatten()
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    expected = (each * torch.where(opened.vocab.is_unit(labels), 0.3, 1.0)).sum() / items
    expected.backward()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    found = opened.loss(model, opened.collator()(blocks), items)
    found.backward()
    assert 0 < items < labels.numel() and found.item() == pytest.approx(expected.item(), rel=1e-5)
    for weight, gradient in zip(model.parameters(), gradients):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)

"""The weighted loss: the Trainer's own at weight 1, less of units below it."""

import pytest
import torch

from speechgpt.vocab import UnitVocab
from stages.unit_system.opened import weighted_loss

VOCAB = UnitVocab(6, 4, {})  # tokens 0-5 are text, 6-9 units


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([[-100, 1, 7, 8, -100], [-100, -100, 2, 9, 9]])
    return torch.randn(2, 5, 12, generator=generator), labels


def test_weight_one_is_the_plain_loss(batch) -> None:
    logits, labels = batch
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert weighted_loss(VOCAB, 1.0, logits, labels, 6).item() == pytest.approx(plain.item(), rel=1e-6)


def test_units_weigh_less_and_text_the_same(batch) -> None:
    logits, labels = batch
    losses = [weighted_loss(VOCAB, weight, logits, labels, 6).item() for weight in (0.0, 0.5, 1.0)]
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-6)
    text_only = labels.clone()
    text_only[text_only >= VOCAB.first_unit_id] = -100
    assert losses[0] == pytest.approx(weighted_loss(VOCAB, 1.0, logits, text_only, 6).item(), rel=1e-6)


def test_the_count_of_the_whole_batch_divides(batch) -> None:
    logits, labels = batch
    own = weighted_loss(VOCAB, 0.3, logits, labels, 6).item()
    assert weighted_loss(VOCAB, 0.3, logits, labels, 12).item() == pytest.approx(own / 2, rel=1e-6)  # 6 tokens count

"""Losses on pairs of replies: how much likelier than in the reference model the chosen one has become than the rejected
one.

    dpo        -log sigmoid(beta * (chosen - rejected))       Rafailov et al. 2023, arXiv 2305.18290, equation 7
    dpo_norm   the same, of means over tokens                 length-normalised: Lambert et al. 2024, arXiv 2411.15124
    ipo        (chosen - rejected - 1 / (2 * beta))**2        Azar et al. 2023, arXiv 2310.12036, equation 17

`chosen` and `rejected` are log-likelihoods of the replies less those of the reference model: sums over tokens in dpo,
means over tokens in the other two. Its authors computed ipo so, though the paper has sums (TRL's dpo_trainer.py).

P pairs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stages.config import Preference


def preference_loss(how: Preference, likelihoods: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
    """Loss of each pair, (P,).

    Args:
        likelihoods: (P, 2) log-likelihoods of the chosen and of the rejected replies, in nats.
        reference: (P, 2), those of the reference model.
        tokens: (P, 2), how many tokens they are sums over.
    """
    gained = likelihoods - reference
    if how.loss != "dpo":
        gained = gained / tokens
    margin = gained[:, 0] - gained[:, 1]
    loss = (margin - 1 / (2 * how.beta)) ** 2 if how.loss == "ipo" else -functional.logsigmoid(how.beta * margin)
    return loss + sft_loss(how, likelihoods, tokens) if how.sft else loss


def sft_loss(how: Preference, likelihoods: Tensor, tokens: Tensor) -> Tensor:
    """`sft` times the negative mean log-likelihood of the chosen replies' tokens, (P,), 0 where there are none;
    arguments as of preference_loss."""
    return -how.sft * likelihoods[:, 0] / tokens[:, 0].clamp(min=1)

"""LLaMA-Omni's model: an LLM that listens, and a speech decoder on its states.

B rows of a batch, L tokens of a row, S answers, U frames of an answer, H width of the LLM, D width of the decoder, K
units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from variants.listening import SpeechLLM
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.decoder import SpeechDecoder


@dataclass(frozen=True)
class Answers:
    """Where answers stand in a batch, and how long they are to be spoken.

    places: int64 (n,), of the tokens of all answers, counted over all rows, row after row. lengths: tokens of each
    answer, n together. frames: U of each answer.
    """

    places: Tensor
    lengths: Sequence[int]
    frames: Sequence[int]


class OmniLLM(SpeechLLM):
    """adapter: the adaptor. decoder: None in stage 1."""

    def __init__(self, llm: PreTrainedModel, adaptor: SpeechAdaptor, decoder: SpeechDecoder | None = None) -> None:
        super().__init__(llm, adaptor)
        self.decoder = decoder

    def forward(
        self,
        input_ids: Tensor,
        states: Tensor | None = None,
        frames: Tensor | None = None,
        places: Tensor | None = None,
        answers: Answers | None = None,
        **kwargs: Any,
    ) -> Any:
        """The LLM's output, or, with answers, the speech decoder's logits of their frames, (S, U, K + 1).

        The state that predicts a token makes its units, in training as in generation. Upstream's unused training code
        takes the state after it.

        Args:
            input_ids, states, frames, places, kwargs: as for SpeechLLM.
        """
        if answers is None:
            return super().forward(input_ids, states, frames, places, **kwargs)
        assert self.decoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._llm_learns):
            hidden = self.last_states(input_ids, states, frames, places, **kwargs)
            before = hidden.flatten(0, 1)[answers.places - 1]
            words = self.get_input_embeddings()(input_ids.flatten()[answers.places])
        return self.decoder(self.decoder.tokens(before, words), answers.lengths, answers.frames)

    @property
    def _llm_learns(self) -> bool:
        return any(part.requires_grad for half in (self.llm, self.adapter) for part in half.parameters())

    def last_states(
        self,
        input_ids: Tensor,
        states: Tensor | None = None,
        frames: Tensor | None = None,
        places: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Last hidden states of the LLM, after its final norm, (B, L, H); arguments as for forward."""
        embeds = self.embed(input_ids, self.sounds(states, frames, places))
        return self.llm.base_model(inputs_embeds=embeds, **kwargs).last_hidden_state

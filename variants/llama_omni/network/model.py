"""LLaMA-Omni's model: an LLM that listens, and a speech decoder on its states.

B rows of a batch, L tokens of a row, n tokens of all answers, H width of the LLM, D width of the decoder.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from variants.listening import SpeechLLM
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.decoder import Answers, SpeechDecoder

Wanted = Literal["loss", "figures", "units"]


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
        wanted: Wanted = "loss",
        **kwargs: Any,
    ) -> Any:
        """The LLM's output, or, with answers, what the speech decoder makes of them.

        Args:
            input_ids, states, frames, places, kwargs: as for SpeechLLM.
            wanted: with answers: their summed loss, sums for figures, or the units that it says of each.
        """
        if answers is None:
            return super().forward(input_ids, states, frames, places, **kwargs)
        assert self.decoder is not None
        tokens = self.answer_tokens(input_ids, answers.places, states, frames, places, **kwargs)
        if wanted == "units":
            return self.decoder.units_of(tokens, answers.lengths)
        return self.decoder.figures(tokens, answers) if wanted == "figures" else self.decoder.loss(tokens, answers)

    def answer_tokens(
        self,
        input_ids: Tensor,
        said: Tensor,
        states: Tensor | None = None,
        frames: Tensor | None = None,
        places: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """What the tokens of answers bring to the speech decoder, (n, D).

        The state that predicts a token makes its units, in training as in generation. Upstream's unused training code
        takes the state after it.

        Args:
            said: int64 (n,), as `places` of Answers. The others: as for forward.
        """
        assert self.decoder is not None
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._llm_learns):
            hidden = self.last_states(input_ids, states, frames, places, **kwargs)
            before = hidden.flatten(0, 1)[said - 1]
            words = self.get_input_embeddings()(input_ids.flatten()[said])
        return self.decoder.tokens(before, words)

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

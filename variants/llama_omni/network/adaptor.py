"""The adaptor: encoder states to input embeddings of the LLM, each of k frames.

    states (S, N, D) -> k frames side by side (S, N // k, k D) -> Linear, ReLU, Linear -> (M, H)

With k = 5, 50 frames a second become 10 embeddings a second.
Source: omni_speech/model/speech_projector of github.com/ictnlp/LLaMA-Omni (c63fd72).

S sounds of a batch, N frames of a sound, D their width, M embeddings of a sound, H width of the LLM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from variants.llama_omni.network.shapes import AdaptorShape


class SpeechAdaptor(nn.Module):
    """A sound gives the same embeddings in any batch: what lies beyond its own frames is never read."""

    def __init__(self, width: int, hidden: int, shape: AdaptorShape = AdaptorShape(), scale: float = 1.0) -> None:
        """
        Args:
            width: of the encoder states, D. hidden: width of the LLM, H.
            scale: multiplies the last layer as it is initialised; 1 as upstream. It makes speech as loud as words.
        """
        super().__init__()
        self.shape, self.width = shape, width
        self.linear1 = nn.Linear(width * shape.rate, shape.inner)
        self.linear2 = nn.Linear(shape.inner, hidden)
        if scale != 1.0:
            with torch.no_grad():
                self.linear2.weight.mul_(scale)
                self.linear2.bias.mul_(scale)

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Embeddings of all sounds, end to end.

        Args:
            states: float (S, N, D), padded at the end. frames: int64 (S,), how many of each sound's are its own.

        Returns: float (sum of M, H).
        """
        rate = self.shape.rate
        sounds, count, _ = states.shape
        if count < rate:  # the silent sound of a batch of text alone, which has one frame
            states = functional.pad(states, (0, 0, 0, rate - count))
            count = rate
        rows = states[:, : count - count % rate].reshape(sounds, count // rate, -1)
        inside = torch.arange(rows.shape[1], device=frames.device) < (frames // rate)[:, None]
        return self.adapt(rows[inside])

    def adapt(self, rows: Tensor) -> Tensor:
        """Rows of k joined frames (..., k D) to embeddings (..., H)."""
        rows = rows.to(self.linear1.weight.dtype)
        return self.linear2(functional.relu(self.linear1(rows)))

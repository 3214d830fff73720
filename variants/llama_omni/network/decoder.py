"""A speech decoder: states of the LLM to units, without waiting for the end of the answer.

    states (A, H), embeddings of the words (A, H) -> tokens (A, D) -> causal Llama layers -> units

What all speech decoders share. Two kinds of them differ in how units follow from tokens: ctc_decoder.py, as LLaMA-Omni,
makes all units of a token at once; autoregressive.py, as LLaMA-Omni2, writes one unit after the other.

S answers of a batch, A tokens of an answer, U rows of the layers, H width of the LLM, D width of the decoder, K units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from variants.llama_omni.network.shapes import DecoderShape, Speaking


@dataclass(frozen=True)
class Answers:
    """The answers in a batch, and the units that say them.

    places: int64 (n,), of the tokens of all answers, counted over all rows, row after row. lengths: tokens of each
    answer, n together. units: int64 (m,), of all answers, end to end. counts: units of each answer, m together.
    """

    places: Tensor
    lengths: Sequence[int]
    units: Tensor
    counts: Sequence[int]


class UnitStream(Protocol):
    """The units of one answer, as its tokens come: together they are those of the whole answer."""

    def push(self, state: Tensor, word: Tensor | None = None) -> list[int]:
        """The units that the next token adds.

        Args:
            state: (H,), which predicts the token. word: (H,), the token's embedding, where the decoder reads words.
        """
        ...

    def finish(self) -> Iterator[int]:
        """The units that are left when there are no more tokens, as they are made."""
        ...


class SpeechDecoder(nn.Module, ABC):
    """Causal layers over tokens: what all kinds share.

    ends: targets of an answer beside its units.
    """

    ends = 0

    def __init__(self, shape: DecoderShape, made_for: Speaking, normed: bool) -> None:
        """
        Args:
            normed: whether there is a norm after the last layer.
        """
        super().__init__()
        self.shape, self.made_for = shape, made_for
        config = LlamaConfig(
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            head_dim=shape.width // shape.heads,
            rms_norm_eps=made_for.epsilon,
            rope_parameters=dict(made_for.rope),
            vocab_size=made_for.units + 1,
        )
        config._attn_implementation = "sdpa"
        hidden, width = made_for.hidden, shape.width
        self.input_proj: nn.Module = nn.Linear(hidden, width)
        if shape.input == "gate":
            self.input_proj = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, width))
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(shape.layers))
        self.output_proj = nn.Linear(width, made_for.units + 1)  # the last one: blank, or the end
        self.rotary = LlamaRotaryEmbedding(config)
        if self.reads_words:
            self.word_proj = nn.Linear(hidden, width, bias=False)
            self.register_buffer("word_scale", torch.ones(()))
        if shape.input == "gate":
            self.gate = nn.Linear(2 * width, width)
        self.norm: nn.Module = LlamaRMSNorm(width, made_for.epsilon) if normed else nn.Identity()

    # --- what each kind does

    @abstractmethod
    def loss(self, tokens: Tensor, answers: Answers) -> Tensor:
        """The summed loss of some answers' units, in float32.

        Args:
            tokens: (n, D), from `tokens`, the answers end to end.
        """

    @abstractmethod
    def figures(self, tokens: Tensor, answers: Answers) -> dict[str, float]:
        """Sums over some answers that are not trained on; `report` makes figures of them. Arguments as for loss."""

    @staticmethod
    @abstractmethod
    def report(sums: Mapping[str, float]) -> dict[str, float]:
        """Figures for the log, from the added sums of `figures`."""

    @abstractmethod
    def units_of(self, tokens: Tensor, lengths: Sequence[int]) -> list[list[int]]:
        """The units of some whole answers.

        Args:
            tokens: (sum of lengths, D), from `tokens`, the answers end to end. lengths: tokens of each answer.
        """

    @abstractmethod
    def stream(self) -> UnitStream:
        """Begin one answer."""

    # --- what they share

    @property
    def reads_words(self) -> bool:
        """Whether it also reads the embedding of the token that a state predicts."""
        return self.shape.input != "state"

    def with_weights_in(self, dtype: torch.dtype) -> SpeechDecoder:
        """Convert the weights; rotary frequencies stay in full precision, or late frames would be misplaced."""
        for name, part in self.named_children():
            if name != "rotary":
                part.to(dtype)
        return self

    @torch.no_grad()
    def take_scale(self, words: Tensor) -> None:
        """Learn how loud word embeddings (V, H) are, so that they start as loud as states.

        A decoder that does not read words ignores this.
        """
        if self.reads_words:
            self.word_scale.copy_(1 / words.float().square().mean().sqrt().clamp(min=1e-6))

    def tokens(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """What each token brings, (..., D).

        With the input `gate`, g state + (1 - g) word, where g = sigmoid(W [state; word]) and both are of width D.
        Source: fusion in llama_omni2/model/speech_generator of github.com/ictnlp/LLaMA-Omni2 (c8afa90), whose word
        embeddings are the decoder's own; here they are the LLM's, in a linear layer.

        Args:
            states: (..., H), of which each predicts a token.
            words: (..., H), embeddings of these tokens; needed where `reads_words`.
        """
        kind = self.output_proj.weight.dtype
        state = self.input_proj(states.to(kind))
        if not self.reads_words:
            return state
        if words is None:
            raise ValueError("this decoder also reads the embeddings of the words that are said")
        word = self.word_proj((words * self.word_scale).to(kind))
        if self.shape.input == "state_and_word":
            return state + word
        return torch.lerp(word, state, torch.sigmoid(self.gate(torch.cat([state, word], dim=-1))))

    def hidden(self, rows: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """What the last layer gives, and the norm after it where there is one, (S, U, D).

        Padding at the end of a row needs no mask: no row attends to a later one.

        Args:
            rows: inputs of the layers (S, U, D). cache: holds the rows before these, and these afterwards.
        """
        before = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(before, before + rows.shape[1], device=rows.device)[None]
        turned = self.rotary(rows, positions)
        mask = None
        if before:  # each row attends to all before it, and to those of its own that are not later
            mask = torch.ones(rows.shape[1], before + rows.shape[1], dtype=torch.bool, device=rows.device).tril(before)
            mask = mask[None, None]
        for layer in self.layers:
            rows = layer(rows, attention_mask=mask, past_key_values=cache, position_embeddings=turned)
        return self.norm(rows)

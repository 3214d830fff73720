"""The speech decoder: states of the LLM to units, without waiting for the end of the answer.

    states (A, H) -> each repeated (U, H) -> Linear (U, D) -> causal Llama layers -> Linear (U, K + 1)

It attends to earlier frames alone, so a token's frames can be decoded as soon as the LLM has chosen the token. With a
cache of keys and values a token costs the same at the end of an answer as at its start, but for attention itself.
There is no norm after the last layer, as upstream.

Source: omni_speech/model/speech_generator of github.com/ictnlp/LLaMA-Omni (c63fd72).

S answers of a batch, A tokens of an answer, U frames, H width of the LLM, D width of the decoder, K units; the blank
is K.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from variants.llama_omni.network.ctc import spread
from variants.llama_omni.network.shapes import DecoderShape, Speaking


class SpeechDecoder(nn.Module):
    """Causal layers over upsampled states."""

    def __init__(self, shape: DecoderShape, made_for: Speaking) -> None:
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
        self.input_proj = nn.Linear(made_for.hidden, shape.width)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config, index) for index in range(shape.layers))
        self.output_proj = nn.Linear(shape.width, made_for.units + 1)
        self.rotary = LlamaRotaryEmbedding(config)
        if shape.input == "state_and_word":
            self.word_proj = nn.Linear(made_for.hidden, shape.width, bias=False)
            self.register_buffer("word_scale", torch.ones(()))

    @property
    def blank(self) -> int:
        return self.made_for.units

    @property
    def reads_words(self) -> bool:
        """Whether it also reads the embedding of the token that a state predicts."""
        return self.shape.input == "state_and_word"

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
        """What each token brings, before it is repeated, (..., D).

        Args:
            states: (..., H), of which each predicts a token.
            words: (..., H), embeddings of these tokens; needed where `reads_words`.
        """
        kind = self.input_proj.weight.dtype
        made = self.input_proj(states.to(kind))
        if not self.reads_words:
            return made
        if words is None:
            raise ValueError("this decoder also reads the embeddings of the words that are said")
        return made + self.word_proj((words * self.word_scale).to(kind))

    def forward(self, tokens: Tensor, lengths: Sequence[int], frames: Sequence[int]) -> Tensor:
        """Logits of all frames of some answers, float (S, U, K + 1); those beyond an answer's frames mean nothing.

        Args:
            tokens: (sum of lengths, D), from `tokens`, the answers end to end.
            lengths: tokens of each answer. frames: of each answer.
        """
        rows = [
            part[spread(length, count).to(part.device)]
            for part, length, count in zip(tokens.split(list(lengths)), lengths, frames)
        ]
        return self.output_proj(self.hidden(nn.utils.rnn.pad_sequence(rows, batch_first=True)))

    def hidden(self, rows: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """What the last layer gives, (S, U, D).

        Padding at the end of a row needs no mask: no frame attends to a later one.

        Args:
            rows: upsampled tokens (S, U, D). cache: holds the frames before these, and these afterwards.
        """
        before = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(before, before + rows.shape[1], device=rows.device)[None]
        turned = self.rotary(rows, positions)
        mask = None
        if before:  # each frame attends to all before it, and to those of its own that are not later
            mask = torch.ones(rows.shape[1], before + rows.shape[1], dtype=torch.bool, device=rows.device).tril(before)
            mask = mask[None, None]
        for layer in self.layers:
            rows = layer(rows, attention_mask=mask, past_key_values=cache, position_embeddings=turned)
        return rows

    def stream(self) -> DecoderStream:
        """Decode one answer token by token."""
        return DecoderStream(self)


class DecoderStream:
    """One answer, decoded as its tokens come: the frames equal those of the whole answer."""

    def __init__(self, decoder: SpeechDecoder) -> None:
        self._decoder, self._cache = decoder, DynamicCache()

    @torch.inference_mode()
    def push(self, state: Tensor, word: Tensor | None = None) -> Tensor:
        """Logits of the frames of the next token, float (upsample, K + 1).

        Args:
            state: (H,), which predicts the token. word: (H,), the token's embedding, where the decoder reads words.
        """
        decoder = self._decoder
        row = decoder.tokens(state, word).expand(1, decoder.shape.upsample, -1)
        return decoder.output_proj(decoder.hidden(row, self._cache))[0]

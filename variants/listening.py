"""A causal LLM that listens: an adapter's embeddings stand in a token row where places are held free for them.

    pieces: [Tokens(ids), Speech, Tokens(ids)]  --row-->  ids with M places for the speech, and where they lie
    SpeechLLM.embed(ids, sounds)                --->      input embeddings: words from the LLM, sounds from the adapter

A place is known by its position, not by its token, so that no text can become a place for speech.

B rows of a batch, L tokens of a row, S sounds, N frames of a sound, D their width, M embeddings of a sound, H width of
the LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from speechgpt.dialogue import Speech
from speechgpt.generation.generate import embedded_draws
from speechgpt.sampling import Sampling


@dataclass(frozen=True)
class Tokens:
    """A part of a row that is text. train: whether the loss counts it."""

    ids: list[int]
    train: bool = False


Piece = Tokens | Speech


@dataclass(frozen=True)
class Row:
    """A conversation as token ids.

    ids: token ids (L,), padding at the places for speech. train: for each, whether the loss counts it. places: where
    the speech stands, in order: of all sounds, one after the other.
    """

    ids: list[int]
    train: list[bool]
    places: list[int]


def row(pieces: Sequence[Piece], embeddings: Sequence[int], pad: int) -> Row:
    """Join pieces.

    Args:
        embeddings: how many places each speech takes, in order.
        pad: the token at these places.

    Raises: ValueError if a speech takes no place: it is too short.
    """
    made = Row([], [], [])
    counts = iter(embeddings)
    for piece in pieces:
        if isinstance(piece, Tokens):
            made.ids.extend(piece.ids)
            made.train.extend([piece.train] * len(piece.ids))
            continue
        count = next(counts)
        if count < 1:
            raise ValueError(f"{piece.audio} is shorter than one speech embedding")
        made.places.extend(range(len(made.ids), len(made.ids) + count))
        made.ids.extend([pad] * count)
        made.train.extend([False] * count)
    return made


@dataclass(frozen=True)
class Sounds:
    """Sounds of a batch, and where they stand.

    states: float (S, N, D), padded at the end. frames: int64 (S,), how many of each sound's are its own. places: int64
    (sum of M,): where each embedding stands, counted over all rows of the batch, row after row.
    """

    states: Tensor
    frames: Tensor
    places: Tensor


def padded(sounds: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Frames of some sounds, each (N, D), as one batch: float (S, N, D) with zeros at the ends, and int64 (S,)."""
    frames = torch.tensor([len(sound) for sound in sounds], device=sounds[0].device)
    return nn.utils.rnn.pad_sequence(list(sounds), batch_first=True), frames


class SpeechLLMConfig(PreTrainedConfig):
    """The config of the LLM, within one of its own."""

    model_type = "speech_llm"

    def __init__(self, llm: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.llm = llm or {}
        super().__init__(**kwargs)


class SpeechLLM(PreTrainedModel):
    """adapter: encoder states and frames to embeddings (sum of M, H). llm: a causal LLM."""

    config_class = SpeechLLMConfig
    _supports_sdpa = _supports_attention_backend = _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, llm: PreTrainedModel, adapter: nn.Module) -> None:
        super().__init__(SpeechLLMConfig(llm.config.to_dict()))
        self.llm = llm
        self.adapter = adapter

    def get_input_embeddings(self) -> Any:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        return self.llm.get_output_embeddings()

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.llm.gradient_checkpointing_enable(*args, **kwargs)

    def embed(self, input_ids: Tensor, sounds: Sounds | None = None) -> Tensor:
        """Input embeddings (B, L, H) of token ids (B, L), with speech at its places."""
        embeds = self.get_input_embeddings()(input_ids)
        if sounds is None and not torch.is_grad_enabled():
            return embeds
        if sounds is None:  # a batch of text alone: processes that average gradients need one of every weight
            silent = embeds.new_zeros(1, 1, self.adapter.width)
            adapted = self.adapter(silent, torch.ones(1, dtype=torch.long, device=embeds.device))
            return embeds + 0 * adapted.sum().to(embeds.dtype)
        adapted = self.adapter(sounds.states, sounds.frames).to(embeds.dtype)
        return embeds.flatten(0, 1).index_copy(0, sounds.places, adapted).view_as(embeds)

    def forward(
        self,
        input_ids: Tensor,
        states: Tensor | None = None,
        frames: Tensor | None = None,
        places: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The LLM's output on token ids (B, L) and sounds: states, frames and places as in Sounds.

        Args:
            kwargs: for the LLM, such as attention_mask and position_ids.
        """
        return self.llm(inputs_embeds=self.embed(input_ids, self.sounds(states, frames, places)), **kwargs)

    @staticmethod
    def sounds(states: Tensor | None, frames: Tensor | None, places: Tensor | None) -> Sounds | None:
        """The sounds of a batch; None for one of text alone."""
        if states is None or frames is None or places is None:
            return None
        return Sounds(states, frames, places)


def draws(
    model: SpeechLLM,
    rows: Sequence[Row],
    states: Sequence[Tensor],
    ends: set[int],
    sampling: Sampling,
    observe: Callable[[Tensor], None] | None = None,
) -> Iterator[list[int | None]]:
    """Draw the next token of each row's reply, step by step: None for a reply that has ended.

    Rows of any lengths run as one batch, and give what each gives alone.

    Args:
        states: (N, D) of each sound, in the order of the rows.
        ends: tokens that end a reply.
        observe: is given the states (B, H) that predict the tokens of each step (speechgpt/generation/generate.py).

    Raises: ValueError if a row leaves no room in the LLM's context.
    """
    length = max(len(one.ids) for one in rows)
    places = [
        number * length + length - len(one.ids) + place for number, one in enumerate(rows) for place in one.places
    ]

    def embed(ids: Tensor) -> Tensor:
        if not places:
            return model.embed(ids)
        batch, frames = padded([sound.to(ids.device) for sound in states])
        return model.embed(ids, Sounds(batch, frames, torch.tensor(places, device=ids.device)))

    yield from embedded_draws(model.llm, [one.ids for one in rows], embed, ends, sampling, observe)


def replies(
    model: SpeechLLM, rows: Sequence[Row], states: Sequence[Tensor], ends: set[int], sampling: Sampling
) -> list[list[int]]:
    """Token ids of each row's reply, with the token that ended it; arguments as for `draws`."""
    found: list[list[int]] = [[] for _ in rows]
    for tokens in draws(model, rows, states, ends, sampling) if rows else ():
        for reply, token in zip(found, tokens):
            if token is not None:
                reply.append(token)
    return found


def ends_of(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    """Tokens at which an LLM's replies end.

    Raises: ValueError if neither its tokenizer nor its generation config names one.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    if not found:
        raise ValueError("this LLM has no token that ends a reply: set eos_token in its tokenizer_config.json")
    return found

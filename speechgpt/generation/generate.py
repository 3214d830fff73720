"""Draw replies token by token, under a grammar (speechgpt/generation/grammar.py).

Why not transformers' `generate`: docs/decisions/generation-loop.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from speechgpt.dialogue import Dialogue
from speechgpt.generation.engine import Engine
from speechgpt.generation.grammar import Form, Grammar, grammar_of
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.generation.padding import left_padded
from speechgpt.generation.shared import Draw, check_stop, shared
from speechgpt.sampling import Sampling, loops

LanguageModel: TypeAlias = PreTrainedModel | Engine  # runs here, or in an inference engine


def context_length(model: LanguageModel) -> int:
    """How many tokens a model can hold. Raises ValueError if its config does not state it."""
    if isinstance(model, Engine):
        return model.context
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if length is None:
        raise ValueError(
            f"the config of this {model.config.model_type} has no max_position_embeddings; add it to config.json"
        )
    return length


@torch.inference_mode()
def draws(
    model: LanguageModel, dialogue: Dialogue, prompts: Sequence[list[int]], form: Form | KnownTexts, sampling: Sampling
) -> Iterator[list[int | None]]:
    """Draw the next token of each prompt's reply, step by step: None for a reply that has ended.

    Prompts of any lengths run as one batch, and each reply may grow as long as it could alone.

    Raises:
        ValueError: a prompt leaves no room in the model's context.
    """
    if isinstance(model, Engine):
        yield from model.draws(dialogue, prompts, form, sampling)
        return
    grammar = grammar_of(dialogue, form, model.get_output_embeddings().weight.shape[0], model.device)
    yield from _draws(model, prompts, min(dialogue.ends), dialogue.ended, grammar, sampling)


@torch.no_grad()
def continuation(model: PreTrainedModel, prompt: list[int], ends: set[int], sampling: Sampling) -> list[int]:
    """What a model writes after a prompt, without a grammar, up to and including one of the tokens `ends`.

    Raises:
        ValueError: the prompt leaves no room in the model's context.
    """
    drawn = _draws(model, [prompt], min(ends), lambda ids: ids[-1] in ends, None, sampling)
    return [row[0] for row in drawn if row[0] is not None]


@torch.inference_mode()
def embedded_draws(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    embed: Callable[[Tensor], Tensor],
    ends: set[int],
    sampling: Sampling,
    observe: Callable[[Tensor], None] | None = None,
) -> Iterator[list[int | None]]:
    """As `draws`, without a grammar, for prompts that are not tokens alone.

    Args:
        prompts: token ids, with any token where something else stands.
        embed: gives the input embeddings (B, L, H) of the prompts as they are batched: ids (B, L), padded on the left.
        ends: tokens that end a reply.
        observe: is given the states that predict the tokens of each step, before these are yielded: the last hidden
            states, after the final norm, (B, H).
    """
    yield from _draws(model, prompts, min(ends), lambda ids: ids[-1] in ends, None, sampling, embed, observe)


def _draws(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    pad: int,
    ended: Callable[[list[int]], bool],
    grammar: Grammar | None,
    sampling: Sampling,
    embed: Callable[[Tensor], Tensor] | None = None,
    observe: Callable[[Tensor], None] | None = None,
) -> Iterator[list[int | None]]:
    """Draw the next token of each prompt's reply, until each has ended or has no room left.

    Args:
        pad: any token, for the places before shorter prompts.
        ended: whether the tokens of a reply are complete.
    """
    context, longest = context_length(model), max(map(len, prompts))
    if longest >= context:
        raise ValueError(
            f"the prompt has {longest} tokens and this model's context is {context}; give less audio or text"
        )
    choose = _chooser(sampling, model.device)

    def over(reply: list[int]) -> bool:
        return ended(reply) or (sampling.end_loops and loops(reply))

    room = [min(sampling.max_new_tokens, context - len(prompt)) for prompt in prompts]
    together = shared(model)
    if together is not None:
        greedy = sampling.temperature == 0
        yield from together.draw(Draw(prompts, pad, over, grammar, choose, greedy, room, embed, observe))
        return
    ids, mask = left_padded(prompts, pad, model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    begins = grammar.begins(len(prompts)) if grammar else [0] * len(prompts)
    states, cache = torch.tensor(begins, device=model.device), None
    replies: list[list[int]] = [[] for _ in prompts]
    given = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids)}
    while any(room):
        check_stop()
        out = model(
            **given,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **({"output_hidden_states": True} if observe else {}),
        )
        if observe:
            observe(out.hidden_states[-1][:, -1].clone())
        cache, scores = out.past_key_values, out.logits[:, -1].float()
        chosen = choose(scores.masked_fill(~grammar.allowed(states), float("-inf")) if grammar else scores)
        states = grammar.after(states, chosen) if grammar else states
        tokens = [token if left else None for token, left in zip(chosen.tolist(), room)]
        yield tokens
        for number, (reply, token) in enumerate(zip(replies, tokens)):
            if token is not None:
                reply.append(token)
                room[number] = 0 if over(reply) else room[number] - 1
        given, mask = {"input_ids": chosen[:, None]}, torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        positions = (positions[:, -1:] + 1).clamp(max=context - 1)  # finished rows would run past the context


def generate(
    model: LanguageModel, dialogue: Dialogue, prompts: Sequence[list[int]], form: Form | KnownTexts, sampling: Sampling
) -> list[list[int]]:
    """Reply ids of each prompt, its end last where the model reached it.

    Raises:
        ValueError: a prompt leaves no room in the model's context.
    """
    replies: list[list[int]] = [[] for _ in prompts]
    for tokens in draws(model, dialogue, prompts, form, sampling) if prompts else ():
        for reply, token in zip(replies, tokens):
            if token is not None:
                reply.append(token)
    return replies


def _chooser(sampling: Sampling, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that draws a token of each row from its scores: (B, V) -> (B,)."""
    if sampling.temperature == 0:
        return lambda scores: scores.argmax(-1)
    warp = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    warp += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warp += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    generator = None if sampling.seed is None else torch.Generator(device).manual_seed(sampling.seed)
    no_ids = torch.empty(0, device=device)  # these three processors use the scores alone
    return lambda scores: torch.multinomial(warp(no_ids, scores).softmax(-1), 1, generator=generator)[:, 0]

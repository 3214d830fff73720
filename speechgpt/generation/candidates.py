"""Self-verification: the model transcribes its own speech, and speaks again if it did not understand itself.

Speech is drawn unit by unit, and one wrong unit early in a word makes another word of it. A model that speaks units
also recognises them, so it can check a candidate: asked to transcribe it, the model must find the text that was meant.
(People monitor their own speech in the same way: Levelt 1983, "Monitoring and self-repair in speech".) No transcript
is generated for this. One forward pass over the candidate and the text shows whether each token of the text is the
most likely one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from speechgpt.answers import Candidate
from speechgpt.dialogue import Conversation, Dialogue, Message, Rendered
from speechgpt.generation.engine import Engine
from speechgpt.generation.generate import LanguageModel, context_length, generate
from speechgpt.generation.grammar import Form, grammar_of
from speechgpt.generation.interleaved_grammar import KnownTexts
from speechgpt.generation.padding import left_padded
from speechgpt.generation.shared import shared
from speechgpt.prompts import asr_prompt
from speechgpt.sampling import Sampling

RETRY_TEMPERATURE = 0.7  # of further candidates, where the first one is the most likely reply (temperature 0)


def choose_candidates(
    model: LanguageModel,
    dialogue: Dialogue,
    prompts: Sequence[list[int]],
    texts: Sequence[str],
    first: Sequence[tuple[int, ...]],
    sampling: Sampling,
    interleaved: KnownTexts | None = None,
) -> list[Candidate]:
    """For each text, the first candidate that the model understands; if it understands none, the first one of all.

    Choosing the likelier of two misunderstood candidates was tried and made answers worse: a model that recognises
    badly also ranks badly (docs/decisions/self-verification.md).

    Args:
        prompts: token ids after which the model speaks; of interleaved replies, those up to their first `[ta]`.
        texts: what each utterance is meant to say.
        first: units of the first candidate of each.
        sampling: how up to `candidates - 1` further candidates are drawn.
        interleaved: for interleaved replies, token ids of the texts: further candidates say them again.
    """
    kept = verify(model, dialogue, first, texts)
    retry = replace(sampling, temperature=sampling.temperature or RETRY_TEMPERATURE)
    unseeded = (
        sampling.seed is None and sampling.temperature > 0
    )  # otherwise a question gets the same answer every time
    for number in range(1, sampling.candidates):
        again = [i for i, candidate in enumerate(kept) if candidate.understood is False]
        if not again:
            break
        seeded = replace(retry, seed=None if unseeded else (sampling.seed or 0) + number)
        form: Form | KnownTexts = "units" if interleaved is None else interleaved.of(again)
        drawn = generate(model, dialogue, [prompts[i] for i in again], form, seeded)
        spoken = [dialogue.parse_reply(ids).units or () for ids in drawn]
        verified = verify(model, dialogue, spoken, [texts[i] for i in again])
        for i, ids, candidate in zip(again, drawn, verified):
            if candidate.understood and dialogue.ended(ids):
                kept[i] = replace(candidate, number=number)
    return kept


@torch.inference_mode()
def verify(
    model: LanguageModel, dialogue: Dialogue, spoken: Sequence[tuple[int, ...]], texts: Sequence[str]
) -> list[Candidate]:
    """Check for each utterance (units) whether the model would transcribe it as the text that it is meant to say."""
    rendered = [
        dialogue.render(Conversation((asr_prompt(units), Message("assistant", (text,)))))
        for units, text in zip(spoken, texts, strict=True)
    ]
    fitting = [i for i, r in enumerate(rendered) if len(r.ids) <= context_length(model)]
    if isinstance(model, Engine):
        likeliest = _transcribed_alike(model, dialogue, [rendered[i] for i in fitting])
    elif (together := shared(model)) is None:
        likeliest = _most_likely(model, dialogue, [rendered[i] for i in fitting])
    else:  # other threads' candidates are checked in the same pass
        work = functools.partial(_most_likely, model, dialogue)
        likeliest = together.together(("verify", id(dialogue)), [rendered[i] for i in fitting], work)
    understood = dict(zip(fitting, likeliest))
    return [Candidate(units, understood.get(i)) for i, units in enumerate(spoken)]


def _transcribed_alike(engine: Engine, dialogue: Dialogue, rendered: Sequence[Rendered]) -> list[bool]:
    """As _most_likely, by greedy transcripts: these are the text where each of its tokens is the most likely one."""
    starts = [r.train.index(True) for r in rendered]
    meant = [r.ids[start:] for r, start in zip(rendered, starts)]
    greedy = Sampling(max_new_tokens=max(map(len, meant), default=1))
    drawn = generate(engine, dialogue, [r.ids[:start] for r, start in zip(rendered, starts)], "text", greedy)
    return [ids == text for ids, text in zip(drawn, meant)]


def _most_likely(model: PreTrainedModel, dialogue: Dialogue, rendered: Sequence[Rendered]) -> list[bool]:
    """For each conversation, whether each token of its reply is the most likely of those that a text may hold."""
    if not rendered:
        return []
    ids, mask = left_padded([r.ids for r in rendered], min(dialogue.ends), model.device)
    written = max(sum(r.train) for r in rendered)  # replies end at the right edge; no other logits are needed
    counted = torch.tensor(
        [([False] * (ids.shape[1] - len(r.ids)) + r.train)[-written:] for r in rendered], device=model.device
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=written + 1)
    logits = out.logits[:, :-1]
    text = grammar_of(dialogue, "text", logits.shape[-1], model.device).allowed(torch.zeros_like(ids[:1, 0]))
    likeliest = logits.masked_fill_(~text, float("-inf")).argmax(-1)
    return ((likeliest == ids[:, -written:]) | ~counted).all(1).tolist()

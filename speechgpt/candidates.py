"""Takes: a model hears what it has said, and says it again if it would not understand itself.

Speech is drawn unit by unit, and one wrong turn makes another word of it. But who speaks units also hears them: asked to
transcribe its own utterance, the model must find the text it meant. So people listen to themselves (Levelt 1983,
"Monitoring and self-repair in speech"). No transcript is generated for it: one pass over the utterance and the text
tells whether each token of the text is what the model would write next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Dialogue, Message, Rendered
from speechgpt.generate import Sampling, context_length, generate, left_padded
from speechgpt.grammar import Grammar
from speechgpt.vocab import EOA

ASR_TASK = "Please transcribe this speech."
TTS_TASK = "Please read this text aloud."
LOOSE = 0.7  # temperature of second takes where first ones are drawn without chance


@dataclass(frozen=True)
class Take:
    """One way of saying a text. number: 0 is the first take.

    understood: whether that text, and nothing else, is what the model would write; None if it is too long to be heard.
    """

    units: tuple[int, ...]
    understood: bool | None
    number: int = 0


def transcription(units: tuple[int, ...]) -> Message:
    """What the model is asked, to write down what is said."""
    return Message("human", (f"{ASR_TASK} {INPUT_FOLLOWS}", units))


def recital(text: str) -> Message:
    """What the model is asked, to say a text."""
    return Message("human", (f"{TTS_TASK} {INPUT_FOLLOWS} {text}",))


def retake(
    model: PreTrainedModel,
    dialogue: Dialogue,
    prompts: Sequence[list[int]],
    texts: Sequence[str],
    first: Sequence[tuple[int, ...]],
    sampling: Sampling,
) -> list[Take]:
    """The first take of each utterance that is understood, else the first of all: who hears badly must not judge.

    Args:
        prompts: token ids after which the model speaks. texts: what it means to say. first: what it said first.
        sampling: of up to `takes - 1` further takes.
    """
    kept = hear(model, dialogue, first, texts)
    loose = replace(sampling, temperature=sampling.temperature or LOOSE)
    chance = sampling.seed is None and sampling.temperature > 0  # else a question has the same answer every time
    end = dialogue.vocab.marker(EOA)
    for number in range(1, sampling.takes):
        again = [i for i, take in enumerate(kept) if take.understood is False]
        if not again:
            break
        seeded = replace(loose, seed=None if chance else (sampling.seed or 0) + number)
        drawn = generate(model, dialogue, [prompts[i] for i in again], "units", seeded)
        spoken = [dialogue.parse_reply(ids).units or () for ids in drawn]
        heard = hear(model, dialogue, spoken, [texts[i] for i in again])
        for i, ids, take in zip(again, drawn, heard):
            if take.understood and ids[-1] == end:
                kept[i] = replace(take, number=number)
    return kept


@torch.inference_mode()
def hear(
    model: PreTrainedModel, dialogue: Dialogue, spoken: Sequence[tuple[int, ...]], texts: Sequence[str]
) -> list[Take]:
    """What the model understands of utterances (tuples of units) that are meant to say `texts`."""
    rendered = [
        dialogue.render(Conversation((transcription(units), Message("assistant", (text,)))))
        for units, text in zip(spoken, texts, strict=True)
    ]
    audible = [i for i, r in enumerate(rendered) if len(r.ids) <= context_length(model)]
    understood = dict(zip(audible, _would_write(model, dialogue, [rendered[i] for i in audible])))
    return [Take(units, understood.get(i)) for i, units in enumerate(spoken)]


def _would_write(model: PreTrainedModel, dialogue: Dialogue, rendered: Sequence[Rendered]) -> list[bool]:
    """Of each conversation, whether each token of its reply is the likeliest of those that may stand in a text."""
    if not rendered:
        return []
    ids, mask = left_padded([r.ids for r in rendered], dialogue.vocab.marker(EOA), model.device)
    written = max(sum(r.train) for r in rendered)  # replies end at the right edge; no other logits are needed
    counted = torch.tensor(
        [([False] * (ids.shape[1] - len(r.ids)) + r.train)[-written:] for r in rendered], device=model.device
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=written + 1).logits[
        :, :-1
    ]
    text = Grammar(dialogue, "text", logits.shape[-1], model.device).allowed(torch.zeros_like(ids[:1, 0]))
    likeliest = logits.masked_fill_(~text, float("-inf")).argmax(-1)
    return ((likeliest == ids[:, -written:]) | ~counted).all(1).tolist()

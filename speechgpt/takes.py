"""Takes: a model hears what it has said, and says it again if it would not understand itself.

Speech is drawn unit by unit, and one wrong turn makes another word of it. But who speaks units also hears them: asked to
transcribe its own utterance, the model must find the text it meant. So people listen to themselves (Levelt 1983,
"Monitoring and self-repair in speech"). No transcript is generated for it: one pass over the utterance and the text
tells whether each token of the text is what the model would write next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from speechgpt.dialogue import INPUT_FOLLOWS, Conversation, Dialogue, Message, Rendered
from speechgpt.generate import Sampling, generate
from speechgpt.vocab import EOA

ASR_TASK = "Please transcribe this speech."
LOOSE = 0.7  # temperature of second takes where first ones are drawn without chance


@dataclass(frozen=True)
class Take:
    """One way of saying a text. score: log probability of the text, for who hears the units.

    understood: that text, and nothing else, is what the model would write. number: 0 is the first take.
    """

    units: tuple[int, ...]
    understood: bool
    score: float
    number: int = 0


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
    kept = hear(model, dialogue, list(first), texts)
    loose = replace(sampling, temperature=sampling.temperature or LOOSE)
    for number in range(1, sampling.takes):
        again = [i for i, take in enumerate(kept) if not take.understood and take.score > -math.inf]
        if not again:
            break
        seeded = replace(loose, seed=(sampling.seed or 0) + number)
        drawn = generate(model, dialogue, [prompts[i] for i in again], "units", seeded)
        spoken = [dialogue.parse_reply(ids).units or () for ids in drawn]
        for i, take in zip(again, hear(model, dialogue, spoken, [texts[i] for i in again])):
            if take.understood:
                kept[i] = replace(take, number=number)
    return kept


@torch.inference_mode()
def hear(
    model: PreTrainedModel, dialogue: Dialogue, spoken: Sequence[tuple[int, ...]], texts: Sequence[str]
) -> list[Take]:
    """What the model understands of utterances (tuples of units) that are meant to say `texts`.

    What is too long for its context it cannot hear; the score is minus infinity then, and saying it again is no use.
    """
    rendered = [
        dialogue.render(
            Conversation((Message("human", (f"{ASR_TASK} {INPUT_FOLLOWS}", units)), Message("assistant", (text,))))
        )
        for units, text in zip(spoken, texts, strict=True)
    ]
    takes = [Take(units, False, -math.inf) for units in spoken]
    audible = [i for i, r in enumerate(rendered) if len(r.ids) <= model.config.max_position_embeddings]
    for i, (understood, score) in zip(audible, _read_along(model, dialogue, [rendered[i] for i in audible])):
        takes[i] = Take(spoken[i], understood, score)
    return takes


def _read_along(model: PreTrainedModel, dialogue: Dialogue, rendered: Sequence[Rendered]) -> list[tuple[bool, float]]:
    """Of each conversation: whether its reply is what the model would write, and the log probability of it."""
    if not rendered:
        return []
    width, pad, device = max(len(r.ids) for r in rendered), dialogue.vocab.marker(EOA), model.device
    ids = torch.tensor([[pad] * (width - len(r.ids)) + r.ids for r in rendered], device=device)
    mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in rendered], device=device)
    written = max(sum(r.train) for r in rendered)  # replies end at the right edge; no other logits are needed
    counted = torch.tensor([([False] * (width - len(r.ids)) + r.train)[-written:] for r in rendered], device=device)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=written + 1
    ).logits[:, :-1]
    meant = ids[:, -written:]
    likely = logits.float().log_softmax(-1).gather(2, meant[..., None])[..., 0]
    scores = likely.masked_fill(~counted, 0.0).sum(1).tolist()
    understood = ((logits.argmax(-1) == meant) | ~counted).all(1).tolist()
    return list(zip(understood, scores, strict=True))

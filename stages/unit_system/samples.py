"""Sample replies: what the model writes, greedily, after the prompts of some held-out documents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from speechgpt.dialogue import Dialogue, Message
from speechgpt.generation.generate import continuation
from speechgpt.sampling import Sampling
from speechgpt.vocab import EOA, SPEECHGPT, UnitVocab
from stages.evaluating import evaluating
from stages.held_out import sample_documents
from stages.packing.attention import any_length
from stages.packing.blocks import PackedBlocks

SAMPLING = Sampling(temperature=0.0, max_new_tokens=64)


@torch.no_grad()
def sample_replies(
    model: Any, held_out: PackedBlocks, tokenizer: PreTrainedTokenizerBase, vocab: UnitVocab | None, count: int
) -> list[dict[str, str]]:
    """Replies to some held-out documents, each of another task if there are several.

    Returns: {"task", "prompt", "reply", "expected"} of each, as text.
    """
    ends = {tokenizer.eos_token_id, vocab.special_ids.get(EOA) if vocab else None} - {None}
    opening = reply_opening(tokenizer, vocab)
    with evaluating(model):
        samples = []
        for task, source, document in sample_documents(held_out, count):
            ids = held_out.sources[source].document(document)[0].tolist()
            start = prompt_end(ids, opening)
            with any_length():
                reply = continuation(model, ids[:start], ends, SAMPLING)
            prompt, written, expected = (tokenizer.decode(part) for part in (ids[:start], reply, ids[start:]))
            samples.append({"task": task, "prompt": prompt, "reply": written, "expected": expected})
    return samples


def reply_opening(tokenizer: PreTrainedTokenizerBase, vocab: UnitVocab | None) -> list[int]:
    """Token ids of `[SpeechGPT]:`, which opens a reply; none for a text LLM, which has no conversations."""
    if vocab is None or SPEECHGPT not in vocab.special_ids:
        return []
    prompt = Dialogue(tokenizer).prompt([Message("human", ("?",))])
    return prompt[prompt.index(vocab.special_id(SPEECHGPT)) :]


def prompt_end(ids: list[int] | np.ndarray, opening: list[int]) -> int:
    """How many tokens of a document are its prompt: of a conversation all before its first reply, of anything else a
    quarter.

    Args:
        ids: token ids of the document (L,).
        opening: token ids that open a reply.
    """
    ids = list(ids)
    if opening and opening[0] in ids:
        return min(ids.index(opening[0]) + len(opening), len(ids))
    return max(1, len(ids) // 4)

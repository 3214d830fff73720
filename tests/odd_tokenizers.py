"""Tokenizers whose ids have gaps, whose words are not what their kind has, or that lack special tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

LETTERS = "abcdefghijklmnopqrstuvwxyzHISGTA <>[]:;,.0123456789"
MODELS = {"BPE": models.BPE, "WordPiece": models.WordPiece, "WordLevel": models.WordLevel}


def with_ids(
    kind: str, ids: Sequence[int], named: Sequence[str] = ("bos", "eos"), added: Sequence[AddedToken] = ()
) -> PreTrainedTokenizerBase:
    """A tokenizer of single letters that have the given ids, as many as there are.

    Args:
        kind: of MODELS.
        ids: of `<unk>`, `<s>`, `</s>`, then of LETTERS.
        named: the special tokens that the tokenizer names, beside `<unk>`.
        added: words that are added behind.
    """
    words = dict(zip(("<unk>", "<s>", "</s>", *LETTERS), ids))
    more = {"merges": []} if kind == "BPE" else {}
    bare = Tokenizer(MODELS[kind](vocab=words, unk_token="<unk>", **more))
    bare.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    bare.decoder = decoders.Fuse()
    bare.add_tokens(list(added))
    names = {f"{name}_token": {"bos": "<s>", "eos": "</s>", "pad": "<unk>"}[name] for name in named}
    return PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>", **names)


def with_gaps(tokenizer: PreTrainedTokenizerBase, spread: int) -> PreTrainedTokenizerBase:
    """The same tokenizer with the last tenth of its words `spread` ids further."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = state["model"]["vocab"] | {word["content"]: word["id"] for word in state["added_tokens"]}
    border = max(words.values()) * 9 // 10
    words = {word: id + spread if id > border else id for word, id in words.items()}
    state["model"]["vocab"] = words
    for word in state["added_tokens"]:
        word["id"] = words[word["content"]]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    return tokenizer


def model_for(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A random model with a row for every id of a tokenizer."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    rows = max(tokenizer.get_vocab().values()) + 1
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, max_position_embeddings=256, initializer_range=0.5, **sizes))

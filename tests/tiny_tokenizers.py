"""Tokenizers of the kinds that text LLMs have, each of a few hundred words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_parts import TEXT, K
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GemmaTokenizer,
    GenerationConfig,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from speechgpt.dialogue import Dialogue
from speechgpt.widen import widen
from stages.start_models.text_llm import train_tokenizer

LINES = [*TEXT.splitlines(), "time:noon", "{time:noon}"] * 20  # some kinds get a word that begins with a colon
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama(folder: Path) -> PreTrainedTokenizerBase:
    """Sentencepiece with byte fallback; a space is added before every text."""
    (folder / "text.txt").write_text("\n".join(LINES), encoding="utf-8")
    return train_tokenizer(folder / "text.txt", 360)


def mistral(folder: Path) -> PreTrainedTokenizerBase:
    """The same model, with a space before every piece of text, also behind a special token."""
    bare = Tokenizer.from_str(llama(folder).backend_tokenizer.to_str())
    bare.pre_tokenizer = pre_tokenizers.Sequence([])
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def llama3(folder: Path) -> PreTrainedTokenizerBase:
    """Byte level; punctuation joins the word behind it; special tokens that no attribute of the tokenizer names."""
    bare = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    bare.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bare.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    return with_specials(tokenizer, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def qwen2(folder: Path) -> PreTrainedTokenizerBase:
    """Byte level on composed characters; no start token; chats in ChatML."""
    tokenizer = with_specials(Qwen2Tokenizer().train_new_from_iterator(LINES, 400), "<|im_start|>", "<|im_end|>")
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    return tokenizer


def gpt2(folder: Path) -> PreTrainedTokenizerBase:
    """Byte level; one special token is start, end and unknown."""
    return GPT2Tokenizer().train_new_from_iterator(LINES, 400)


def gemma(folder: Path) -> PreTrainedTokenizerBase:
    """Byte fallback, no space before a text, words that hold spaces."""
    bare = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bare.normalizer = normalizers.Replace(" ", "\u2581")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bare.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=500, special_tokens=specials, show_progress=False, max_token_length=6)
    )
    trained = json.loads(bare.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]])
    return with_specials(tokenizer, "<start_of_turn>", "<end_of_turn>")


def with_specials(tokenizer: PreTrainedTokenizerBase, *words: str) -> PreTrainedTokenizerBase:
    """Special tokens beside start and end, as chat models have them."""
    tokenizer.add_tokens([AddedToken(word, special=True, normalized=False) for word in words], special_tokens=True)
    return tokenizer


KINDS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    kind.__name__: kind for kind in (llama, mistral, llama3, qwen2, gpt2, gemma)
}


def widened_kind(kind: str, folder: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """A tokenizer of one kind and a random model, widened; its generation config was that of a chat model."""
    tokenizer = KINDS[kind](folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=256,
            initializer_range=0.5,
        )
    )
    settings = {"repetition_penalty": 1.1, "do_sample": True, "top_k": 20, "temperature": 0.7}
    model.generation_config = GenerationConfig(**settings, eos_token_id=tokenizer.eos_token_id)
    widen(tokenizer, model, K)
    return tokenizer, model.eval()


def special_words(dialogue: Dialogue) -> set[int]:
    """Ids of all special tokens but ours, also of those that no attribute of the tokenizer names."""
    ours = {*dialogue.vocab.special_ids.values()}
    return {
        token
        for token, word in dialogue.tokenizer.added_tokens_decoder.items()
        if word.special and token not in ours and not dialogue.vocab.is_unit(token)
    }

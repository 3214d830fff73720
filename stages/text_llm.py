"""The stand-in for an ordinary text LLM: a sentencepiece tokenizer and a small untrained Llama.

    python -m stages.text_llm --text runs/toy/corpus/text.txt --out runs/toy/text_llm_untrained

`python -m stages.train stages/configs/toy/text.yaml` then trains it. A user with a real LLM needs neither.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer, PreTrainedTokenizerBase


@dataclass
class TinyLlama:
    """Its size."""

    vocab_size: int = 700
    """Words of the tokenizer, 256 of them bytes."""
    width: int = 192
    """Hidden width H."""
    layers: int = 4
    """Transformer layers."""
    heads: int = 3
    """Attention heads."""
    feed_forward: int = 512
    """Inner width of the feed-forward layers."""
    context: int = 1024
    """Longest sequence, in tokens."""


def train_tokenizer(text: Path, vocab_size: int) -> PreTrainedTokenizerBase:
    """A BPE tokenizer with byte fallback, so that no text is lost: every character of the text is covered, spaces are kept."""
    import sentencepiece

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=f"{folder}/tokenizer", vocab_size=vocab_size, model_type="bpe",
            character_coverage=1.0, byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        return LlamaTokenizer.from_pretrained(folder)


def main(text: Path, out: Path, llama: TinyLlama = TinyLlama(), seed: int = 0) -> None:
    """Make an untrained text LLM.

    Args:
        text: what the tokenizer is trained on, one line a document
        out: checkpoint folder to write
        llama: its size
        seed: of the weights
    """
    tokenizer = train_tokenizer(text, llama.vocab_size)
    torch.manual_seed(seed)
    # weights of the usual deviation, 0.02, suit a width of thousands; so narrow a model would learn a third slower
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=llama.width,
            num_hidden_layers=llama.layers,
            num_attention_heads=llama.heads,
            intermediate_size=llama.feed_forward,
            max_position_embeddings=llama.context,
            initializer_range=llama.width**-0.5,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    print(f"{out}: {len(tokenizer)} words, {model.num_parameters():,} parameters, untrained")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

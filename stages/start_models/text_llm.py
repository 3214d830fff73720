"""A stand-in for an ordinary text LLM: a sentencepiece tokenizer and a small untrained Llama.

    stages-text-llm --text runs/toy/corpus/text.txt --out runs/toy/text_llm_untrained

`stages-train stages/configs/toy/text.yaml` then trains it. A user with a real LLM needs neither.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from units.runtime.command import check_range, command
from units.runtime.settings import check_types


@dataclass
class TinyLlama:
    """Size of the stand-in."""

    vocab_size: int = 850
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

    def __post_init__(self) -> None:
        check_types(self, "llama.")
        check_range("llama.vocab_size", self.vocab_size, 260)  # 256 bytes and the special tokens
        for name in ("width", "layers", "heads", "feed_forward", "context"):
            check_range(f"llama.{name}", getattr(self, name), 1)
        if self.width % (2 * self.heads):
            raise ValueError(
                f"--llama.width is {self.width}; it must be a multiple of {2 * self.heads}, twice --llama.heads: "
                "rotary embeddings turn pairs of values"
            )


def train_tokenizer(text: Path, vocab_size: int) -> Any:
    """A BPE tokenizer with byte fallback that loses no text: it covers every character and keeps spaces.

    Args:
        text: file with one document a line.
        vocab_size: words, 256 of them bytes.

    Returns: a transformers tokenizer.
    """
    import sentencepiece
    from transformers import LlamaTokenizer

    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=f"{folder}/tokenizer",
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=1.0,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        return LlamaTokenizer.from_pretrained(folder)


@command("stages-text-llm", positional=False)
def main(text: Path, out: Path, llama: TinyLlama = TinyLlama(), seed: int = 0) -> None:
    """Make an untrained text LLM.

    Args:
        text: what the tokenizer is trained on, one document a line
        out: checkpoint folder to write
        llama: size of the model
        seed: of the weights
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    check_range("seed", seed, 0, 2**63 - 1)
    if not text.is_file():
        raise FileNotFoundError(f"{text} does not exist; it is the text that the tokenizer is trained on")
    tokenizer = train_tokenizer(text, llama.vocab_size)
    torch.manual_seed(seed)
    # the usual standard deviation, 0.02, is for a width of thousands; so narrow a model would learn a third slower
    # (docs/decisions/text-llm-initialisation.md)
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
        )
    )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    print(f"{out}: {len(tokenizer)} words, {model.num_parameters():,} parameters, untrained")


if __name__ == "__main__":
    main.cli()

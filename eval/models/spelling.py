"""How units stand in the text of a language model: `<Un12>`, `[Hu12]`, `<12>`. Without torch, for the command line."""

from __future__ import annotations

from dataclasses import dataclass

KIND = "lm:"


@dataclass(frozen=True)
class Speaking:
    """How sounds become the tokens of a plain causal language model."""

    encoder: str | None = None
    """unit encoder folder that makes the model's units"""
    spelling: str = "<{}>"
    """a unit as the model's vocabulary spells it, with {} for its number: '<Un{}>' (slamkit), '[Hu{}]' (Spirit LM),
    '<{}>' (SpeechGPT-7B)"""
    before: str = ""
    """words of the vocabulary that stand before the units, separated by spaces, such as '<sosp>' or '[Speech]'; the
    tokenizer's start, if it has one, stands before them"""
    repeats: bool = False
    """keep a unit for every frame, for models that were trained on units with repeats"""

    def __post_init__(self) -> None:
        if self.spelling.count("{}") != 1:
            raise ValueError(f"spelling is {self.spelling!r}; it has {{}} once, where the unit's number stands")

"""SpeechGPT as the trainer sees it: speech is units, which are words of the LLM's vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from speechgpt.checkpoint import FILE
from stages.config import StageConfig
from stages.planning.size import Size, count
from stages.start import find_start
from stages.unit_system.opened import UnitOpened
from stages.unit_system.preference import PreferenceOpened
from stages.unit_system.start import ASSUMED_UNITS, PREFERENCE, model_shape, open_start


class UnitSystem:
    """SpeechGPT: units in the vocabulary."""

    name = "speechgpt"

    def completion_file(self, config: StageConfig) -> str:
        """A text LLM has no units, so it has no `speechgpt.json`."""
        return "config.json" if config.kind == "text" else FILE

    def open(self, config: StageConfig, **loading: Any) -> UnitOpened:
        model, tokenizer, codebook = open_start(config, **loading)
        if config.kind == PREFERENCE and codebook is not None:
            return PreferenceOpened(config, model, tokenizer, codebook, Path(find_start(config, whole=True)))
        return UnitOpened(config, model, tokenizer, codebook)

    def size(self, config: StageConfig, file: Path | None) -> Size:
        shape, assumed = model_shape(config, file)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape)
        notes = (f"there is no unit encoder yet; {ASSUMED_UNITS:,} units are assumed",) if assumed else ()
        return count(model, shape, config, UnitOpened.parts, notes)


UNIT_SYSTEM = UnitSystem()

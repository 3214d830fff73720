"""BLSP as the trainer sees it: recordings through an adapter into a frozen LLM, which answers in text.

python -m variants.blsp.train variants/blsp/configs/toy/stage2.yaml
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from speechgpt.checkpoint import FILE
from speechgpt.language_models.whole import open_tokenizer, open_whole
from stages.planning.size import Size, count
from stages.start import check_positions, find_start
from stages.system import Opened
from stages.unit_system.start import model_shape
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.config import BlspConfig
from variants.blsp.data.examples import transcripts_of
from variants.blsp.records import SYSTEM, BlspFacts, read_adapter
from variants.blsp.stages.hearing import BlspHearing
from variants.blsp.stages.opened import BlspOpened, TextOpened
from variants.encoders import width_of
from variants.listening import SpeechLLM
from variants.references import fingerprint, located
from variants.speech_in.hearing.stage import found_sources, hearing_model, hearing_size


class BlspSystem:
    """BLSP: an encoder, an adapter, and an LLM that answers in text."""

    name = SYSTEM

    def completion_file(self, config: Any) -> str:
        """A tuned LLM is a plain Hugging Face folder, without `speechgpt.json`."""
        return "config.json" if config.kind == "text" else FILE

    def open(self, config: Any, **loading: Any) -> Opened:
        """The LLM that the stage starts from, with a new adapter, or with that of an earlier BLSP stage."""
        check_config(config)
        found = Path(find_start(config, whole=True))
        begun = BlspFacts.load(found) if (found / FILE).exists() else None
        start = begun.llm.find(found) if begun else found
        check_positions(start, config)
        tokenizer = open_tokenizer(start)
        llm = open_whole(start, **loading)
        if config.kind == "text":
            return TextOpened(config, llm, tokenizer)
        model = self._joined(config, llm, found, begun)
        if config.kind == "ctc":
            transcripts = itertools.chain.from_iterable(map(transcripts_of, found_sources(config)))
            return BlspHearing(config, hearing_model(config, llm, tokenizer, model, transcripts), tokenizer, start)
        return BlspOpened(config, model, tokenizer, start)

    @staticmethod
    def _joined(config: BlspConfig, llm: Any, found: Path, begun: BlspFacts | None) -> SpeechLLM:
        source = config.part(config.encoder)
        width = width_of(source)
        words = llm.get_input_embeddings().weight
        gain = float(words.detach().float().std()) if config.norm_gain is None else config.norm_gain
        torch.manual_seed(config.seed)
        adapter = SpeechAdapter(width, llm.config.get_text_config().hidden_size, config.adapter, gain)
        if begun:
            if (begun.shape, begun.encoder.fingerprint) != (config.adapter, fingerprint(located(source))):
                raise ValueError(
                    f"{found} has an adapter of {begun.shape} on {begun.encoder.path}; the config has {config.adapter} "
                    f"on {config.encoder}. Give the same ones"
                )
            adapter.load_state_dict(read_adapter(found))
        return SpeechLLM(llm, adapter)

    def size(self, config: Any, file: Path | None) -> Size:
        check_config(config)
        shape, _ = model_shape(config, file)
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(shape)
            if config.kind == "text":
                return count(llm, shape, config, TextOpened.parts)
            hidden = shape.get_text_config().hidden_size
            adapter = SpeechAdapter(width_of(config.part(config.encoder)), hidden, config.adapter)
            if config.kind == "ctc":
                return hearing_size(config, adapter, shape, BlspHearing.parts)
            model = SpeechLLM(llm, adapter)
        return count(model, shape, config, BlspOpened.parts, ("the encoder is not counted: it is frozen",))


BLSP_SYSTEM = BlspSystem()


def check_config(config: Any) -> None:
    """Raise ValueError if a config is not of this system."""
    if not isinstance(config, BlspConfig):
        raise ValueError(f"{config.stage} is a {type(config).__name__}; BLSP trains a BlspConfig")

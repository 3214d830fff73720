"""LLaMA-Omni as the trainer sees it: an adaptor and an LLM that answer in text, then a speech decoder on its states.

python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage1.yaml     # kind listening
python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage2.yaml     # kind speaking
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from speechgpt.checkpoint import FILE
from speechgpt.language_models.whole import open_tokenizer, open_whole
from stages.planning.size import Size, count
from stages.start import check_positions, find_start
from stages.unit_system.start import model_shape
from units.codebook import Codebook
from variants.encoders import width_of
from variants.llama_omni.config import OmniConfig
from variants.llama_omni.lora import lora_names, with_lora
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.decoder import SpeechDecoder
from variants.llama_omni.network.decoders import make_decoder
from variants.llama_omni.network.model import OmniLLM
from variants.llama_omni.network.shapes import Speaking
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, SYSTEM, OmniFacts
from variants.llama_omni.stages.hearing import OmniHearing
from variants.llama_omni.stages.opened import PARTS, OmniOpened
from variants.llama_omni.stages.speaking import SpeakingOpened
from variants.references import fingerprint, located
from variants.speech_in.facts import read_part
from variants.speech_in.hearing.stage import found_sources, hearing_model, hearing_size
from variants.speech_in.hearing.transcripts import transcripts_of

ASSUMED_UNITS = 1000  # the paper's number, for a plan before there is a codebook


class OmniSystem:
    """LLaMA-Omni: an encoder, an adaptor, an LLM, and a decoder that speaks its states."""

    name = SYSTEM

    def completion_file(self, config: Any) -> str:
        return FILE

    def open(self, config: Any, **loading: Any) -> OmniOpened:
        """The LLM that the stage starts from, with a new adaptor or that of an earlier stage, and, to speak, a new
        decoder or that of an earlier stage."""
        check_config(config)
        codebook = open_codebook(config) if config.kind == "speaking" else None
        found = Path(find_start(config, whole=True))
        begun = OmniFacts.load(found) if (found / FILE).exists() else None
        if config.kind == "speaking" and begun is None:
            raise ValueError(f"{found} does not listen: a stage of kind speaking starts from one of kind listening")
        start = begun.llm.find(found) if begun else found
        check_positions(start, config)
        tokenizer = open_tokenizer(start)
        llm = open_whole(start, **loading)
        model = _joined(config, llm, found, begun)
        if config.kind == "hearing":
            transcripts = itertools.chain.from_iterable(map(transcripts_of, found_sources(config)))
            words = float(llm.get_input_embeddings().weight.detach().float().square().mean().sqrt())
            hears = hearing_model(config, llm, tokenizer, model, transcripts)
            return OmniHearing(config, hears, tokenizer, start, words)
        if codebook is None:
            if config.llm_lora:
                model.llm = with_lora(model.llm, config.llm_lora)
            return OmniOpened(config, model, tokenizer, start)
        assert begun is not None
        model.decoder = _decoder(config, llm, found, begun, codebook)
        return SpeakingOpened(config, model, tokenizer, start, codebook)

    def size(self, config: Any, file: Path | None) -> Size:
        check_config(config)
        found = config.at(config.model)
        begun = OmniFacts.load(found) if (found / FILE).exists() else None
        where = dataclasses.replace(config, model=str(begun.llm.find(found).resolve())) if begun else config
        shape, _ = model_shape(where, file)
        notes = ["the encoder is not counted: it is frozen"]
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(shape)
            hidden = shape.get_text_config().hidden_size
            adaptor = SpeechAdaptor(width_of(config.part(config.encoder)), hidden, config.adaptor)
            if config.kind == "hearing":
                return hearing_size(config, adaptor, shape, OmniHearing.parts)
            model = OmniLLM(llm, adaptor)
            if config.kind == "speaking":
                units, assumed = _planned_units(config)
                notes += [f"{units} units are assumed: there is no codebook yet"] if assumed else []
                notes.append("the decoder's own frames are not counted among the tokens")
                model.decoder = make_decoder(config.decoder, Speaking.of(shape, units))
            parts = dict(PARTS)
            if config.llm_lora:
                model.llm = with_lora(model.llm, config.llm_lora)
                parts["lora"] = lora_names(model)
        return count(model, shape, config, parts, tuple(notes))


OMNI_SYSTEM = OmniSystem()


def check_config(config: Any) -> None:
    """Raise ValueError if a config is not of this system."""
    if not isinstance(config, OmniConfig):
        raise ValueError(f"{config.stage} is a {type(config).__name__}; LLaMA-Omni trains an OmniConfig")


def open_codebook(config: OmniConfig) -> Codebook:
    """The codebook of the units that a stage learns to speak.

    Raises: FileNotFoundError saying what to make first; ValueError if the vocoder speaks other units.
    """
    from units.vocoder.vocoder_folder import read_vocoder

    folder = config.at(config.codebook)
    if (folder / "codebook.json").exists():
        codebook = Codebook.load(folder / "codebook.json")
    elif (folder / "config.json").exists():
        codebook = read_vocoder(folder, None, None).codebook
    else:
        raise FileNotFoundError(
            f"{folder} has neither a codebook.json nor a vocoder's config.json: {config.stage} learns to speak its "
            "units. Copy the unit encoder that made them there, or name a vocoder of them (codebook:)"
        )
    if config.vocoder and (config.at(config.vocoder) / "config.json").exists():
        spoken = read_vocoder(config.at(config.vocoder), None, None).codebook
        codebook.check_same(spoken, f"the config's codebook ({folder})", f"its vocoder {config.at(config.vocoder)}")
    return codebook


def _joined(config: OmniConfig, llm: Any, found: Path, begun: OmniFacts | None) -> OmniLLM:
    """The LLM with a new adaptor, or with that of an earlier stage."""
    source = config.part(config.encoder)
    width, hidden = width_of(source), llm.config.get_text_config().hidden_size
    torch.manual_seed(config.seed)
    if begun is None:
        words = float(llm.get_input_embeddings().weight.detach().float().std())
        # torch's weights of both layers, and the ReLU between them, give a deviation of states / 18 ** .5
        scale = words * 18**0.5 if config.adaptor_scale is None else config.adaptor_scale
        return OmniLLM(llm, SpeechAdaptor(width, hidden, config.adaptor, scale))
    if (begun.shape, begun.encoder.fingerprint) != (config.adaptor, fingerprint(located(source))):
        raise ValueError(
            f"{found} has an adaptor of {begun.shape} on {begun.encoder.path}; the config has {config.adaptor} on "
            f"{config.encoder}. Give the same ones"
        )
    adaptor = SpeechAdaptor(width, hidden, config.adaptor)
    adaptor.load_state_dict(read_part(found, ADAPTOR_FILE, "adapter."))
    return OmniLLM(llm, adaptor)


def _decoder(config: OmniConfig, llm: Any, found: Path, begun: OmniFacts, codebook: Codebook) -> SpeechDecoder:
    """A new decoder, or that of an earlier stage."""
    torch.manual_seed(config.seed)
    decoder = make_decoder(config.decoder, Speaking.of(llm.config, codebook.size))
    decoder.take_scale(llm.get_input_embeddings().weight.detach())
    if begun.decoder is None:
        return decoder
    if begun.decoder != config.decoder:
        raise ValueError(
            f"{found} has a decoder of {begun.decoder}; the config has {config.decoder}. Give the same one"
        )
    if begun.codebook is not None:
        begun.codebook.check_same(codebook, f"the model {found}", f"the config's codebook ({config.codebook})")
    decoder.load_state_dict(read_part(found, DECODER_FILE, "decoder."))
    return decoder


def _planned_units(config: OmniConfig) -> tuple[int, bool]:
    """How many units there are, and whether that is assumed."""
    try:
        return open_codebook(config).size, False
    except FileNotFoundError:
        return ASSUMED_UNITS, True

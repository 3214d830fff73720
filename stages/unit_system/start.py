"""The model that a stage of SpeechGPT starts from, widened by units if the stage says so; and its size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from speechgpt.chat_template import prepare_for_serving
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.language_models.adapters import is_adapter, open_language_model, shape_of
from speechgpt.language_models.whole import open_tokenizer
from speechgpt.vocab import UnitVocab, new_words
from speechgpt.widen import ROW_MULTIPLE, widen
from stages.config import StageConfig, Widening
from stages.start import check_positions, find_start
from stages.start_models.real_models import preset_folder
from units.codebook import Codebook
from units.encoder.kmeans import load_centres
from units.runtime.files.json_files import checked
from units.runtime.files.yaml_files import read_yaml

PREFERENCE = "preference"
KINDS = ("text", "units", "cross_modal", "chain", PREFERENCE)
SHAPES = Path(__file__).parents[1] / "configs" / "shapes.json"  # configs of the presets' models: no download for a plan
ASSUMED_UNITS = 1000  # the paper's number, for a plan before there is a unit encoder


def starts_with_units(config: StageConfig) -> bool:
    """Whether the model that the stage starts from has units.

    Raises: ValueError for a kind of stage that SpeechGPT does not have.
    """
    if config.kind not in KINDS:
        raise ValueError(f"{config.stage}: kind is {config.kind!r}; a stage of SpeechGPT is one of {', '.join(KINDS)}")
    if config.kind == PREFERENCE and config.widen:
        raise ValueError(f"{config.stage}: kind {PREFERENCE} starts from a model with units; leave widen out")
    return config.widen is None and config.kind != "text"


def open_units(encoder: Path) -> tuple[Codebook, torch.Tensor]:
    """Codebook and centres, float (K, D), of the unit encoder that a stage widens its model by.

    Raises: FileNotFoundError saying how an encoder is made.
    """
    for name in ("codebook.json", "centres.safetensors"):
        if not (encoder / name).exists():
            raise FileNotFoundError(
                f"{encoder} has no {name}, and the stage widens the model by the units of this unit encoder; copy "
                "the one "
                f"that made your units there, or fit one: python -m units.encoder.fit --manifest AUDIO --out {encoder}"
            )
    return Codebook.load(encoder / "codebook.json"), load_centres(encoder / "centres.safetensors")


def open_start(config: StageConfig, **loading: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Codebook | None]:
    """Model and tokenizer that the stage starts from, widened if it says so, and the codebook of their units.

    Args:
        loading: for AutoModelForCausalLM.from_pretrained.

    Raises: FileNotFoundError or ValueError if the start is not what this stage needs.
    """
    with_units = starts_with_units(config)
    # first, since it takes no time, and loading the model takes minutes
    units = open_units(config.at(config.widen.encoder)) if config.widen else None
    start = find_start(config, whole=with_units)
    check_positions(start, config)
    facts = CheckpointFacts.load(start) if with_units else None
    tokenizer = open_tokenizer(start)
    if facts:
        facts.check_vocab(UnitVocab.from_words(tokenizer.get_vocab()), start)
    model = open_language_model(start, merge=True, **loading)
    codebook = facts.codebook if facts else None
    if config.widen and units:
        codebook, centres = units
        widen(tokenizer, model, codebook.size, config.widen.init, centres, config.seed, config.widen.scale)
    if codebook:
        prepare_for_serving(tokenizer, model, config.prefix)
    return model, tokenizer, codebook


def model_shape(config: StageConfig, file: Path | None) -> tuple[PreTrainedConfig, bool]:
    """Shape of the model that a stage trains, after widening, and whether its number of units was assumed.

    It is read from the run folder; for a stage that is not trained yet, through the neighbouring file that makes it;
    else from the hub. Units are added to all rows, though widening first removes rows beyond the tokenizer's words
    (some hundred in Qwen2.5), because that number needs the tokenizer.

    Args:
        file: the config's own file.
    """
    start, assumed = config.at(config.model), False
    neighbours = [] if file is None else [path for path in sorted(file.parent.glob("*.yaml")) if path != file]
    files = {path: read_yaml(path) for path in neighbours}
    maker = next((path for path, given in files.items() if given.get("out") == config.model), None)
    known = json.loads(SHAPES.read_text(encoding="utf-8"))
    if (start / "config.json").exists() or is_adapter(start):
        shape = shape_of(start)
    elif maker:
        given = checked(files[maker], str(maker), {"model": str})
        widening = given.get("widen")
        if widening is not None:
            widening = Widening(checked(widening, f"{maker}: widen", {"encoder": str})["encoder"])
        return model_shape(dataclasses.replace(config, model=given["model"], widen=widening), maker)
    elif name := next((name for name in known if config.model in (name, preset_folder(name))), None):
        shape = AutoConfig.for_model(**known[name])
    else:
        shape = shape_of(find_start(config, whole=False))
    if config.widen:
        book = config.at(config.widen.encoder) / "codebook.json"
        assumed = not book.exists()
        units = ASSUMED_UNITS if assumed else Codebook.load(book).size
        text = shape.get_text_config()  # a part of the config, for models that also read images
        rows = text.vocab_size + len(new_words(units))
        text.vocab_size = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    return shape, assumed

"""Every number option is checked where it enters: none takes what is not a number, infinity, or what it cannot mean."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import typing
from typing import Any

import numpy as np
import pytest

from eval.resynthesis import ResynthesisOptions
from instruct_data.build.config import BuildConfig, ChainConfig, UnitSource
from instruct_data.build.splits import Splits
from instruct_data.preferences.config import Pairing
from instruct_data.speech.espeak import EspeakVoice
from instruct_data.speech.flite import FliteVoice
from instruct_data.speech.speak import SpeakConfig
from instruct_data.speech.transformers_tts import TransformersVoice
from instruct_data.speech.unit_voice import UnitVoiceConfig
from instruct_data.text.completion import EndpointModel, LocalModel
from instruct_data.text.filters import Filters
from instruct_data.text.own.chats import OwnChatConfig
from instruct_data.text.own.texts import OwnTextConfig
from instruct_data.text.rewrite import RewriteConfig
from instruct_data.toy.world import ToyConfig
from speechgpt.sampling import Sampling
from stages.config import TRAINING_NUMBERS, Interleaving, Lora, Preference, Rows, Source, StageConfig, Widening
from stages.planning.cluster import Cluster
from stages.start_models.text_llm import TinyLlama
from units.dataset.extract_config import EncoderConfig, WorkConfig
from units.dataset.quality_config import QualityConfig
from units.dataset.shards import Share
from units.encoder.recipes import FitRecipe, Iteration, PretrainRecipe
from units.runtime.command import WRONG_CALL, check_range
from units.runtime.ranks import this_rank
from units.vocoder.heads.configs import HifiGanConfig, MelGeneratorConfig, VocosConfig
from units.vocoder.training.recipe import GanRecipe, VocoderRecipe
from variants.blsp.adapter_shape import AdapterShape
from variants.blsp.config import BlspConfig, LossWeights
from variants.blsp.continuation import Labelling
from variants.blsp.generate import Generation

CONFIGS = (
    *(EncoderConfig, WorkConfig, QualityConfig, Share, FitRecipe, PretrainRecipe, GanRecipe, VocoderRecipe),
    *(MelGeneratorConfig, HifiGanConfig, VocosConfig, ResynthesisOptions, Sampling),
    *(Filters, RewriteConfig, OwnChatConfig, OwnTextConfig, EndpointModel, LocalModel),
    *(SpeakConfig, UnitVoiceConfig, ToyConfig),
    *(BuildConfig, UnitSource, Splits, EspeakVoice, FliteVoice, TransformersVoice),
    *(StageConfig, Source, Lora, Rows, Interleaving, Widening, Preference, Pairing, Cluster, TinyLlama),
    *(BlspConfig, LossWeights, AdapterShape, Labelling, Generation),
)
STAGE: dict[str, Any] = {"stage": "s", "model": "m", "out": "o", "data": [], "training": {"max_steps": 3}}
NEEDED: dict[type, dict[str, Any]] = {  # beside the field
    EncoderConfig: {"kmeans": "km.bin"},
    RewriteConfig: {"local": "m"},
    EndpointModel: {"url": "http://localhost:1/v1", "model": "m"},
    LocalModel: {"folder": "m"},
    OwnChatConfig: {"local": "m"},
    OwnTextConfig: {"local": "m"},
    UnitSource: {"path": "u"},
    EspeakVoice: {"voice": "en"},
    FliteVoice: {"voice": "slt"},
    TransformersVoice: {"folder": "m"},
    StageConfig: STAGE,
    BlspConfig: STAGE,
    Source: {"path": "u"},
    Interleaving: {"alignments": "a.tsv"},
    Widening: {"encoder": "codec"},
}


def numbers_of(config: type) -> list[tuple[str, set]]:
    """(name, types) of the fields that are numbers."""
    found = []
    for name, hint in typing.get_type_hints(config).items():
        kinds = (set(typing.get_args(hint)) or {hint}) & {int, float}
        if kinds and typing.get_origin(hint) not in (tuple, list, dict, typing.ClassVar):
            found.append((name, kinds))
    return found


FIELDS = [(config, name, kinds) for config in CONFIGS for name, kinds in numbers_of(config)]


@pytest.mark.parametrize("config, name, kinds", FIELDS, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_number_outside_its_range_is_refused_by_name(config: type, name: str, kinds: set) -> None:
    wrong: list[float] = [-1, -(10**9)] if int in kinds else [-1.0, -1e30]
    wrong += [math.nan, math.inf, -math.inf] if float in kinds else []
    words = str in typing.get_args(typing.get_type_hints(config)[name])
    for value in (*wrong, True, [1], *(() if words else ("3", "0.5"))):
        with pytest.raises(ValueError) as error:
            config(**{**NEEDED.get(config, {}), name: value})
        said = str(error.value)
        assert name in said.replace("-", "_") and str(value) in said, said


SWITCHES = [
    (config, name)
    for config in CONFIGS
    for name, hint in typing.get_type_hints(config).items()
    if hint is bool and name in {field.name for field in dataclasses.fields(config)}
]


@pytest.mark.parametrize("config, name", SWITCHES, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_switch_is_true_or_false(config: type, name: str) -> None:
    for value in ("no", "false", "", 1, 0, None):
        with pytest.raises(ValueError) as error:
            config(**{**NEEDED.get(config, {}), name: value})
        assert name in str(error.value).replace("-", "_") and repr(value) in str(error.value)


NESTED = (
    (Iteration, {"steps": 3}, "clusters", ({"0": [5]}, {0: ["5"]}, {0: [True]}, {0: 5})),
    (ChainConfig, {}, "kinds", ({"speech_to_speech": "1"}, {"speech_to_speech": True})),
    (AdapterShape, {}, "kernels", (["5", 5], [True, 5], 5)),
    (PretrainRecipe, {}, "speed_range", (["0.9", 1.1], [True, 1.1], 1.0)),
    (HifiGanConfig, {}, "upsample_rates", ((5, "4", 4, 2, 2), (5, 4, 4, 4, True))),
    (GanRecipe, {}, "discriminator_divisor", (True, "1")),
)


@pytest.mark.parametrize("config, given, name, values", NESTED, ids=lambda part: getattr(part, "__name__", None))
def test_numbers_in_lists_and_tables_are_numbers(config: type, given: dict, name: str, values: tuple) -> None:
    for value in values:
        with pytest.raises(ValueError) as error:
            config(**given, **{name: value})
        assert name in str(error.value).replace("-", "_")


@pytest.mark.parametrize(
    "name, value",
    [("bf16", "no"), ("bf16", 1), ("label_smoothing_factor", "0.1"), ("seed_workers", None), ("torch_compile", "true")],
)
def test_any_argument_of_training_has_its_type(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name.replace("_", "[_-]")):
        StageConfig(**{**STAGE, "training": {**STAGE["training"], name: value}})


def test_numbers_of_numpy_are_numbers() -> None:
    assert Sampling(top_k=np.int64(3), top_p=np.float32(0.5), temperature=1).top_k == 3


def test_the_list_of_settings_is_whole() -> None:
    """Every settings class with numbers of units, eval and speechgpt is in the table above."""
    modules = ("eval.resynthesis", "units.dataset.extract_config", "units.dataset.quality_config")
    modules += ("stages.config", "stages.planning.cluster", "stages.start_models.text_llm")
    modules += ("instruct_data.preferences.config", "variants.blsp.config", "variants.blsp.adapter_shape")
    modules += ("units.encoder.recipes", "units.vocoder.training.recipe", "units.vocoder.heads.configs")
    for module in map(importlib.import_module, (*modules, "speechgpt.sampling")):
        for name, found in inspect.getmembers(module, inspect.isclass):
            if found.__module__ == module.__name__ and dataclasses.is_dataclass(found) and numbers_of(found):
                assert found in CONFIGS or found is Iteration or any(issubclass(one, found) for one in CONFIGS), name


BEYOND: tuple[tuple[type, str, object], ...] = (
    *((StageConfig, "block_size", value) for value in (0, 1, 1.5, "64")),
    *((StageConfig, "batch", value) for value in (0, 2.5)),
    *((StageConfig, name, value) for name in ("dev_documents", "samples", "seed") for value in (0.5, "1", None)),
    (StageConfig, "seed", 2**32),
    (StageConfig, "threads", 1025),
    (StageConfig, "unit_loss_weight", 0.0),
    *((StageConfig, name, value) for name in ("unit_noise", "reply_noise") for value in (1.0, 1.5, [0.1])),
    *((Source, "weight", value) for value in (0, 0.0, "much")),
    *((Lora, "r", value) for value in (0, 1.5)),
    *((Lora, "dropout", value) for value in (1.0, 2.0)),
    *((Lora, "bits", value) for value in (True, 5, 0, math.nan)),
    *((Interleaving, "span", value) for value in (0, 0.5)),
    *((Preference, "beta", value) for value in (0, -1, "0.1")),
    (Preference, "sft", -0.1),
    *((Pairing, "candidates", value) for value in (1, 2.5, 101)),
    *((Pairing, name, value) for name in ("temperature", "margin", "longest") for value in (0, "1")),
    *((Interleaving, "text_share", value) for value in (0, 1, 1.5)),
    *((Cluster, "gpus", value) for value in (0,)),
    *((Cluster, "mfu", value) for value in (0.0, 1.5)),
    *((TinyLlama, name, 0) for name in ("vocab_size", "width", "layers", "heads", "feed_forward", "context")),
)


@pytest.mark.parametrize("config, name, value", BEYOND, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_value_that_means_nothing_is_refused_by_name(config: type, name: str, value: object) -> None:
    with pytest.raises(ValueError) as error:
        config(**{**NEEDED.get(config, {}), name: value})
    assert name in str(error.value).replace("-", "_") and str(value) in str(error.value)


@pytest.mark.parametrize("name", [*TRAINING_NUMBERS, "save_total_limit"])
def test_numbers_of_training_are_checked(name: str) -> None:
    for value in (math.nan, math.inf, -1, True, False, "4", [4]):
        with pytest.raises(ValueError) as error:
            StageConfig(**{**STAGE, "training": {**STAGE["training"], name: value}})
        said = str(error.value).replace("-", "_")
        assert f"training.{name}" in said and str(value).replace("-", "_") in said, said
    given = {**STAGE["training"], name: 4 if "adam_beta" not in name else 0.9}
    assert StageConfig(**{**STAGE, "training": given}).training == given


RESYNTHESIS = "--encoder e --vocoder v --manifest m --grammar g --out o".split()
STAGE_OPTIONS = [*"--stage s --model m --out o --training.max_steps 3".split(), "--data", "[{path: u}]"]
OPTIONS = (
    ("eval.run", ("--model", "m", "--corpus", "c", "--out", "o"), "limit", ("0", "-1")),
    ("eval.resynthesis", RESYNTHESIS, "gate", ("nan", "inf", "-1")),
    ("speechgpt.cli", ("--model", "m"), "memory", ("-1",)),
    ("speechgpt.serve.server", ("--model", "m"), "port", ("-1", "65536")),
    ("speechgpt.serve.server", ("--model", "m"), "rows", ("0",)),
    ("speechgpt.serve.server", ("--model", "m"), "waiting", ("-1",)),
    ("units.encoder.adopt", ("m", "k.bin", "o"), "layer", ("0", "-1")),
    ("units.encoder.pretrain", ("--manifest", "m", "--out", "o"), "workers", ("-1",)),
    ("units.encoder.pretrain", ("--manifest", "m", "--out", "o"), "threads", ("-1",)),
    ("units.encoder.pretrain", ("--manifest", "m", "--out", "o"), "recipe.max_crop_seconds", ("nan", "inf", "0")),
    ("units.vocoder.train_vocoder", ("--units u --manifest m --out o").split(), "threads", ("-1",)),
    ("units.vocoder.train_vocoder", ("--units u --manifest m --out o").split(), "recipe.gan.decay", ("nan", "1.5")),
    ("units.dataset.extract", ("s.jsonl", "o", "--world", "2"), "rank", ("2", "-1")),
    ("units.dataset.extract", ("s.jsonl", "o"), "batch_seconds", ("0", "nan", "inf")),
    ("units.dataset.quality", ("s",), "seed", ("-1",)),
    ("stages.train", STAGE_OPTIONS, "block_size", ("-4", "0", "1")),
    ("stages.train", STAGE_OPTIONS, "batch", ("-1", "0")),
    ("stages.train", STAGE_OPTIONS, "lora.dropout", ("nan", "inf", "-1")),
    ("stages.train", STAGE_OPTIONS, "training.max_steps", ("nan", "0", "-1", "many")),
    ("stages.train", (*STAGE_OPTIONS, "--plan"), "gpus", ("0", "-1")),
    ("stages.train", STAGE_OPTIONS, "share", ("0", "-1")),
    ("stages.start_models.text_llm", ("--text", "t", "--out", "o"), "llama.layers", ("0", "-1")),
)


@pytest.mark.parametrize("module, args, option, values", OPTIONS)
def test_a_command_refuses_a_number_in_one_line(
    module: str, args: list[str], option: str, values: tuple, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(module).main
    for value in values:
        with pytest.raises(SystemExit) as ended:
            main.cli([*args, f"--{option}={value}"])
        assert ended.value.code == WRONG_CALL
        (line,) = [line for line in capsys.readouterr().err.split("\n") if line]
        assert option.rpartition(".")[2] in line.replace("-", "_") and value.lstrip("-") in line, line


def test_ranks_are_of_their_world() -> None:
    for rank, world in ((2, 2), (-1, 2), (0, 0), (5, None), (0, -1)):
        with pytest.raises(ValueError, match="rank"):
            this_rank(rank, world)
    assert (this_rank(1, 2).rank, this_rank(1, 2).world) == (1, 2)


def test_a_range_is_of_finite_numbers() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="--some-size"):
            check_range("some_size", value)
    check_range("some_size", None, 1)
    check_range("some_size", 10**400, 1)

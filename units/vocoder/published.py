"""Reads and writes the published CodeHiFiGAN: `vocoder.pt` (or `g_00500000`) and its JSON config, without fairseq.

vocoder.pt     {"generator": state dict with weight norm}, as fairseq and LLaMA-Omni load it
config.json    upsample_rates, num_embeddings, dur_predictor_params, ...; keys that only training reads are ignored
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from units.audio import HOP, SAMPLE_RATE
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, parsed, read_text
from units.runtime.files.saved_states import check_checksums
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import HifiGanConfig, is_count
from units.vocoder.heads.hifigan import HifiGan

PUBLISHED = "vocoder.pt"
LENGTH, DIRECTION = ".weight_g", ".weight_v"  # suffixes of weight norm's two tensors
NEEDED = (
    "num_embeddings",
    "embedding_dim",
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_initial_channel",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)
# Further inputs of the published code: style, pitch, an external speaker encoder, vector quantisers, languages.
UNSUPPORTED = (
    "f0",
    "f0_quant_num_bin",
    "f0_quantizer",
    "f0_quantizer_path",
    "f0_vq_params",
    "f0_stats",
    "code_vq_params",
    "embedder_params",
    "multistyle",
    "num_styles",
    "style",
    "lambda_commit_code",
    "multi_lang",
    "num_langs",
)
# Keys that only fairseq's trainers read: the mels of their loss, which are those of LogMel.
LOSS = {
    "num_mels": 80,
    "n_fft": 1024,
    "hop_size": 256,
    "win_size": 1024,
    "fmin": 0,
    "fmax": 8000,
    "fmax_for_loss": None,
}


def read_config(path: Path) -> dict:
    """Read the JSON config of a CodeHiFiGAN.

    Raises: FileNotFoundError, or VocoderError if it is not such a config.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no vocoder config at {path}; CodeHiFiGAN weights come with a config.json: name it")
    try:
        config = parsed(read_text(path), str(path))
    except FileError as error:
        raise VocoderError(VocoderReason.INVALID_CONFIG, str(error)) from error
    check_published(config, path)
    return config


def check_published(config: object, path: Path) -> None:
    """Raises VocoderError unless a config has what a CodeHiFiGAN's needs."""
    missing = [name for name in NEEDED if not isinstance(config, dict) or name not in config]
    if missing or not isinstance(config, dict):
        raise VocoderError(
            VocoderReason.INVALID_CONFIG, f"{path} is not the config of a CodeHiFiGAN: it lacks {missing}"
        )
    size = config["num_embeddings"]
    if not is_count(size) or size < 1:
        raise VocoderError(
            VocoderReason.INVALID_CONFIG,
            f"{path}: num_embeddings is {repr(size)[:60]}; it is the number of units, 1 or more",
        )


@contextmanager
def named_settings(where: str | Path) -> Iterator[None]:
    """Name the file in the errors of settings that it gives, such as a word where a number belongs."""
    try:
        yield
    except VocoderError as error:
        if str(where) in str(error):
            raise
        raise VocoderError(error.reason, f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        message = f"{where} has settings that no vocoder has ({type(error).__name__}: {error})"
        raise VocoderError(VocoderReason.INVALID_CONFIG, message) from error


def settings_of(config: dict, where: str | Path) -> HifiGanConfig:
    """The settings in a published config.

    Args:
        config: from read_config.
        where: its path, for errors.

    Raises: VocoderError naming what the network needs and this version does not have.
    """
    with named_settings(where):
        return _settings_of(config, where)


def _settings_of(config: dict, where: str | Path) -> HifiGanConfig:
    _check_supported(config, where)
    durations = config.get("dur_predictor_params") or {}
    width = config["embedding_dim"]
    if durations and durations["encoder_embed_dim"] != width:
        raise VocoderError(
            VocoderReason.UNSUPPORTED,
            f"{where}: the duration predictor reads {durations['encoder_embed_dim']} channels, "
            f"but embedding_dim is {width}",
        )
    settings = HifiGanConfig(
        embedding_dim=width,
        num_speakers=config.get("num_speakers", 200) if config.get("multispkr") else 0,  # 200 is fairseq's default
        duration_width=durations.get("var_pred_hidden_dim", 0),
        duration_kernel=durations.get("var_pred_kernel_size", 3),
        duration_dropout=durations.get("var_pred_dropout", 0.5),
        upsample_rates=tuple(config["upsample_rates"]),
        upsample_kernel_sizes=tuple(config["upsample_kernel_sizes"]),
        upsample_initial_channel=config["upsample_initial_channel"],
        resblock_kernel_sizes=tuple(config["resblock_kernel_sizes"]),
        resblock_dilation_sizes=tuple(map(tuple, config["resblock_dilation_sizes"])),
    )
    if config.get("model_in_dim", settings.input_dim) != settings.input_dim:
        inputs = "a unit and a speaker" if settings.num_speakers else "a unit"
        raise VocoderError(
            VocoderReason.UNSUPPORTED,
            f"{where} has model_in_dim {config['model_in_dim']}, but {inputs} make {settings.input_dim} channels: "
            "the network has a further input, which this version does not support",
        )
    return settings


def _check_supported(config: dict, where: str | Path) -> None:
    """Raises: VocoderError naming the unsupported keys of a published config."""
    unsupported = [name for name in UNSUPPORTED if config.get(name)]
    if unsupported:
        raise VocoderError(
            VocoderReason.UNSUPPORTED,
            f"{where} needs {unsupported}; this version supports units and a speaker's number only. "
            "Use a vocoder that was trained without them.",
        )
    for name, supported in (("resblock", "1"), ("sampling_rate", SAMPLE_RATE), ("code_hop_size", HOP)):
        if str(config.get(name, supported)) != str(supported):
            raise VocoderError(
                VocoderReason.UNSUPPORTED,
                f"{where} has {name} {config[name]!r}; this version supports {supported!r} only",
            )


def config_of(settings: HifiGanConfig, num_units: int) -> dict:
    """The published config, with all keys that fairseq's tools and trainers read; inverse of settings_of."""
    config: dict = {
        "resblock": "1",
        "upsample_rates": settings.upsample_rates,
        "upsample_kernel_sizes": settings.upsample_kernel_sizes,
        "upsample_initial_channel": settings.upsample_initial_channel,
        "resblock_kernel_sizes": settings.resblock_kernel_sizes,
        "resblock_dilation_sizes": settings.resblock_dilation_sizes,
        "num_embeddings": num_units,
        "embedding_dim": settings.embedding_dim,
        "model_in_dim": settings.input_dim,
        "code_hop_size": HOP,
        "f0": False,
        "sampling_rate": SAMPLE_RATE,
        **LOSS,
    }
    if settings.duration_width:
        config["dur_prediction_weight"] = 1.0
        config["dur_predictor_params"] = {
            "encoder_embed_dim": settings.embedding_dim,
            "var_pred_hidden_dim": settings.duration_width,
            "var_pred_kernel_size": settings.duration_kernel,
            "var_pred_dropout": settings.duration_dropout,
        }
    if settings.num_speakers:
        config |= {"multispkr": "from_input_file", "num_speakers": settings.num_speakers}
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The generator's state dict, with weight norm folded into the weights.

    Raises: FileNotFoundError, or VocoderError if the file holds anything but tensors, or no generator.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no vocoder weights at {path}")
    try:
        check_checksums(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way that its opcodes can fail
        raise VocoderError(
            VocoderReason.NOT_TENSORS,
            f"{path} is not a file of tensors only; other pickles are refused, since they can run programs. "
            f"A vocoder's file is {{'generator': state dict}}. ({' '.join(str(error).split())[:200]})",
        ) from error
    state = saved.get("generator") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = sorted(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise VocoderError(
            VocoderReason.NOT_TENSORS,
            f"{path} holds {found}; a CodeHiFiGAN's file holds 'generator', a dict of tensors",
        )
    folded = {name: value for name, value in state.items() if not name.endswith((LENGTH, DIRECTION))}
    for name in (name.removesuffix(DIRECTION) for name in state if name.endswith(DIRECTION)):
        if name + LENGTH not in state:
            raise VocoderError(VocoderReason.OTHER_WEIGHTS, f"{path}: {name} lacks the length of its weight norm")
        folded[name + ".weight"] = torch._weight_norm(state[name + DIRECTION], state[name + LENGTH], 0)
    return folded


def write_weights(path: Path, network: HifiGan) -> Path:
    """Write a generator with weight norm, as published tools read it; inverse of read_weights up to rounding."""
    normed = {f"{name}.weight" for name, layer in network.named_modules() if layer in network.convolutions()}
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        value = value.detach().cpu().contiguous()
        if name in normed:
            state[name.removesuffix(".weight") + LENGTH] = value.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            state[name.removesuffix(".weight") + DIRECTION] = value
        else:
            state[name] = value
    with written_whole(path, "wb") as file:
        torch.save({"generator": state}, file)
    return path

"""Reads and writes the published CodeHiFiGAN: `vocoder.pt` (or `g_00500000`) with its json config. No fairseq, no pickle.

vocoder.pt     {"generator": state dict with weight norm}, as fairseq and LLaMA-Omni load it
config.json    upsample_rates, num_embeddings, dur_predictor_params ...; keys that only training reads are let pass
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import torch
from torch import Tensor

from units.audio import HOP, SAMPLE_RATE
from units.runtime.atomic import written_whole
from units.vocoder.heads.configs import HifiGanConfig
from units.vocoder.heads.hifigan import HifiGan

PUBLISHED = "vocoder.pt"
G, V = ".weight_g", ".weight_v"  # weight norm's length and direction
# What the published code can read beside units and a speaker: style, pitch, an external speaker encoder, vector quantisers.
UNSUPPORTED = (
    "f0", "f0_quant_num_bin", "f0_quantizer", "f0_quantizer_path", "f0_vq_params", "f0_stats", "code_vq_params",
    "embedder_params", "multistyle", "num_styles", "style", "lambda_commit_code", "multi_lang", "num_langs",
)  # fmt: skip
# What only the old trainers read: the mels of their loss, which are LogMel's.
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
    """The published json. Raises FileNotFoundError, or ValueError if it is not a CodeHiFiGAN's."""
    if not path.is_file():
        raise FileNotFoundError(f"no vocoder config at {path}; CodeHiFiGAN weights come with a config.json: name it")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not json ({error}); a CodeHiFiGAN's config is") from error
    needed = ("num_embeddings", "embedding_dim", "upsample_rates", "upsample_kernel_sizes", "upsample_initial_channel",
              "resblock_kernel_sizes", "resblock_dilation_sizes")  # fmt: skip
    missing = [name for name in needed if not isinstance(config, dict) or name not in config]
    if missing:
        raise ValueError(f"{path} is no CodeHiFiGAN's config: it lacks {missing}")
    return config


def settings_of(config: dict, where: str | Path) -> HifiGanConfig:
    """Our settings out of a published config.

    Raises: ValueError naming what the network would need and this version cannot do.
    """
    asked = [name for name in UNSUPPORTED if config.get(name)]
    if asked:
        raise ValueError(
            f"{where} asks for {asked}; this version reads units and a speaker's number only. "
            "Use a vocoder that was trained without them."
        )
    for name, only in (("resblock", "1"), ("sampling_rate", SAMPLE_RATE), ("code_hop_size", HOP)):
        if str(config.get(name, only)) != str(only):
            raise ValueError(f"{where} has {name} {config[name]!r}; vocoders here have {only!r}")
    durations = config.get("dur_predictor_params") or {}
    width = config["embedding_dim"]
    if durations and durations["encoder_embed_dim"] != width:
        raise ValueError(
            f"{where}: the duration predictor reads {durations['encoder_embed_dim']} channels, but embedding_dim is {width}"
        )
    settings = HifiGanConfig(
        embedding_dim=width,
        num_speakers=config.get("num_speakers", 200) if config.get("multispkr") else 0,  # fairseq's own default
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
        raise ValueError(
            f"{where} has model_in_dim {config['model_in_dim']}, but units{' and a speaker' * bool(settings.num_speakers)} "
            f"make {settings.input_dim} channels: the network reads something else as well, which this version cannot give"
        )
    return settings


def config_of(settings: HifiGanConfig, num_units: int) -> dict:
    """The published config of our settings, all keys that fairseq's tools and trainers read; inverse of settings_of."""
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
    """The generator's state dict with weight norm folded away.

    Raises: FileNotFoundError, or ValueError if the file holds anything but tensors, or no generator.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no vocoder weights at {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is not a file of tensors only, and nothing else is opened here: a pickle can run programs. "
            f"A vocoder's file is {{'generator': state dict}}. ({str(error).splitlines()[0]})"
        ) from error
    state = saved.get("generator") if isinstance(saved, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        came = sorted(map(str, saved)) if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"{path} holds {came}; a CodeHiFiGAN's file holds 'generator', a dict of tensors")
    folded = {name: value for name, value in state.items() if not name.endswith((G, V))}
    for name in (name.removesuffix(V) for name in state if name.endswith(V)):
        if name + G not in state:
            raise ValueError(f"{path}: {name} has a direction but no length; the weight norm is incomplete")
        folded[name + ".weight"] = torch._weight_norm(state[name + V], state[name + G], 0)
    return folded


def write_weights(path: Path, network: HifiGan) -> Path:
    """Write a generator as the old tools read it, with weight norm; inverse of read_weights up to rounding."""
    normed = {f"{name}.weight" for name, layer in network.named_modules() if layer in network.convolutions()}
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        value = value.detach().cpu().contiguous()
        if name in normed:
            state[name.removesuffix(".weight") + G] = value.flatten(1).norm(dim=1).reshape(-1, 1, 1)
            state[name.removesuffix(".weight") + V] = value
        else:
            state[name] = value
    with written_whole(path, "wb") as file:
        torch.save({"generator": state}, file)
    return path

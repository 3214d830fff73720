"""A vocoder on disk: our folder, or a published CodeHiFiGAN's pair of files.

model.safetensors    the network's weights
config.json          codebook, head, sizes; for the head "hifigan" the sizes stand under their published keys
vocoder.pt           "hifigan" only: the same weights as the old tools read them, with this very config.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from units.audio import FRAME_RATE
from units.codebook import Codebook
from units.runtime.atomic import written_whole
from units.vocoder.heads.configs import HeadConfig, HifiGanConfig, MelGeneratorConfig, VocosConfig
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.heads.mel_generator import MelNetwork
from units.vocoder.heads.vocos import Vocos
from units.vocoder.published import PUBLISHED, config_of, read_config, read_weights, settings_of, write_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"
HEADS = {"mel": (MelNetwork, MelGeneratorConfig), "hifigan": (HifiGan, HifiGanConfig), "vocos": (Vocos, VocosConfig)}


@dataclass(frozen=True)
class VocoderFiles:
    """What a vocoder's files say: its codebook, its head's sizes, names of its speakers, and its weights by name."""

    codebook: Codebook
    settings: HeadConfig
    speakers: tuple[str, ...]
    weights: dict[str, Tensor]


def read_vocoder(source: Path, config: Path | None = None, codebook: Codebook | None = None) -> VocoderFiles:
    """Read a folder, or a published file with its config. Arguments and errors as in UnitVocoder.from_pretrained."""
    if source.is_file():
        return _read_published(source, config or source.parent / CONFIG, codebook)
    weights = source / PUBLISHED
    if not (source / WEIGHTS).is_file() and weights.is_file():
        return _read_published(weights, config or source / CONFIG, codebook)
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {source}; a vocoder folder holds {CONFIG} and {WEIGHTS}. "
                f"Train one with: python -m units.vocoder.train_vocoder --out {source} ... (a killed training goes on)"
            )
    described = _read_config(json.loads((source / CONFIG).read_text(encoding="utf-8")), source / CONFIG)
    try:
        return dataclasses.replace(described, weights=load_file(source / WEIGHTS))
    except SafetensorError as error:
        raise ValueError(f"{source / WEIGHTS} does not hold the weights that {CONFIG} describes: {error}") from error


def _read_config(config: dict, source: Path) -> VocoderFiles:
    if not {"codebook", "head"} <= config.keys():
        raise ValueError(f"{source} has the fields {sorted(config)}; a vocoder's are codebook, generator and head")
    head, speakers = config["head"], tuple(config.get("speakers", ()))
    if head not in HEADS:
        raise ValueError(f"{source} names the head {head!r}; this version knows {sorted(HEADS)}")
    codebook = Codebook.from_json(config["codebook"])
    if head == HifiGanConfig.head:
        return VocoderFiles(codebook, settings_of(config, source), speakers, {})
    if set(config) - {"speakers"} != {"codebook", "head", "generator"}:
        raise ValueError(f"{source} has the fields {sorted(config)}; a vocoder's are codebook, generator and head")
    settings_class = HEADS[head][1]
    unknown = set(config["generator"]) - {field.name for field in dataclasses.fields(settings_class)}
    if unknown:
        raise ValueError(f"{source}: the {head} head has no settings {sorted(unknown)}")
    return VocoderFiles(codebook, settings_class(**config["generator"]), speakers, {})


def _read_published(weights: Path, config: Path, codebook: Codebook | None) -> VocoderFiles:
    published = read_config(config)
    settings, size = settings_of(published, config), published["num_embeddings"]
    state = read_weights(weights)
    if "codebook" in published:  # ours, written for the old tools
        codebook = Codebook.from_json(published["codebook"])
    elif codebook is None:
        of = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
        codebook = Codebook(f"{weights.stem}-km{size}", "unknown", 0, size, FRAME_RATE, "none", of)
    if codebook.size != size:
        raise ValueError(
            f"{weights} speaks {size} units, but the codebook {codebook.name!r} has {codebook.size}; "
            "they were not made for each other"
        )
    return VocoderFiles(codebook, settings, tuple(published.get("speakers", ())), state)


def write_vocoder(
    folder: Path, codebook: Codebook, settings: HeadConfig, speakers: tuple[str, ...], network: nn.Module
) -> None:
    """Write a folder; config.json comes last, so its presence means complete. Inverse of read_vocoder."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with written_whole(folder / WEIGHTS, "wb") as file:
        file.write(save(state))
    config: dict = {"codebook": dataclasses.asdict(codebook), "head": settings.head}
    if isinstance(network, HifiGan):
        write_weights(folder / PUBLISHED, network)
        config |= config_of(network.config, codebook.size)
    else:
        config["generator"] = dataclasses.asdict(settings)
    if speakers:
        config["speakers"] = speakers
    with written_whole(folder / CONFIG) as file:
        json.dump(config, file, indent=1)

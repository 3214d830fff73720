"""A vocoder on disk: a vocoder folder, or the two files of a published CodeHiFiGAN.

model.safetensors    the network's weights
config.json          codebook, head and settings; with the head "hifigan" the settings have their published names
vocoder.pt           "hifigan" only: the same weights for fairseq and other tools, with the same config.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from units.audio import FRAME_RATE
from units.codebook import Codebook
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import checked, read_json
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import HeadConfig, HifiGanConfig, MelGeneratorConfig, VocosConfig
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.heads.mel_generator import MelNetwork
from units.vocoder.heads.vocos import Vocos
from units.vocoder.published import (
    PUBLISHED,
    check_published,
    config_of,
    named_settings,
    read_config,
    read_weights,
    settings_of,
    write_weights,
)

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FIELDS = {"codebook", "head", "generator"}  # of config.json, but for the head "hifigan"; `speakers` may be there too


@dataclass(frozen=True)
class Head:
    """A kind of network.

    network: makes one for a number of units and settings. settings: their class.
    """

    network: Callable[..., nn.Module]
    settings: type[HeadConfig]


HEADS = {
    MelGeneratorConfig.head: Head(MelNetwork, MelGeneratorConfig),
    HifiGanConfig.head: Head(HifiGan, HifiGanConfig),
    VocosConfig.head: Head(Vocos, VocosConfig),
}


@dataclass(frozen=True)
class VocoderFiles:
    """The content of a vocoder's files: its codebook, settings, names of speakers, and weights by name.

    config, weights_file: the files of the settings and of the weights, for errors.
    """

    codebook: Codebook
    settings: HeadConfig
    speakers: tuple[str, ...]
    weights: dict[str, Tensor]
    config: Path
    weights_file: Path


def read_vocoder(source: Path, config: Path | None = None, codebook: Codebook | None = None) -> VocoderFiles:
    """Read a vocoder folder, or a published file with its config. Arguments and errors: UnitVocoder.from_pretrained."""
    if source.is_file():
        return _read_published(source, config or source.parent / CONFIG, codebook)
    if not (source / WEIGHTS).is_file() and (source / PUBLISHED).is_file():
        return _read_published(source / PUBLISHED, config or source / CONFIG, codebook)
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"no {name} in {source}; a vocoder folder holds {CONFIG} and {WEIGHTS}. "
                f"Train one: units-train-vocoder --out {source} ... (it resumes a training that was killed)"
            )
    described = _read_config(source / CONFIG)
    try:
        return dataclasses.replace(described, weights=load_file(source / WEIGHTS))
    except Exception as error:  # SafetensorError, and errors of torch for a header that is not the file's
        raise VocoderError(
            VocoderReason.OTHER_WEIGHTS,
            f"{source / WEIGHTS} does not hold the weights that {CONFIG} describes: {error}",
        ) from error


def _read_config(path: Path) -> VocoderFiles:
    """A folder's config.json, without weights."""
    config = read_json(path)
    if not {"codebook", "head"} <= config.keys():
        raise _other_fields(path, config)
    head, speakers = config["head"], _speakers(config, path)
    if head not in list(HEADS):
        raise VocoderError(VocoderReason.INVALID_CONFIG, f"{path} has the head {head!r}; heads are {sorted(HEADS)}")
    codebook = Codebook.from_json(checked(config["codebook"], f"{path}, codebook", {}), str(path))
    if head == HifiGanConfig.head:
        check_published(config, path)
        return VocoderFiles(codebook, settings_of(config, path), speakers, {}, path, path.with_name(WEIGHTS))
    if set(config) - {"speakers"} != FIELDS:
        raise _other_fields(path, config)
    settings = HEADS[head].settings
    given = checked(config["generator"], f"{path}, generator", {})
    unknown = set(given) - {field.name for field in dataclasses.fields(settings)}
    if unknown:
        raise VocoderError(VocoderReason.INVALID_CONFIG, f"{path}: the head {head!r} has no settings {sorted(unknown)}")
    if settings is MelGeneratorConfig:  # release 0.1.0 had no blocks, and its vocoders keep their sound
        given = {"block_frames": 0, **given}
    with named_settings(path):
        return VocoderFiles(codebook, settings(**given), speakers, {}, path, path.with_name(WEIGHTS))


def _speakers(config: dict, path: Path) -> tuple[str, ...]:
    """The speakers' names in a config; none if it has no such field."""
    found = config.get("speakers", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise VocoderError(
            VocoderReason.INVALID_CONFIG, f"{path}: speakers is {str(found)[:60]}; it is a list of names"
        )
    return tuple(found)


def _other_fields(path: Path, config: dict) -> VocoderError:
    return VocoderError(
        VocoderReason.INVALID_CONFIG, f"{path} has the fields {sorted(config)}; a vocoder's are {sorted(FIELDS)}"
    )


def _read_published(weights: Path, config: Path, codebook: Codebook | None) -> VocoderFiles:
    """A published pair of files."""
    published = read_config(config)
    settings, size = settings_of(published, config), published["num_embeddings"]
    state = read_weights(weights)
    if "codebook" in published:  # a pair of files written by write_vocoder
        codebook = Codebook.from_json(checked(published["codebook"], f"{config}, codebook", {}), str(config))
    elif codebook is None:
        fingerprint = hashlib.sha256(weights.read_bytes()).hexdigest()[:8]
        codebook = Codebook(f"{weights.stem}-km{size}", "unknown", 0, size, FRAME_RATE, "none", fingerprint)
    if codebook.size != size:
        raise VocoderError(
            VocoderReason.OTHER_CODEBOOK_SIZE,
            f"{weights} is for {size} units by {config}, but the codebook {codebook.name!r} has {codebook.size}; "
            "use the unit encoder that the vocoder was trained with",
        )
    return VocoderFiles(codebook, settings, _speakers(published, config), state, config, weights)


def write_vocoder(
    folder: Path, codebook: Codebook, settings: HeadConfig, speakers: tuple[str, ...], network: nn.Module
) -> None:
    """Write a vocoder folder. config.json comes last, so its presence means complete. Inverse of read_vocoder.

    Weights are written in half precision if that loses nothing.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if all(torch.equal(halves[name].to(tensor.dtype), tensor) for name, tensor in state.items()):
        state = halves
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

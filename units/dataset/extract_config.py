"""Settings of units-extract: which units are computed, and how the work is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from units.runtime.command import check_range
from units.runtime.settings import check_types

MOST_WORKERS = 1024  # processes or threads of one machine
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class EncoderConfig:
    """The unit encoder: a unit encoder folder, or an encoder and its k-means. It decides which units are computed."""

    encoder: str | None = None
    """unit encoder folder, or one that ships: codec (if not given) or starter; with --kmeans a transformers folder, a
    hub id, or a fairseq .pt"""
    kmeans: Path | None = None
    """centres: a joblib .bin of scikit-learn, .npy, or .safetensors"""
    layer: int | None = None
    """the layer that the centres were fitted on; known for the published pairs"""
    dtype: Dtype = "float32"
    """of the encoder's matrix products; float32 is exact, bfloat16 is faster and changes a few units"""
    backend: Literal["torch", "fairseq"] = "torch"
    """fairseq runs fairseq's own code, if it is installed"""
    compile: bool = False
    """torch.compile the layers; pays on long runs"""
    features: bool = False
    """write the encoder's states instead of units, in half precision: a feature set. --encoder is then `starter`, a
    transformers folder, a hub id, or a fairseq .pt, and --layer counts from 1; without it the last layer is taken"""
    window: Literal["full", "utterance", "padded"] = "full"
    """for the features of a Whisper: full pads each recording to 30 s; utterance reads it alone, in a fraction of the
    time; padded is full with the states of the padding"""
    upstream_cut: bool = False
    """cut audio beyond 100 seconds as fairseq's and SpeechGPT's readers do, which loses a frame per cut"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("layer", self.layer, 0)
        if self.features:
            if self.kmeans is not None or self.backend != "torch":
                raise ValueError("--features writes states, not units; leave --kmeans and --backend out")
            return
        if self.kmeans is None and (self.layer is not None or self.backend != "torch"):
            raise ValueError("--layer and --backend need --kmeans; a unit encoder folder states its layer")


@dataclass(frozen=True)
class WorkConfig:
    """How the work is done. Nothing here changes the units of an utterance."""

    device: str = "cpu"
    """cpu, cuda, or cuda:N"""
    batch_seconds: float | None = None
    """audio in one batch; 40 on a CPU, 400 on a GPU if not given"""
    shard_size: int = 2000
    """utterances in a shard; fewer, such as 50, if they last for an hour each"""
    processes: int | None = None
    """processes on this machine: one for each core (up to 8) or each GPU if not given; more than there are GPUs share
    them"""
    workers: int | None = None
    """threads of each process that decode ahead; none on a CPU, and its share of the cores with a GPU if not given"""
    limit: int | None = None
    """read only the first utterances, up to this number"""
    keep_silent: bool = False
    """give silent audio units too, instead of refusing it"""
    dry_run: bool = False
    """report what would be done and how long it would take"""
    rank: int | None = None
    """this process among world; from the environment of torchrun or SLURM if not given"""
    world: int | None = None
    """how many processes share the work; from the same environment if not given"""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("batch_seconds", self.batch_seconds, 0, exclusive=True)
        for name in ("shard_size", "limit", "world"):
            check_range(name, getattr(self, name), 1)
        check_range("processes", self.processes, 1, MOST_WORKERS)
        check_range("workers", self.workers, 0, MOST_WORKERS)
        check_range("rank", self.rank, 0, math.inf if self.world is None else self.world - 1)

"""The `units-extract` command: audio files or whole corpora to units.

    units-extract a.wav                                    # prints <sosp><12><7>..<eosp>
    units-extract folder/of/audio units/mine               # a unit set, with the encoder that comes with the package
    units-extract train.jsonl units/train --encoder hubert_base_ls960.pt --kmeans hubert_base_ls960_L9_km500.bin --device cuda
    find . -name '*.flac' | units-extract - units/all
    torchrun --nproc_per_node 8 -m units.dataset.extract train.jsonl units/train --device cuda

A killed run goes on at the first missing shard. Exit code: 0 all is there (or other ranks are still at it, which it
says), 3 all but what refused.jsonl lists, 2 a mistake in the call, said in one line.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from units.audio import SAMPLE_RATE, load_wav
from units.corpus.decoding import decoded
from units.corpus.sources import STANDARD_INPUT, Listing, list_source
from units.dataset.extraction import Pace, check_plan, extract, missing_shards
from units.dataset.unit_set import COMPLETION_FILE, read_unit_set
from units.encoder.hubert import HubertFeatures
from units.encoder.unit_encoder import STARTER, Backend, UnitEncoder
from units.notation import spell
from units.runtime.ahead import own_cores, spare_cores
from units.runtime.precision import check_device
from units.runtime.ranks import this_rank
from units.runtime.refusals import Refusal, counted

MOST_PROCESSES = 8  # on the CPUs of one machine, if the user does not say otherwise
PROBE_FILES = 64  # that --dry-run decodes to tell how long the corpus is
PROBE_SECONDS = 60.0  # of them, that it encodes to tell how fast
SOME_REFUSED = 3  # exit code
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Choice:
    """Which units: a unit encoder folder, or an encoder and its k-means; and how they are computed."""

    encoder: str
    kmeans: Path | None
    layer: int | None
    dtype: Dtype
    backend: Backend
    upstream_cut: bool
    compile: bool

    def open(self, device: str) -> UnitEncoder:
        """Raises: ValueError or FileNotFoundError that says what does not fit."""
        dtype = getattr(torch, self.dtype)
        if self.kmeans is not None:
            found = UnitEncoder.join(self.encoder, self.kmeans, self.layer, device, dtype, self.backend)
        elif self.layer is not None or self.backend != "torch":
            raise ValueError(
                "--layer and --backend go with --kmeans; a unit encoder folder has its layer written in it"
            )
        else:
            found = UnitEncoder.from_pretrained(self.encoder, device, dtype)
        if isinstance(found.features, HubertFeatures):
            found.features.cut_long = self.upstream_cut
            if self.compile:
                found.features.compile()
        return found


def main(
    source: str, out: Path | None = None, encoder: str = str(STARTER), kmeans: Path | None = None,
    layer: int | None = None, device: str = "cpu", dtype: Dtype = "float32", backend: Backend = "torch",
    compile: bool = False, upstream_cut: bool = False, batch_seconds: float | None = None, shard_size: int = 2000,
    processes: int | None = None, workers: int | None = None, limit: int | None = None, dry_run: bool = False,
    rank: int | None = None, world: int | None = None,
) -> int:  # fmt: skip
    """Turn audio into discrete units.

    Args:
        source: an audio file, a folder, a manifest (.jsonl), fairseq's .tsv, a glob in quotes, or - for paths on stdin
        out: folder for the unit set; without it the units of one file are printed
        encoder: unit encoder folder (the small one of the package if not given); with --kmeans a transformers folder, a
            hub id, or a fairseq .pt
        kmeans: centres: a joblib .bin of scikit-learn, .npy, or .safetensors
        layer: the layer they were fitted on; known for the published pairs
        device: cpu, cuda, or cuda:N
        dtype: of the encoder's matrix products; float32 is exact, bfloat16 is faster and changes a few units
        backend: fairseq runs fairseq's own code, where it is installed
        compile: torch.compile the layers; pays on long runs
        upstream_cut: cut audio beyond 100 seconds as fairseq's and SpeechGPT's readers do, which loses a frame a cut
        batch_seconds: audio in one batch; 40 on a CPU, 400 on a GPU if not given
        shard_size: utterances in a shard; fewer, such as 50, if they last for an hour each
        processes: how many work at once on this machine: one for each core (up to 8) or each GPU if not given; more than
            there are GPUs share them
        workers: threads of each process that decode ahead; none on a CPU, its share of the cores with a GPU if not given
        limit: take only the first so many utterances
        dry_run: say what would be done and how long it would take
        rank: this process among world; from torchrun's or SLURM's environment if not given
        world: how many processes share the work; likewise
    """
    choice = Choice(encoder, kmeans, layer, dtype, backend, upstream_cut, compile)
    ranks = this_rank(rank, world)
    device = ranks.device(device)
    check_device(device)
    opened = choice.open(device)
    if out is None:
        _print_one(source, opened)
        return 0
    listing = list_source(source)
    listing = Listing(listing.utterances[:limit], listing.refused)
    processes = max(
        1, min(processes or _usual_processes(device, ranks.local_world), -(-len(listing.utterances) // shard_size))
    )
    if workers is None:
        workers = spare_cores(device, ranks.local_world * processes)
    batch_seconds = batch_seconds or (400.0 if device.startswith("cuda") else 40.0)
    pace = Pace(shard_size, batch_seconds, workers, ranks.rank, ranks.world)
    if dry_run:
        _foretell(listing, out, opened, pace, processes)
        return 0
    check_plan(out, listing.utterances, opened, shard_size)
    if processes == 1:
        extract(listing.utterances, out, opened, pace, listing.refused)
    else:
        del opened
        _extract_together(listing, out, choice, device, pace, processes)
    return _report(out, len(listing.utterances), pace)


def _usual_processes(device: str, beside: int) -> int:
    """One for each GPU, or each core that is this rank's."""
    if device == "cuda":
        return torch.cuda.device_count()
    return 1 if device.startswith("cuda") else min(own_cores(beside), MOST_PROCESSES)


def _extract_together(listing: Listing, out: Path, choice: Choice, device: str, pace: Pace, processes: int) -> None:
    """Several processes of one machine, each with a core or a GPU of its own."""
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        jobs = []
        for i, its_own in zip(range(processes), itertools.cycle(devices)):
            own = replace(pace, process=i, processes=processes)
            jobs.append(pool.submit(_extract_alone, listing, out, choice, its_own, own))
        for job in jobs:
            job.result()


def _report(out: Path, utterances: int, pace: Pace) -> int:
    """Say what the set holds, or what it lacks while other ranks are still at it; returns the exit code."""
    if not (out / COMPLETION_FILE).exists():
        left = len(missing_shards(out, utterances, replace(pace, rank=0, world=1)))
        print(f"rank {pace.rank} of {pace.world} is done; {left} shards are left to the other ranks. {out} is complete "
              f"when it holds {COMPLETION_FILE}")  # fmt: skip
        return 0
    made = read_unit_set(out)
    refused = (
        f"{counted(made.refused_by_reason())}, listed in {out / 'refused.jsonl'}" if made.refused else "none refused"
    )
    print(f"{len(made)} utterances, {made.seconds / 3600:.2f} hours, {refused} -> {out}")
    return SOME_REFUSED if made.refused else 0


def _print_one(source: str, encoder: UnitEncoder) -> None:
    if source == STANDARD_INPUT or Path(source).is_dir() or Path(source).suffix in (".jsonl", ".tsv"):
        raise ValueError(f"{source} holds many files: say where to, as in units-extract {source} OUT")
    print(spell(encoder.encode(load_wav(source)).ids))


def _extract_alone(listing: Listing, out: Path, choice: Choice, device: str, pace: Pace) -> None:
    """One of several processes of one machine: a core of its own serves it better than a share of all."""
    torch.set_num_threads(1)
    extract(listing.utterances, out, choice.open(device), pace, listing.refused)


def _foretell(listing: Listing, out: Path, encoder: UnitEncoder, pace: Pace, processes: int) -> None:
    """Decode a sample and encode a minute of it, write nothing."""
    rows = listing.utterances
    sample = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(len(rows), PROBE_FILES))] if rows else []
    few: list[np.ndarray] = []
    heard, read = 0.0, 0
    for wav in decoded(sample, pace.workers, encoder.features.grid):
        if not isinstance(wav, Refusal):
            if heard < PROBE_SECONDS:
                few.append(wav[: round(PROBE_SECONDS * SAMPLE_RATE)])
            heard += len(wav) / SAMPLE_RATE
            read += 1
    if not few:
        print(f"{len(rows)} utterances; none of a sample of {len(sample)} can be read")
        return
    hours = heard * len(rows) / len(sample) / 3600
    encoder.encode_batch(few[:1])  # the first call warms up
    began = time.monotonic()
    encoder.encode_batch(few)
    speed = sum(map(len, few)) / SAMPLE_RATE / (time.monotonic() - began)
    speed *= processes if encoder.features.device.type == "cuda" else 1  # on a CPU all cores were at it already
    shards = -(-len(rows) // pace.shard_size)
    missing = len(missing_shards(out, len(rows), replace(pace, rank=0, world=1)))
    print(
        f"{len(rows)} utterances, about {hours:.2f} hours of audio ({len(sample) - read} of a sample of {len(sample)} "
        f"cannot be read, {len(listing.refused)} refused by name); {shards} shards, {missing} to do\n"
        f"units of {encoder.codebook.name} at about {speed:.0f} times real time on this machine: "
        f"{hours * missing / max(1, shards) / speed:.2f} hours"
    )


FLAGS = ("compile", "upstream_cut", "dry_run")  # options that need no value


def cli() -> None:
    """Entry point: `units-extract SOURCE [OUT] [--encoder DIR]`; user errors end in one line and exit code 2."""
    from jsonargparse import auto_cli

    args = [_option(arg) if arg.startswith("--") else arg for arg in sys.argv[1:]]
    if len(args) > 1 and (args[1] == STANDARD_INPUT or not args[1].startswith("-")):
        args[1:2] = ["--out", args[1]]
    try:
        code = auto_cli(main, args=args)
    except (
        OSError,
        ValueError,
        ImportError,
    ) as error:  # AudioError, ManifestError and CodebookMismatch are ValueErrors
        print(f"units-extract: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    if code:
        raise SystemExit(code)


def _option(arg: str) -> str:
    """--dry-run is --dry_run true."""
    name, equals, value = arg[2:].partition("=")
    name = name.replace("-", "_")
    return f"--{name}=true" if name in FLAGS and not equals else f"--{name}{equals}{value}"


if __name__ == "__main__":
    cli()

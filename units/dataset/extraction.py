"""One run of units-extract: open the encoder, list the source, deal the shards to processes, report.

The command is `units/dataset/extract.py`; what one process does with its shards is `units/dataset/shards.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from pathlib import Path

import torch

from units.audio import load_wav
from units.corpus.sources import STANDARD_INPUT, Listing, list_source
from units.dataset.content import Content, UnitContent
from units.dataset.estimate import estimate
from units.dataset.extract_config import EncoderConfig, WorkConfig
from units.dataset.shards import Share, check_plan, extract, shard_count
from units.dataset.unit_set import REFUSED_FILE
from units.encoder.hubert import HubertFeatures
from units.encoder.unit_encoder import TRANSFORMERS, UnitEncoder
from units.notation import spell
from units.runtime.ahead import own_cores, spare_cores
from units.runtime.command import SOME_REFUSED
from units.runtime.pool import Workers
from units.runtime.precision import check_device
from units.runtime.ranks import this_rank

MOST_PROCESSES = 8  # on the CPUs of one machine, if the user gives no number


def print_units(source: str, config: EncoderConfig, work: WorkConfig) -> int:
    """Print the units of one audio file."""
    if source == STANDARD_INPUT or Path(source).is_dir() or Path(source).suffix in (".jsonl", ".tsv"):
        raise ValueError(f"{source} holds many files; name an output folder, as in units-extract {source} OUT")
    check_device(work.device)
    print(spell(open_encoder(config, work.device).encode(load_wav(source)).ids))
    return 0


def run(source: str | Path, out: Path, config: EncoderConfig, work: WorkConfig) -> int:
    """Write this rank's part of a unit set, with one or several processes, and report on it; returns the exit code."""
    ranks = this_rank(work.rank, work.world)
    device = ranks.device(work.device)
    check_device(device)
    encoder = open_content(config, device)
    found = list_source(source)
    listing = Listing(found.utterances[: work.limit], found.refused)
    shards = shard_count(len(listing.utterances), work.shard_size)
    processes = max(1, min(work.processes or _usual_processes(device, ranks.local_world), shards))
    workers = spare_cores(device, ranks.local_world * processes) if work.workers is None else work.workers
    batch_seconds = work.batch_seconds or (400.0 if device.startswith("cuda") else 40.0)
    share = Share(work.shard_size, batch_seconds, workers, ranks.rank, ranks.world, keep_silent=work.keep_silent)
    if work.dry_run:
        whole = dataclasses.replace(share, rank=0, world=1)
        missing = len(whole.missing(out, len(listing.utterances)))
        print(estimate(listing, encoder, workers, processes).report(shards, missing))
        return 0
    check_plan(out, listing.utterances, encoder, share)
    kind = type(encoder)
    if processes == 1:
        extract(listing.utterances, out, encoder, share, listing.refused)
    else:
        del encoder  # each process opens one
        job = functools.partial(_extract_share, listing, out, config)
        with Workers(processes) as pool:
            list(pool.run(job, dealt(share, processes, device)))
    return _report(out, len(listing.utterances), share, kind)


def open_content(config: EncoderConfig, device: str) -> Content:
    """What a config asks for: units, or states.

    Raises: ValueError or FileNotFoundError if the files do not fit together or are missing.
    """
    if not config.features:
        return UnitContent(open_encoder(config, device))
    from units.dataset.feature_set import StateContent
    from units.encoder.states import encoder_folder, fingerprint, open_states

    name = config.encoder or "starter"
    features = open_states(name, config.layer or 0, device, config.window, getattr(torch, config.dtype))
    if config.compile and isinstance(features, TRANSFORMERS):
        features.compile()
    return StateContent(features, fingerprint(encoder_folder(name)), config.window)


def open_encoder(config: EncoderConfig, device: str) -> UnitEncoder:
    """Open the encoder of a config.

    Raises: ValueError or FileNotFoundError if the files do not fit together or are missing.
    """
    dtype = getattr(torch, config.dtype)
    source = config.encoder or "codec"
    if config.kmeans is not None:
        found = UnitEncoder.join(source, config.kmeans, config.layer, device, dtype, config.backend)
    else:
        found = UnitEncoder.from_pretrained(source, device, dtype)
    if isinstance(found.features, TRANSFORMERS):
        found.features.cut_long = config.upstream_cut and isinstance(found.features, HubertFeatures)
        if config.compile:
            found.features.compile()
    return found


def _usual_processes(device: str, beside: int) -> int:
    """One for each GPU, or for each core of this rank if `beside` ranks share the machine."""
    if device == "cuda":
        return torch.cuda.device_count()
    return 1 if device.startswith("cuda") else min(own_cores(beside), MOST_PROCESSES)


def dealt(share: Share, processes: int, device: str) -> list[tuple[str, Share]]:
    """A rank's share, dealt to its processes, each with its device."""
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    return [
        (its_device, dataclasses.replace(share, process=i, processes=processes))
        for i, its_device in zip(range(processes), itertools.cycle(devices))
    ]


def _extract_share(listing: Listing, out: Path, config: EncoderConfig, job: tuple[str, Share]) -> None:
    """The job of one of several processes. One core for each is faster than a share of all cores for every product."""
    device, share = job
    torch.set_num_threads(1)
    extract(listing.utterances, out, open_content(config, device), share, listing.refused)


def _report(out: Path, utterances: int, share: Share, content: type[Content]) -> int:
    """Print what the set holds, or what it lacks while other ranks are still working; returns the exit code."""
    if not (out / content.completion_file).exists():
        left = len(dataclasses.replace(share, rank=0, world=1).missing(out, utterances))
        print(
            f"rank {share.rank} of {share.world} is done; {left} shards are left to the other ranks. {out} is complete "
            f"when it holds {content.completion_file}"
        )
        return 0
    count, seconds, refused, reasons = content.report(out)
    told = f"{reasons}, listed in {out / REFUSED_FILE}" if refused else "none refused"
    print(f"{count} utterances, {seconds / 3600:.2f} hours, {told} -> {out}")
    return SOME_REFUSED if refused else 0

"""The `units-extract` command: audio files or whole corpora to units.

    units-extract a.wav                                    # prints <sosp><12><7>..<eosp>
    units-extract corpus/train.jsonl units/train           # a unit set, with the encoder that comes with the package
    units-extract folder/of/audio out --encoder DIR --device cuda

A killed run goes on at the first missing shard. Under torchrun or SLURM, rank r of W takes shards r, r+W, ...
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE, AudioError, load_wav
from units.encoder import STARTER, UnitEncoder
from units.manifest import Utterance, read_manifest, written_whole
from units.notation import spell
from units.progress import progress
from units.unit_set import MARKER, UnitRecord, read_unit_set, shard_path, write_shard

MOST_PROCESSES = 8  # on one machine, if the user does not say otherwise
AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}


def list_source(source: Path) -> list[Utterance]:
    """Utterances of a manifest (.jsonl) or of all audio files below a folder.

    Ids are relative paths without suffix; a file keeps its suffix where another would have the same id.

    Raises: FileNotFoundError, ManifestError, or AudioError when there is nothing to read.
    """
    if source.suffix == ".jsonl":
        return read_manifest(source)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {source}")
    if source.is_file():
        return [Utterance(source.stem, source)]
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise AudioError(f"no audio below {source}; looked for {', '.join(sorted(AUDIO_SUFFIXES))}")
    ids = Counter(path.with_suffix("") for path in files)
    return [
        Utterance(str((path if ids[path.with_suffix("")] > 1 else path.with_suffix("")).relative_to(source)), path)
        for path in files
    ]


def extract(
    utterances: list[Utterance], out: Path, encoder: UnitEncoder, shard_size: int = 2000, batch_seconds: float = 40.0,
    rank: int = 0, world: int = 1,
) -> None:  # fmt: skip
    """Write this rank's shards of a unit set; whoever sees the last one done writes `unit_set.json`.

    Args:
        shard_size: utterances in a shard; a shard covers a fixed range of rows.
        batch_seconds: audio in one batch.

    Raises: ValueError if `out` was begun with another codebook or another shard size.
    """
    _check_plan(out, utterances, encoder, shard_size)
    shards = range(0, len(utterances), shard_size)
    mine = [start for i, start in enumerate(shards) if i % world == rank and not shard_path(out, i).exists()]
    if mine:
        (out / MARKER).unlink(missing_ok=True)  # a shard was deleted: the set is not complete any more
    total = sum(min(shard_size, len(utterances) - start) for start in mine)
    began, heard = time.monotonic(), 0.0
    with progress(total=total, desc=f"units of {out.name}", unit="files") as bar:
        for start in mine:
            index = start // shard_size
            records: list[UnitRecord] = []
            refused: list[dict[str, str]] = []
            for wavs, group in _batches(utterances[start : start + shard_size], batch_seconds, refused):
                units = encoder.encode_batch(wavs)
                records += [
                    UnitRecord(u.id, one, len(wav), u.text, u.speaker, u.lang)
                    for u, wav, one in zip(group, wavs, units)
                ]
                heard += sum(map(len, wavs)) / SAMPLE_RATE
                bar.update(len(wavs))
                bar.set_postfix_str(
                    f"{heard / 3600:.2f} h, {heard / (time.monotonic() - began):.0f} x real time", refresh=False
                )
            order = {u.id: i for i, u in enumerate(utterances[start : start + shard_size])}
            records.sort(key=lambda r: order[r.id])
            bar.update(len(refused))
            with written_whole(_refusals(out, index)) as file:
                file.writelines(json.dumps(one) + "\n" for one in refused)
            write_shard(shard_path(out, index), records, encoder.codebook)
    if all(shard_path(out, i).exists() for i in range(len(shards))):
        _finish(out, len(shards), encoder)


def _refusals(out: Path, index: int) -> Path:
    return out / f"refused-{index:05d}.jsonl"


def _check_plan(out: Path, utterances: list[Utterance], encoder: UnitEncoder, shard_size: int) -> None:
    """A resumed run must be the run that was begun."""
    rows = hashlib.sha256("\n".join(f"{u.id} {u.start} {u.duration}" for u in utterances).encode()).hexdigest()[:16]
    plan = {
        "codebook": encoder.codebook.fingerprint,
        "shard_size": shard_size,
        "utterances": len(utterances),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    path = out / "plan.json"
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        if begun != plan:
            raise ValueError(
                f"{out} was begun with {begun}, this run has {plan}. Give another folder, or delete this one."
            )
        return
    with written_whole(path) as file:
        json.dump(plan, file)


def _batches(
    utterances: list[Utterance], seconds: float, refused: list[dict[str, str]]
) -> Iterator[tuple[list[np.ndarray], list[Utterance]]]:
    """Readable utterances of similar length together, at most `seconds` of audio with padding; the others to `refused`."""
    loaded = []
    for utterance in utterances:
        try:
            loaded.append((load_wav(utterance.audio, utterance.start, utterance.duration), utterance))
        except (AudioError, FileNotFoundError) as error:
            refused.append({"id": utterance.id, "audio": str(utterance.audio), "reason": str(error)})
        if len(loaded) == 256:
            yield from _by_length(loaded, seconds)
            loaded = []
    yield from _by_length(loaded, seconds)


def _by_length(
    loaded: list[tuple[np.ndarray, Utterance]], seconds: float
) -> Iterator[tuple[list[np.ndarray], list[Utterance]]]:
    loaded = sorted(loaded, key=lambda pair: -len(pair[0]))
    while loaded:
        fits = max(1, int(seconds * SAMPLE_RATE / len(loaded[0][0])))
        group, loaded = loaded[:fits], loaded[fits:]
        yield [wav for wav, _ in group], [utterance for _, utterance in group]


def _finish(out: Path, shards: int, encoder: UnitEncoder) -> None:
    """Join the refusals, count, and write the marker."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    refused = [line for i in range(shards) for line in _refusals(out, i).read_text(encoding="utf-8").splitlines(True)]
    with written_whole(out / "refused.jsonl") as file:
        file.writelines(refused)
    lengths = [pq.read_table(shard_path(out, i), columns=["num_samples"])["num_samples"] for i in range(shards)]
    utterances = sum(len(column) for column in lengths)
    seconds = sum(pc.sum(column).as_py() or 0 for column in lengths) / SAMPLE_RATE
    facts = {"codebook": json.loads(encoder.codebook.to_json()), "utterances": utterances, "refused": len(refused),
             "seconds": round(seconds, 2), "shards": shards}  # fmt: skip
    if not utterances:
        raise AudioError(f"every one of {len(refused)} utterances was refused; see {out / 'refused.jsonl'}")
    with written_whole(out / MARKER) as file:
        json.dump(facts, file, indent=1)


def main(
    source: Path, out: Path | None = None, encoder: Path = STARTER, device: str = "cpu", batch_seconds: float = 40.0,
    shard_size: int = 2000, processes: int | None = None, rank: int | None = None, world: int | None = None,
) -> None:  # fmt: skip
    """Turn audio into discrete units.

    Args:
        source: an audio file, a folder of audio, or a manifest (.jsonl)
        out: folder for the unit set; without it the units of one file are printed
        encoder: unit encoder folder; the small one that comes with the package if not given
        device: cpu or cuda
        batch_seconds: audio in one batch
        shard_size: utterances in a shard
        processes: how many work at once on this machine; on a CPU one for each core, up to 8, if not given
        rank: this process among world; from RANK or SLURM_PROCID if not given
        world: how many processes share the work; from WORLD_SIZE or SLURM_NTASKS if not given
    """
    opened = UnitEncoder.from_pretrained(encoder, device)
    if out is None:
        if source.is_dir() or source.suffix == ".jsonl":
            raise ValueError(f"{source} holds many files: say where to, as in units-extract {source} OUT")
        print(spell(opened.encode(load_wav(source)).ids))
        return
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) if rank is None else rank
    world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", 1))) if world is None else world
    utterances = list_source(source)
    if processes is None:
        processes = min(os.cpu_count() or 1, MOST_PROCESSES) if device == "cpu" else 1
    processes = max(1, min(processes, -(-len(utterances) // shard_size)))
    _check_plan(out, utterances, opened, shard_size)
    jobs = [(utterances, out, encoder, device, shard_size, batch_seconds, rank * processes + i, world * processes)
            for i in range(processes)]  # fmt: skip
    if processes == 1:
        extract(utterances, out, opened, shard_size, batch_seconds, rank, world)
    else:
        with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(_extract_alone, *job) for job in jobs]:
                done.result()
    if (out / MARKER).exists():
        made = read_unit_set(out)
        print(f"{len(made)} utterances, {made.seconds / 3600:.2f} hours, {made.refused} refused -> {out}")


def _extract_alone(
    utterances: list[Utterance], out: Path, encoder: Path, device: str, shard_size: int, batch_seconds: float, rank: int,
    world: int,
) -> None:  # fmt: skip
    """One of several processes of one machine: a core of its own serves it better than a share of all."""
    import torch

    torch.set_num_threads(1)
    extract(utterances, out, UnitEncoder.from_pretrained(encoder, device), shard_size, batch_seconds, rank, world)


def cli() -> None:
    """Entry point: `units-extract SOURCE [OUT] [--encoder DIR]`; user errors end in one line and exit code 2."""
    from jsonargparse import auto_cli

    args = sys.argv[1:]
    if len(args) > 1 and not args[1].startswith("-"):
        args[1:2] = ["--out", args[1]]
    try:
        auto_cli(main, args=args)
    except (OSError, ValueError) as error:  # AudioError, ManifestError and CodebookMismatch are ValueErrors
        print(f"units-extract: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

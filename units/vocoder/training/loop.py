"""The training of a vocoder from its first step, or its checkpoint, to its last: batches, log, samples, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from units.codebook import Units
from units.corpus.manifest import Utterance
from units.runtime.ahead import usual_loaders
from units.runtime.atomic import written_whole
from units.runtime.progress import progress
from units.vocoder.training.crops import CropDataset
from units.vocoder.training.gan_training import GanTraining
from units.vocoder.training.mel_training import MelTraining
from units.vocoder.training.recipe import VocoderRecipe
from units.vocoder.unit_vocoder import UnitVocoder

CHECKPOINT, LOG = "training.pt", "log.jsonl"
MOST_CALIBRATED = 2000  # utterances; their total length is known to a thousandth


def train(pairs: list[tuple[Utterance, Units]], recipe: VocoderRecipe, out: Path, device: str = "cpu") -> UnitVocoder:
    """Train on pairs of utterance and units, from the checkpoint in `out` if there is one, and save to `out`.

    Raises: ValueError if the checkpoint is of another recipe or codebook, or units do not fit their audio.
    """
    out.mkdir(parents=True, exist_ok=True)
    speakers = tuple(sorted({str(utterance.speaker) for utterance, _ in pairs})) if recipe.multi_speaker else ()
    codebook = pairs[0][1].codebook
    training = (MelTraining if recipe.head == "mel" else GanTraining)(codebook, recipe, device, speakers)
    made_of = json.dumps([codebook.fingerprint, dataclasses.asdict(recipe), speakers])
    if (out / CHECKPOINT).exists():
        _load(training, out / CHECKPOINT, made_of)
    corpus = CropDataset(pairs, recipe, training.target, speakers, copies=training.world * max(1, _loaders(training)))
    if training.rank == 0:
        print(f"{len(pairs)} utterances, {corpus.seconds / 60:.1f} minutes; steps {training.step} to {recipe.steps}")
    _run(training, corpus, out, made_of)
    vocoder = training.vocoder.eval()
    if training.rank == 0:
        _calibrate(vocoder, [units for _, units in pairs])
        vocoder.save_pretrained(out)
    return vocoder


def _calibrate(vocoder: UnitVocoder, corpus: list[Units]) -> None:
    """Make predicted durations as long as true ones, where the head predicts any."""
    if getattr(vocoder.network, "dur_predictor", vocoder) is not None:
        factor = vocoder.calibrate_durations(corpus[:: -(-len(corpus) // MOST_CALIBRATED)])
        print(f"predicted durations calibrated: {factor:.3f} times as long")


def _run(training: MelTraining | GanTraining, corpus: CropDataset, out: Path, made_of: str) -> None:
    """All steps that are left, with log, bar, samples and checkpoints; these on the first of several processes only."""
    recipe, first = training.recipe, training.rank == 0
    if first:
        lines = _lines_up_to(out / LOG, training.step)
        with written_whole(out / LOG) as log:
            log.writelines(lines)
    bar = (
        progress(total=recipe.steps, initial=training.step, desc="vocoder", unit="steps")
        if first
        else tqdm(disable=True)
    )
    with (out / LOG).open("a", encoding="utf-8") as log, bar, _board(training, out) as board:
        for batch in _batches(training, corpus):
            began = time.monotonic()
            losses = training.advance(batch)
            training.seconds += time.monotonic() - began
            bar.update()
            last = training.step == recipe.steps
            if not first:
                continue
            if training.step % recipe.log_every == 0 or last:
                values = {name: round(float(value), 5) for name, value in losses.items()}
                log.write(json.dumps({"step": training.step, **values, "seconds": round(training.seconds, 5)}) + "\n")
                log.flush()
                bar.set_postfix_str(f"mel {values['mel']:.3f} duration {values['duration']:.3f}", refresh=False)
                for name, value in values.items() if board else ():
                    board.add_scalar(name, value, training.step)
            if isinstance(training, GanTraining) and (training.step % recipe.gan.sample_every == 0 or last):
                training.illustrate(out, corpus.pairs, board)
            if training.step % recipe.save_every == 0 or last:
                _save(training, out / CHECKPOINT, made_of)


def _batches(training: MelTraining | GanTraining, corpus: CropDataset) -> DataLoader:
    """Every step that is left; rank r of W takes the crops r, r + W, ..."""
    recipe, world = training.recipe, training.world
    mine = range(training.step * world + training.rank, recipe.steps * world, world)
    pinned = training.device.type == "cuda"
    return DataLoader(corpus, sampler=mine, batch_size=None, num_workers=_loaders(training), pin_memory=pinned)


def _loaders(training: MelTraining | GanTraining) -> int:
    """Processes that make batches for this device."""
    given = training.recipe.workers
    return usual_loaders(training.device.type, training.world) if given is None else given


def _board(training: MelTraining | GanTraining, out: Path):
    """A tensorboard writer for the heads that need days, else nothing."""
    if training.recipe.head == "mel" or training.rank:
        return nullcontext()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=training.step)


def _save(training: MelTraining | GanTraining, path: Path, made_of: str) -> None:
    state = {"made_of": made_of, "step": training.step, "seconds": training.seconds, **training.state()}
    with written_whole(path, "wb") as file:
        torch.save(state, file)


def _load(training: MelTraining | GanTraining, path: Path, made_of: str) -> None:
    """Inverse of _save. Raises ValueError if the checkpoint is of another recipe or codebook."""
    state = torch.load(path, weights_only=True, map_location="cpu")
    if state["made_of"] != made_of:
        raise ValueError(
            f"{path} is a checkpoint of another recipe or codebook; choose another --out, or remove the folder to start afresh"
        )
    training.load_state(state)
    training.step, training.seconds = state["step"], state["seconds"]


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Lines of a log that a checkpoint at `step` still stands for; later ones will be written again."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]

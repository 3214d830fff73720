"""The training loop of a vocoder, from its first step or its checkpoint on: batches, log, samples, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from units.codebook import Units
from units.runtime.ahead import usual_loaders
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import finished_lines
from units.runtime.files.saved_states import read_state, state_of
from units.runtime.progress import progress
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.training.crops import CropDataset, Pair, TrainingData
from units.vocoder.training.gan_training import GanTraining
from units.vocoder.training.mel_training import MelTraining
from units.vocoder.training.recipe import VocoderRecipe
from units.vocoder.training.samples import spread, write_samples
from units.vocoder.unit_vocoder import UnitVocoder

CHECKPOINT, LOG = "training.pt", "log.jsonl"
MOST_CALIBRATED = 2000  # utterances; enough to know their total length to a thousandth

Training = MelTraining | GanTraining


def train(
    pairs: list[Pair], recipe: VocoderRecipe, out: Path, device: str = "cpu", start: Path | None = None
) -> UnitVocoder:
    """Train a vocoder, and save it in `out`. A checkpoint in `out` is resumed.

    Args:
        pairs: utterances with their units.
        recipe: the vocoder and how it is trained.
        out: folder of the vocoder, its log and its checkpoint.
        device: cpu, cuda, or cuda:N.
        start: folder of another training of the same head and sizes, whose weights and optimisers it begins with.

    Raises: VocoderError if the checkpoint has another recipe or codebook, or units do not fit their audio; FileError if
        the checkpoint or the log is damaged; FloatingPointError if training diverged: the last checkpoint stays.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = TrainingData.of(pairs, recipe.multi_speaker)
    training = (MelTraining if recipe.head == "mel" else GanTraining)(data.codebook, recipe, device, data.speakers)
    origin = json.dumps([data.codebook.fingerprint, dataclasses.asdict(recipe), data.speakers])
    if (out / CHECKPOINT).exists():
        _load(training, out / CHECKPOINT, origin)
    elif start is not None:
        _begin_with(training, start / CHECKPOINT)
    crops = CropDataset(data, recipe, training.target, copies=training.world * max(1, _workers(training)))
    if training.rank == 0:
        print(f"{len(pairs)} utterances, {crops.seconds / 60:.1f} minutes; steps {training.step} to {recipe.steps}")
    _run(training, crops, out, origin)
    vocoder = training.vocoder.eval()
    if training.rank == 0:
        _calibrate(vocoder, data.units)
        if recipe.weights == "float16":
            for weight in vocoder.network.parameters():
                weight.data = weight.data.half().float()  # so that the folder holds them in half precision
        vocoder.save_pretrained(out)
    return vocoder


def _calibrate(vocoder: UnitVocoder, corpus: list[Units]) -> None:
    """Calibrate the duration predictor, if there is one."""
    if vocoder.network.has_duration_predictor:
        factor = vocoder.calibrate_durations(corpus[:: -(-len(corpus) // MOST_CALIBRATED)])
        print(f"predicted durations calibrated: {factor:.3f} times as long")


def _run(training: Training, crops: CropDataset, out: Path, origin: str) -> None:
    """All remaining steps. The first of several processes writes the log, the samples and the checkpoints."""
    recipe, first = training.recipe, training.rank == 0
    if first:
        lines = _lines_up_to(out / LOG, training.step)
        with written_whole(out / LOG) as log:
            log.writelines(lines)
    recent: list[Tensor] = []  # losses of the steps since the last report or checkpoint
    bar = tqdm(disable=True)
    if first:
        bar = progress(total=recipe.steps, initial=training.step, desc="vocoder", unit="steps")
    with (out / LOG).open("a", encoding="utf-8") as log, bar, _board(training, out) as board:
        for batch in _batches(training, crops):
            began = time.monotonic()
            losses = training.advance(batch)
            recent.append(losses["loss"])
            training.seconds += time.monotonic() - began
            bar.update()
            last = training.step == recipe.steps
            saving = training.step % recipe.save_every == 0 or last
            if training.step % recipe.log_every == 0 or saving:
                _check_finite(training, recent, out / CHECKPOINT)
                recent = []
            if not first:
                continue
            if training.step % recipe.log_every == 0 or last:
                values = {name: round(float(value), 5) for name, value in losses.items()}
                log.write(json.dumps({"step": training.step, **values, "seconds": round(training.seconds, 5)}) + "\n")
                log.flush()
                bar.set_postfix_str(f"mel {values['mel']:.3f} duration {values['duration']:.3f}", refresh=False)
                for name, value in values.items() if board else ():
                    board.add_scalar(name, value, training.step)
            if board and (training.step % recipe.gan.sample_every == 0 or last):
                write_samples(out, training.step, training.vocoder, spread(crops.pairs, recipe.gan.samples), board)
            if saving:
                _save(training, out / CHECKPOINT, origin)


def _check_finite(training: Training, recent: list[Tensor], checkpoint: Path) -> None:
    """Check the losses of the last steps, and the weights.

    fp16 may overflow in single steps, which its scaler leaves out; only the weights tell there.

    Raises: FloatingPointError if training diverged.
    """
    losses = torch.stack(recent).tolist()
    scaled = isinstance(training, GanTraining) and training.accelerator.scaler is not None
    wrong = [at for at, loss in enumerate(losses, training.step - len(losses) + 1) if not math.isfinite(loss)]
    if wrong and (not scaled or len(wrong) == len(losses)):
        found = f"the loss of step {wrong[0]} is {losses[wrong[0] - training.step - 1]}"
    elif not all(bool(weight.isfinite().all()) for weight in training.weights()):
        found = f"a weight is not finite after step {training.step}"
    else:
        return
    rate = "peak_lr" if training.recipe.head == "mel" else "gan.learning_rate"
    kept = f"{checkpoint} is from before it" if checkpoint.exists() else "there is no checkpoint from before it"
    raise FloatingPointError(
        f"{found}: training diverged; {kept}. Begin in another --out, with a lower --recipe.{rate}"
    )


def _batches(training: Training, crops: CropDataset) -> DataLoader:
    """The batches of all remaining steps; rank r of W takes the batches r, r + W, ..."""
    recipe, world = training.recipe, training.world
    indices = range(training.step * world + training.rank, recipe.steps * world, world)
    pinned = training.device.type == "cuda"
    return DataLoader(crops, sampler=indices, batch_size=None, num_workers=_workers(training), pin_memory=pinned)


def _workers(training: Training) -> int:
    """Worker processes that make batches for this device."""
    given = training.recipe.workers
    return usual_loaders(training.device.type, training.world) if given is None else given


def _board(training: Training, out: Path) -> AbstractContextManager:
    """A tensorboard writer for adversarial training, on the first process; otherwise nothing."""
    if training.recipe.head == "mel" or training.rank:
        return nullcontext()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=training.step)


def _save(training: Training, path: Path, origin: str) -> None:
    """Write a checkpoint; `made_of` holds its codebook, recipe and speakers."""
    state = {"made_of": origin, "step": training.step, "seconds": training.seconds, **training.state()}
    with written_whole(path, "wb") as file:
        torch.save(state, file)


def _load(training: Training, path: Path, origin: str) -> None:
    """Inverse of _save.

    Raises: VocoderError if the checkpoint has another recipe or codebook; FileError if it is damaged.
    """
    state = read_state(path)
    if "made_of" in state and state["made_of"] != origin:
        raise VocoderError(
            VocoderReason.OTHER_RECIPE,
            f"{path} was written with another recipe or codebook; choose another --out, or delete the folder",
        )
    with state_of(path):
        if state.get("made_of") != origin:
            raise KeyError("made_of")
        training.load_state(state)
        training.step, training.seconds = int(state["step"]), float(state["seconds"])


def _begin_with(training: Training, path: Path) -> None:
    """Take over the weights and the optimisers of another training's checkpoint, at step 0.

    Raises: VocoderError if they are of another head, or of other sizes; FileError if the file is damaged.
    """
    if not path.exists():
        raise VocoderError(VocoderReason.OTHER_RECIPE, f"there is no {path}; --start is the folder of a training")
    state = read_state(path)
    try:
        training.load_state(state)
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise VocoderError(
            VocoderReason.OTHER_RECIPE, f"{path} is of another head, or of other sizes than the recipe's: {error}"
        ) from error


def _lines_up_to(path: Path, step: int) -> list[str]:
    """The lines of a log up to a checkpoint's step; later ones will be written again. Raises FileError."""
    if not path.exists():
        return []
    kept = [line for line in finished_lines(path, {"step": int}) if line["step"] <= step]
    return [json.dumps(line) + "\n" for line in kept]

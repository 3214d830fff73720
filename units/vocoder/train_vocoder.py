"""Train a unit vocoder: wavs and their units -> a folder that UnitVocoder opens.

    python -m units.vocoder.train_vocoder --config units/configs/toy_vocoder.yaml --units runs/toy/units/train \\
        --manifest runs/toy/corpus/train.jsonl --speaker flite:slt --out runs/toy/vocoder      # six minutes, one CPU
    accelerate launch -m units.vocoder.train_vocoder --config units/configs/hifigan_vocoder.yaml --units UNITS \\
        --manifest MANIFEST --out OUT --device cuda                                            # several GPUs

Writes `OUT/log.jsonl` (step, losses, seconds), `OUT/training.pt` (the checkpoint a killed run goes on from), with the
heads "vocos" and "hifigan" also `OUT/samples` and `OUT/tensorboard`, and last `OUT/model.safetensors` and
`OUT/config.json`. What a step sees depends on the seed and the step alone, so a run that was killed ends with the
weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from units.codebook import Codebook, Units
from units.corpus.manifest import Utterance, read_manifest
from units.dataset.unit_set import read_unit_set
from units.runtime.ahead import usual_loaders
from units.runtime.atomic import written_whole
from units.runtime.precision import autocast, check_device
from units.runtime.progress import progress
from units.vocoder.gan_training import GanTraining
from units.vocoder.mel import MelSpectrogram
from units.vocoder.unit_vocoder import UnitVocoder
from units.vocoder.vocoder_recipe import VocoderRecipe
from units.vocoder.voice_corpus import Batch, VoiceCorpus, match

CHECKPOINT, LOG = "training.pt", "log.jsonl"
MOST_CALIBRATED = 2000  # utterances; their total length is known to a thousandth


class Training:
    """The head "mel": weights, optimiser, step and seconds so far, which is all that a checkpoint holds."""

    rank, world = 0, 1

    def __init__(self, codebook: Codebook, recipe: VocoderRecipe, device: str, speakers: tuple[str, ...] = ()) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, torch.device(device)
        self.vocoder = UnitVocoder(codebook, recipe.generator, speakers).to(device).train()
        self.target = MelSpectrogram(recipe.generator.mels)
        self._optimizer = torch.optim.AdamW(
            self.vocoder.parameters(),
            lr=recipe.peak_lr,
            betas=(0.8, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0

    def advance(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step; returns the losses by name."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        batch, network = batch.to(self.device), self.vocoder.network
        with autocast(self.device):
            mel = network.generator.loss(batch.frames, batch.target)
            duration = network.durations.loss(batch.ids, batch.durations, batch.unit_mask)
        self._optimizer.zero_grad(set_to_none=True)
        (mel + duration).backward()  # they share no weights
        self._optimizer.step()
        self.step += 1
        return {"loss": (mel + duration).detach(), "mel": mel.detach(), "duration": duration.detach()}

    def state(self) -> dict:
        """For a checkpoint; inverse of load_state."""
        return {"weights": self.vocoder.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.vocoder.network.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])


def train(pairs: list[tuple[Utterance, Units]], recipe: VocoderRecipe, out: Path, device: str = "cpu") -> UnitVocoder:
    """Train on pairs of utterance and units, from the checkpoint in `out` if there is one, and save to `out`.

    Raises: ValueError if the checkpoint is of another recipe or codebook, or units do not fit their audio.
    """
    out.mkdir(parents=True, exist_ok=True)
    speakers = tuple(sorted({str(utterance.speaker) for utterance, _ in pairs})) if recipe.multi_speaker else ()
    codebook = pairs[0][1].codebook
    training = (Training if recipe.head == "mel" else GanTraining)(codebook, recipe, device, speakers)
    made_of = json.dumps([codebook.fingerprint, dataclasses.asdict(recipe), speakers])
    if (out / CHECKPOINT).exists():
        _load(training, out / CHECKPOINT, made_of)
    corpus = VoiceCorpus(pairs, recipe, training.target, speakers, copies=training.world * max(1, _loaders(training)))
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


def _run(training: Training | GanTraining, corpus: VoiceCorpus, out: Path, made_of: str) -> None:
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


def _batches(training: Training | GanTraining, corpus: VoiceCorpus) -> DataLoader:
    """Every step that is left; rank r of W takes the crops r, r + W, ..."""
    recipe, world = training.recipe, training.world
    mine = range(training.step * world + training.rank, recipe.steps * world, world)
    pinned = training.device.type == "cuda"
    return DataLoader(corpus, sampler=mine, batch_size=None, num_workers=_loaders(training), pin_memory=pinned)


def _loaders(training: Training | GanTraining) -> int:
    """Processes that make batches for this device."""
    given = training.recipe.workers
    return usual_loaders(training.device.type, training.world) if given is None else given


def _board(training: Training | GanTraining, out: Path):
    """A tensorboard writer for the heads that need days, else nothing."""
    if training.recipe.head == "mel" or training.rank:
        return nullcontext()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out / "tensorboard"), purge_step=training.step)


def _save(training: Training | GanTraining, path: Path, made_of: str) -> None:
    state = {"made_of": made_of, "step": training.step, "seconds": training.seconds, **training.state()}
    with written_whole(path, "wb") as file:
        torch.save(state, file)


def _load(training: Training | GanTraining, path: Path, made_of: str) -> None:
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


def main(
    units: Path, manifest: Path, out: Path, speaker: str | None = None,
    recipe: VocoderRecipe = VocoderRecipe(), device: str = "cpu", threads: int = 0,
) -> None:  # fmt: skip
    """Train a unit vocoder.

    Args:
        units: unit set of the manifest
        manifest: utterances with their wavs
        out: folder of the vocoder
        speaker: whose utterances to learn from, all if not given
        recipe: the vocoder and how it is trained
        device: cpu, cuda, or cuda:N
        threads: CPU threads, torch's own choice if 0
    """
    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    train(match(read_unit_set(units), read_manifest(manifest), speaker), recipe, out, device)
    print(f"vocoder in {out}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

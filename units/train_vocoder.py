"""Train a unit vocoder: one speaker's wavs and their units -> a folder that UnitVocoder opens.

    python -m units.train_vocoder --config units/configs/toy_vocoder.yaml --units runs/toy/units/train \\
        --manifest runs/toy/corpus/train.jsonl --speaker flite:slt --out runs/toy/vocoder      # a minute, one CPU

Writes `OUT/log.jsonl` (step, losses, seconds), `OUT/training.pt` (the checkpoint a killed run goes on from), and last
`OUT/model.safetensors` and `OUT/config.json`. What a step sees depends on the seed and the step alone, so a run that
was killed ends with the weights of one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.audio import HOP, load_wav, num_frames
from units.codebook import Codebook, Units
from units.generator import Frames, MelGeneratorConfig, run_frames
from units.manifest import Utterance, read_manifest, written_whole
from units.mel import MelSpectrogram
from units.progress import progress
from units.unit_set import UnitRecord, read_unit_set
from units.vocoder import UnitVocoder

CHECKPOINT, LOG = "training.pt", "log.jsonl"


@dataclass
class VocoderRecipe:
    """The vocoder and how it is trained. The defaults suit an hour or two of one clean voice."""

    generator: MelGeneratorConfig = field(default_factory=MelGeneratorConfig)
    """Sizes of the network."""
    steps: int = 1100
    """Optimiser steps."""
    batch_size: int = 8
    """Crops in one step."""
    crop_frames: int = 64
    """Unit frames of a crop; 64 are 1.28 s. Every step has this one shape: a CPU prepares its kernels for each new one."""
    peak_lr: float = 2e-3
    """Learning rate after warm-up; it falls along a cosine to 2 percent of this."""
    warmup: int = 30
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's."""
    seed: int = 0
    """Seeds weights and crops."""
    save_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of the log."""
    cache_gib: float = 2.0
    """Memory for log-mels, about 0.1 GiB an hour of speech; what does not fit is computed again when it is drawn."""

    def learning_rate(self, step: int) -> float:
        """Of step 0, 1, ..."""
        fallen = 0.5 - 0.5 * math.cos(math.pi * min(1.0, step / max(1, self.steps)))
        return self.peak_lr * min(1.0, (step + 1) / max(1, self.warmup)) * (1 - 0.98 * fallen)


@dataclass(frozen=True)
class Batch:
    """Crops for one step: units in time with their log-mels (B, 2 N, M), and units (B, U) with their whole durations."""

    frames: Frames
    log_mels: Tensor
    ids: Tensor
    durations: Tensor
    unit_mask: Tensor


class VoiceCorpus:
    """One speaker's wavs with their units. Step i's crops are a function of the recipe's seed and i."""

    def __init__(self, pairs: list[tuple[Utterance, Units]], recipe: VocoderRecipe, spectrogram: nn.Module) -> None:
        self.pairs, self.recipe, self.spectrogram = pairs, recipe, spectrogram
        self._cache: dict[int, Tensor] = {}
        self._room = recipe.cache_gib * 2**30  # bytes
        lengths = np.array([len(units.frames()) for _, units in pairs], dtype=np.float64)
        self.seconds = float(lengths.sum()) / pairs[0][1].codebook.frame_rate
        self._chances = lengths / lengths.sum()

    def batch(self, step: int) -> Batch:
        """The crops of step 0, 1, ..., of always the same shape."""
        draw = np.random.default_rng([self.recipe.seed, step])
        members = draw.choice(len(self.pairs), self.recipe.batch_size, p=self._chances)
        columns = zip(*(self._crop(int(index), draw) for index in members))
        ids, runs, mask, mels, units, durations, unit_mask = (torch.stack(column) for column in columns)
        return Batch(Frames(ids, runs, mask), mels, units, durations, unit_mask)

    def _crop(self, index: int, draw: np.random.Generator) -> tuple[Tensor, ...]:
        size = self.recipe.crop_frames
        units = self.pairs[index][1]
        unit_ids, durations = torch.tensor(units.ids), torch.tensor(units.durations)
        ids, runs = run_frames(unit_ids, durations)
        start = int(draw.integers(max(1, len(ids) - size + 1)))
        stop = start + size
        first = int(torch.searchsorted(durations.cumsum(0), start, right=True))  # the unit that sounds at `start`
        frames = [_sized(x[start:stop], size) for x in (ids, runs, torch.ones(len(ids), dtype=torch.bool))]
        mels = _sized(self._log_mels(index)[2 * start : 2 * stop], 2 * size)
        words = [
            _sized(x[first : first + size], size)
            for x in (unit_ids, durations, torch.ones(len(unit_ids), dtype=torch.bool))
        ]
        return *frames, mels, *words

    def _log_mels(self, index: int) -> Tensor:
        """Of the whole utterance, (2 N, M); kept while there is room."""
        if index in self._cache:
            return self._cache[index]
        utterance, units = self.pairs[index]
        wav = load_wav(utterance.audio, utterance.start, utterance.duration)
        frames = len(units.frames())
        if num_frames(len(wav)) != frames:
            raise ValueError(
                f"{utterance.audio} has {num_frames(len(wav))} frames, but its units last {frames}. "
                "The units were made of other audio: extract them again from this manifest."
            )
        mels = self.spectrogram(torch.from_numpy(wav[None, : frames * HOP]))[0]
        if self._room >= mels.nbytes:
            self._room -= mels.nbytes
            self._cache[index] = mels
        return mels


def _sized(x: Tensor, size: int) -> Tensor:
    """Pad x (n, ...) with zeros to (size, ...)."""
    return torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


def match(
    records: Iterable[UnitRecord], utterances: list[Utterance], speaker: str | None
) -> list[tuple[Utterance, Units]]:
    """Pair the speaker's utterances with their units by id, in the manifest's order.

    Raises: ValueError if the speaker is unknown, or none of the utterances has units.
    """
    chosen = [u for u in utterances if speaker is None or u.speaker == speaker]
    if not chosen:
        raise ValueError(
            f"no utterance of {speaker!r} in the manifest; its speakers: {sorted({str(u.speaker) for u in utterances})}"
        )
    wanted = {u.id for u in chosen}
    units = {record.id: record.units for record in records if record.id in wanted and record.units.ids}
    if not units:
        raise ValueError(
            f"none of the {len(chosen)} utterances is in the unit set; extract units from this very manifest"
        )
    if len(units) < len(chosen):
        print(f"{len(chosen) - len(units)} of {len(chosen)} utterances have no units and are left out")
    return [(u, units[u.id]) for u in chosen if u.id in units]


class Training:
    """Weights, optimiser, step and seconds so far: all that a checkpoint holds."""

    def __init__(self, codebook: Codebook, recipe: VocoderRecipe, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.vocoder = UnitVocoder(codebook, recipe.generator).to(device)
        self.optimizer = torch.optim.AdamW(
            self.vocoder.parameters(),
            lr=recipe.peak_lr,
            betas=(0.8, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        self._made_of = json.dumps([codebook.fingerprint, dataclasses.asdict(recipe)])

    def advance(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the losses of the log-mels and of the log durations."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        to = self.device
        frames = Frames(batch.frames.ids.to(to), batch.frames.runs.to(to), batch.frames.mask.to(to))
        with torch.autocast(torch.device(to).type, torch.bfloat16):
            mel = self.vocoder.generator.loss(frames, batch.log_mels.to(to))
            duration = self.vocoder.durations.loss(batch.ids.to(to), batch.durations.to(to), batch.unit_mask.to(to))
        self.optimizer.zero_grad(set_to_none=True)
        (mel + duration).backward()  # they share no weights
        self.optimizer.step()
        self.step += 1
        return mel.detach(), duration.detach()

    def save(self, path: Path) -> None:
        state = {"made_of": self._made_of, "weights": self.vocoder.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "step": self.step, "seconds": self.seconds}  # fmt: skip
        with written_whole(path, "wb") as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Inverse of save. Raises ValueError if the checkpoint is of another recipe or codebook."""
        state = torch.load(path, weights_only=True, map_location=self.device)
        if state["made_of"] != self._made_of:
            raise ValueError(
                f"{path} is a checkpoint of another recipe or codebook; choose another --out, or remove the folder to start afresh"
            )
        self.vocoder.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


def train(pairs: list[tuple[Utterance, Units]], recipe: VocoderRecipe, out: Path, device: str = "cpu") -> UnitVocoder:
    """Train on pairs of utterance and units, from the checkpoint in `out` if there is one, and save to `out`.

    Raises: ValueError if the checkpoint is of another recipe or codebook, or units do not fit their audio.
    """
    out.mkdir(parents=True, exist_ok=True)
    training = Training(pairs[0][1].codebook, recipe, device)
    if (out / CHECKPOINT).exists():
        training.load(out / CHECKPOINT)
    corpus = VoiceCorpus(pairs, recipe, MelSpectrogram(recipe.generator.mels))
    print(f"{len(pairs)} utterances, {corpus.seconds / 60:.1f} minutes; steps {training.step} to {recipe.steps}")
    training.vocoder.train()
    _run(training, corpus, out)
    training.vocoder.eval().save_pretrained(out)
    return training.vocoder


def _run(training: Training, corpus: VoiceCorpus, out: Path) -> None:
    """All steps that are left, with log, bar and checkpoints."""
    recipe = training.recipe
    lines = _lines_up_to(out / LOG, training.step)
    with written_whole(out / LOG) as log:
        log.writelines(lines)
    bar = progress(total=recipe.steps, initial=training.step, desc="vocoder", unit="steps")
    with (out / LOG).open("a", encoding="utf-8") as log, bar:
        while training.step < recipe.steps:
            began = time.monotonic()
            mel, duration = training.advance(corpus.batch(training.step))
            training.seconds += time.monotonic() - began
            bar.update()
            last = training.step == recipe.steps
            if training.step % recipe.log_every == 0 or last:
                values = {"loss": mel + duration, "mel": mel, "duration": duration, "seconds": training.seconds}
                log.write(
                    json.dumps({"step": training.step, **{k: round(float(v), 5) for k, v in values.items()}}) + "\n"
                )
                log.flush()
                bar.set_postfix_str(f"mel {mel:.3f} duration {duration:.3f}", refresh=False)
            if training.step % recipe.save_every == 0 or last:
                training.save(out / CHECKPOINT)


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
        device: cpu or cuda
        threads: CPU threads, torch's own choice if 0
    """
    if threads:
        torch.set_num_threads(threads)
    train(match(read_unit_set(units), read_manifest(manifest), speaker), recipe, out, device)
    print(f"vocoder in {out}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

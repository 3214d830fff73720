"""Adversarial training of the waveform heads: one step of it, its state, and what it shows of itself on the way.

Runs on one device or several through accelerate; without a launcher it is one process.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.audio import SAMPLE_RATE, load_wav, save_wav
from units.codebook import Codebook, Units
from units.corpus.manifest import Utterance
from units.runtime.atomic import written_whole
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.heads.unit_network import UnitNetwork
from units.vocoder.mel import LogMel
from units.vocoder.training.crops import Batch, wav_frames
from units.vocoder.training.discriminators import Discriminators, discriminator_loss, feature_loss, generator_loss
from units.vocoder.training.recipe import VocoderRecipe
from units.vocoder.unit_vocoder import UnitVocoder

BETAS = (0.8, 0.99)  # arXiv 2010.05646, section 4


class _Learner(nn.Module):
    """Generator and duration predictor in one forward, which is what several devices can share."""

    def __init__(self, network: UnitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, frame_ids: Tensor, mask: Tensor | None, speakers: Tensor, ids: Tensor, durations: Tensor,
        unit_mask: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Wav (B, T) and the duration predictor's loss, of a batch's parts."""
        wav = self.network(frame_ids, speakers, mask)
        if self.network.dur_predictor is None:
            return wav, wav.new_zeros(())
        return wav, self.network.duration_loss(ids, durations, unit_mask)


class GanTraining:
    """Generator, discriminators, their optimisers, step and seconds so far: all that a checkpoint holds."""

    target = staticmethod(wav_frames)

    def __init__(self, codebook: Codebook, recipe: VocoderRecipe, device: str, speakers: tuple[str, ...] = ()) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # accelerate keeps the precision and device of the process's first training and refuses others; transformers'
        # TrainingArguments resets them in the same way
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        asked = torch.device(device)
        if asked.type == "cuda" and asked.index is not None:
            torch.cuda.set_device(asked)  # accelerate takes the current one; a launcher's ranks, each its own
        self.accelerator = Accelerator(cpu=device == "cpu", mixed_precision=recipe.gan.mixed_precision)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        sizes = recipe.vocos if recipe.head == "vocos" else recipe.hifigan
        settings = dataclasses.replace(sizes, num_speakers=len(speakers))
        self._template = UnitVocoder(codebook, settings, speakers)
        self._network: UnitNetwork = self._template.network
        self._judges = Discriminators(recipe.gan.discriminator_divisor)
        if isinstance(self._network, HifiGan):
            self._network.normalise_weights()
        self._optimizers = [
            torch.optim.AdamW(part.parameters(), lr=recipe.gan.learning_rate, betas=BETAS, weight_decay=recipe.weight_decay)
            for part in (self._network, self._judges)
        ]  # fmt: skip
        self._log_mel = LogMel().to(self.accelerator.device)
        self._learner, self._shared_judges, *self._stepping = self.accelerator.prepare(
            _Learner(self._network), self._judges, *self._optimizers
        )
        self.step, self.seconds = 0, 0.0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def vocoder(self) -> UnitVocoder:
        """What has been learned so far, ready to speak; a copy."""
        vocoder = UnitVocoder(self._template.codebook, self._template.settings, self._template.speakers)
        vocoder.network = self._network.folded().cpu()
        return vocoder.eval()

    def advance(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the discriminators and one of the generator; returns the losses by name."""
        recipe = self.recipe.gan
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate(self.step)
        # dropout as a function of the step, so that a resumed training goes on as if it had not stopped
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * self.world + self.rank)
        self._learner.train()
        filled = bool(batch.frames.mask.all())  # asked of the CPU, where nobody waits for the answer
        batch = batch.to(self.device)
        units = batch.speakers, batch.ids, batch.durations, batch.unit_mask
        made, duration = self._learner(batch.frames.ids, None if filled else batch.frames.mask, *units)
        recorded = batch.target.flatten(1)

        judged = discriminator_loss(self._shared_judges(recorded, made.detach()))
        self._minimise(judged, 1)

        self._judges.requires_grad_(False)
        verdicts = self._judges(recorded, made)
        mel = (self._log_mel(made) - self._log_mel(recorded)).abs().mean()
        adversarial, feature = generator_loss(verdicts), feature_loss(verdicts)
        total = adversarial + recipe.feature_weight * feature + recipe.mel_weight * mel
        self._minimise(total + recipe.duration_weight * duration, 0)
        self._judges.requires_grad_(True)
        self.step += 1
        losses = {"loss": total + recipe.duration_weight * duration, "mel": mel, "duration": duration}
        losses |= {"feature": feature, "adversarial": adversarial, "discriminator": judged}
        return {name: value.detach() for name, value in losses.items()}

    def _minimise(self, loss: Tensor, which: int) -> None:
        self._stepping[which].zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        self._stepping[which].step()

    def state(self) -> dict:
        """For a checkpoint; inverse of load_state."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state(self, state: dict) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _parts(self) -> dict:
        generator, judges = self._optimizers
        return {
            "weights": self._network, "judges": self._judges,
            "generator_optimizer": generator, "judge_optimizer": judges,
        }  # fmt: skip

    def illustrate(self, out: Path, pairs: list[tuple[Utterance, Units]], board) -> None:
        """Speak a few utterances into OUT/samples/step-N, each with a picture of its log-mels, and onto the board.

        Args:
            board: a tensorboard SummaryWriter.
        """
        folder, vocoder = out / "samples" / f"step-{self.step:08d}", self.vocoder
        for i in np.linspace(0, len(pairs) - 1, min(self.recipe.gan.samples, len(pairs))).astype(int):
            utterance, units = pairs[i]
            speaker = str(utterance.speaker) if vocoder.speakers else 0
            made, recorded = (
                vocoder.decode(units, speaker=speaker),
                load_wav(utterance.audio, utterance.start, utterance.duration),
            )
            name = utterance.id.replace("/", "-")
            save_wav(folder / f"{name}.wav", made)
            figure = self._picture(recorded, made)
            with written_whole(folder / f"{name}.png", "wb") as file:
                figure.savefig(file, format="png")
            board.add_figure(name, figure, self.step)
            board.add_audio(name, made, self.step, SAMPLE_RATE)

    def _picture(self, recorded: np.ndarray, made: np.ndarray):
        """Log-mels of the recording above those of the vocoder."""
        from matplotlib.figure import Figure

        log_mel = copy.deepcopy(self._log_mel).cpu()
        figure = Figure(figsize=(8, 5), layout="constrained")
        for axes, wav, title in zip(
            figure.subplots(2), (recorded[: len(made)], made), ("recorded", f"step {self.step}")
        ):
            axes.imshow(
                log_mel(torch.from_numpy(wav)[None])[0].numpy(), origin="lower", aspect="auto", vmin=-11.5, vmax=1
            )
            axes.set(title=title, ylabel="mel band")
        axes.set_xlabel(f"frames of {1000 * log_mel.hop / SAMPLE_RATE:.0f} ms")
        return figure

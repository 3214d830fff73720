"""Adversarial training of the waveform heads: one step of generator and discriminators, and the state of a checkpoint.

It runs on one device or several through accelerate. Without a launcher it is one process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from units.codebook import Codebook
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.heads.unit_network import UnitNetwork
from units.vocoder.mel import LogMel
from units.vocoder.training.crops import CropBatch, wav_frames
from units.vocoder.training.discriminators import Discriminators, discriminator_loss, feature_loss, generator_loss
from units.vocoder.training.recipe import VocoderRecipe
from units.vocoder.unit_vocoder import UnitVocoder

if TYPE_CHECKING:
    from accelerate import Accelerator

BETAS = (0.8, 0.99)  # of AdamW; arXiv 2010.05646, section 4
RELEASE_0_1_0 = {"discriminators": "judges", "discriminator_optimizer": "judge_optimizer"}  # its names in checkpoints


class _Generator(nn.Module):
    """Generator and duration predictor in one forward pass, as data-parallel training needs it."""

    def __init__(self, network: UnitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: CropBatch, padded: bool) -> tuple[Tensor, Tensor]:
        """The generated wav (B, T) and the duration predictor's loss."""
        wav = self.network(batch.frames.ids, batch.speakers, batch.frames.mask if padded else None)
        if not self.network.has_duration_predictor:
            return wav, wav.new_zeros(())
        return wav, self.network.duration_loss(batch.ids, batch.durations, batch.unit_mask)


class GanTraining:
    """Generator, discriminators, their optimisers, step and seconds so far."""

    target = staticmethod(wav_frames)

    def __init__(self, codebook: Codebook, recipe: VocoderRecipe, device: str, speakers: tuple[str, ...] = ()) -> None:
        self.recipe = recipe
        self.accelerator = _accelerator(device, recipe.gan.mixed_precision)
        torch.manual_seed(recipe.seed)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        sizes = recipe.vocos if recipe.head == "vocos" else recipe.hifigan
        settings = dataclasses.replace(sizes, num_speakers=len(speakers))
        self._template = UnitVocoder(codebook, settings, speakers)
        self._network: UnitNetwork = self._template.network
        self._discriminators = Discriminators(recipe.gan.discriminator_divisor)
        if isinstance(self._network, HifiGan):
            self._network.normalise_weights()
        self._optimizers = [
            torch.optim.AdamW(
                part.parameters(), lr=recipe.gan.learning_rate, betas=BETAS, weight_decay=recipe.weight_decay
            )
            for part in (self._network, self._discriminators)
        ]
        self._log_mel = LogMel().to(self.accelerator.device)
        self._generator, self._parallel_discriminators, *self._parallel_optimizers = self.accelerator.prepare(
            _Generator(self._network), self._discriminators, *self._optimizers
        )
        self.step, self.seconds = 0, 0.0

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def vocoder(self) -> UnitVocoder:
        """A copy of the vocoder as trained so far, ready for inference."""
        vocoder = UnitVocoder(self._template.codebook, self._template.settings, self._template.speakers)
        vocoder.network = self._network.folded().cpu()
        return vocoder.eval()

    def advance(self, batch: CropBatch) -> dict[str, Tensor]:
        """One step of the discriminators and one of the generator; returns the losses by name."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate(self.step)
        # dropout is a function of the step, so that a resumed training equals an uninterrupted one
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.step) * self.world + self.rank)
        self._generator.train()
        padded = not bool(batch.frames.mask.all())  # computed on the CPU, so that no device has to be waited for
        batch = batch.to(self.device)
        generated, duration = self._generator(batch, padded)
        recorded = batch.target.flatten(1)
        discriminator = discriminator_loss(self._parallel_discriminators(recorded, generated.detach()))
        self._minimise(discriminator, self._parallel_optimizers[1])
        losses = self._generator_losses(recorded, generated, duration)
        self._minimise(losses["loss"], self._parallel_optimizers[0])
        self._discriminators.requires_grad_(True)
        self.step += 1
        return {name: value.detach() for name, value in {**losses, "discriminator": discriminator}.items()}

    def _generator_losses(self, recorded: Tensor, generated: Tensor, duration: Tensor) -> dict[str, Tensor]:
        """The generator's losses by name; `loss` is their weighted sum. Leaves the discriminators frozen."""
        self._discriminators.requires_grad_(False)
        pairs = self._discriminators(recorded, generated)
        mel = (self._log_mel(generated) - self._log_mel(recorded)).abs().mean()
        adversarial, feature = generator_loss(pairs), feature_loss(pairs)
        weights = self.recipe.gan
        loss = adversarial + weights.feature_weight * feature + weights.mel_weight * mel
        loss = loss + weights.duration_weight * duration
        return {"loss": loss, "mel": mel, "duration": duration, "feature": feature, "adversarial": adversarial}

    def _minimise(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        optimizer.step()

    def weights(self) -> Iterable[Tensor]:
        """Everything that is trained."""
        return [*self._network.parameters(), *self._discriminators.parameters()]

    def state(self) -> dict:
        """The state of a checkpoint; inverse of load_state."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state(self, state: dict) -> None:
        """Inverse of state; also reads the checkpoints of release 0.1.0."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name] if name in state else state[RELEASE_0_1_0[name]])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def _parts(self) -> dict:
        generator_optimizer, discriminator_optimizer = self._optimizers
        return {
            "weights": self._network,
            "discriminators": self._discriminators,
            "generator_optimizer": generator_optimizer,
            "discriminator_optimizer": discriminator_optimizer,
        }


def _accelerator(device: str, mixed_precision: str) -> Accelerator:
    """An Accelerator for a device; an earlier training of this process has no influence on it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # accelerate keeps the precision and device of the process's first training and refuses others; transformers'
    # TrainingArguments resets them in the same way
    AcceleratorState._reset_state(reset_partial_state=True)
    named = torch.device(device)
    if named.type == "cuda" and named.index is not None:
        torch.cuda.set_device(named)  # accelerate uses the current device; a launcher sets it for each rank
    return Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision)

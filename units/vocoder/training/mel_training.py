"""Training of the head "mel": one optimiser step, and the state of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from units.codebook import Codebook
from units.runtime.precision import autocast
from units.vocoder.mel import MelSpectrogram
from units.vocoder.training.crops import CropBatch
from units.vocoder.training.recipe import VocoderRecipe
from units.vocoder.unit_vocoder import UnitVocoder

BETAS = (0.8, 0.98)  # of AdamW


class MelTraining:
    """Weights, optimiser, step and seconds so far."""

    rank, world = 0, 1

    def __init__(self, codebook: Codebook, recipe: VocoderRecipe, device: str, speakers: tuple[str, ...] = ()) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, torch.device(device)
        self.vocoder = UnitVocoder(codebook, recipe.generator, speakers).to(device).train()
        self.target = MelSpectrogram(recipe.generator.mels)
        self._optimizer = torch.optim.AdamW(
            self.vocoder.parameters(), lr=recipe.peak_lr, betas=BETAS, weight_decay=recipe.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0

    def advance(self, batch: CropBatch) -> dict[str, Tensor]:
        """One optimiser step; returns the losses by name."""
        for group in self._optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate(self.step)
        batch, network = batch.to(self.device), self.vocoder.network
        with autocast(self.device):
            mel = network.generator.loss(batch.frames, batch.target)
            duration = network.durations.loss(batch.ids, batch.durations, batch.unit_mask)
        self._optimizer.zero_grad(set_to_none=True)
        (mel + duration).backward()  # generator and duration predictor share no weights
        self._optimizer.step()
        self.step += 1
        return {"loss": (mel + duration).detach(), "mel": mel.detach(), "duration": duration.detach()}

    def weights(self) -> Iterable[Tensor]:
        """Everything that is trained."""
        return self.vocoder.network.parameters()

    def state(self) -> dict:
        """The state of a checkpoint; inverse of load_state."""
        return {"weights": self.vocoder.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.vocoder.network.load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])

"""The base of the waveform heads: embeddings of units and speakers, and the published duration predictor.

The parts have the names of fairseq's CodeHiFiGAN (`dict`, `spkr`, `dur_predictor`), so its weights load unchanged.

B batch, U units of a row, N frames (50 a second), C channels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from units.audio import HOP
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import UnitNetworkConfig
from units.vocoder.heads.duration_predictors import Context, PublishedDurationPredictor


class UnitNetwork(nn.Module, ABC):
    """Units laid out in time -> wav.

    A subclass defines `forward`, and `context`: how many frames around a frame its samples depend on.
    """

    context: Context
    precision = torch.float32  # of the convolutions in `synthesise`; durations are always predicted in float32

    def __init__(self, num_units: int, config: UnitNetworkConfig) -> None:
        super().__init__()
        self.dict = nn.Embedding(num_units, config.embedding_dim)
        self.spkr = nn.Embedding(config.num_speakers, config.embedding_dim) if config.num_speakers else None
        self.dur_predictor = None
        if config.duration_width:
            self.dur_predictor = PublishedDurationPredictor(
                config.embedding_dim, config.duration_width, config.duration_kernel, config.duration_dropout
            )

    @abstractmethod
    def forward(self, ids: Tensor, speakers: Tensor, mask: Tensor | None = None) -> Tensor:
        """Rows of frames to wavs.

        Args:
            ids: int64 (B, N), the unit of each frame.
            speakers: int64 (B,), rows of the speaker table; not read by a network without one.
            mask: bool (B, N), False in the padding; None where all rows have the same length.

        Returns: wav (B, N * 320), zero in the padding.
        """

    def folded(self) -> UnitNetwork:
        """A copy for inference, without the parts that only training needs."""
        return copy.deepcopy(self)

    def embed(self, ids: Tensor, speakers: Tensor) -> Tensor:
        """The network's input of each frame, (B, C, N): the unit's embedding, then the speaker's, as published."""
        x = self.dict(ids)
        if self.spkr is not None:
            x = torch.cat([x, self.spkr(speakers)[:, None].expand_as(x)], dim=2)
        return x.transpose(1, 2)

    @property
    def has_duration_predictor(self) -> bool:
        return self.dur_predictor is not None

    def log_durations(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Units int64 (B, U) and mask bool (B, U) -> log(1 + frames) (B, U).

        Raises: VocoderError with NO_DURATION_PREDICTOR.
        """
        if self.dur_predictor is None:
            raise VocoderError(
                VocoderReason.NO_DURATION_PREDICTOR,
                "this vocoder has no duration predictor; give it units with durations",
            )
        return self.dur_predictor(self.dict(ids), mask)

    whole_frames = staticmethod(PublishedDurationPredictor.whole_frames)

    def duration_bias(self) -> Tensor:
        """The bias of log(1 + frames): adding x to it multiplies all predicted durations by about exp(x)."""
        assert self.dur_predictor is not None
        return self.dur_predictor.proj.bias

    def duration_loss(self, ids: Tensor, durations: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of log(1 + frames), without the padding (arXiv 2107.05604, section 3.3)."""
        error = (self.log_durations(ids, mask).float() - durations.float().log1p()).square()
        return (error * mask).sum() / mask.sum()

    @property
    def unit_context(self) -> Context:
        """The neighbouring units that a unit's predicted duration depends on."""
        return self.dur_predictor.context if self.dur_predictor is not None else Context(0, 0)

    def synthesise(self, rows: Sequence[tuple[Tensor, Tensor]], speakers: Sequence[int]) -> list[Tensor]:
        """Units to wavs, as one padded batch.

        Args:
            rows: (ids, durations) of each row, int64 (U,) each.
            speakers: row of the speaker table for each.

        Returns: a wav (sum(durations) * 320,) for each row.
        """
        device = self.dict.weight.device
        frames = [ids.repeat_interleave(durations) for ids, durations in rows]
        counts = torch.tensor([len(one) for one in frames])
        ids = nn.utils.rnn.pad_sequence(frames, batch_first=True)
        even = bool((counts == ids.shape[1]).all())
        mask = None if even else (torch.arange(ids.shape[1]) < counts[:, None]).to(device)
        half = self.precision != torch.float32
        # by default cuDNN rounds float32 to TF32's 10 bits; a batch would then differ from its rows by more than 1e-4
        with (
            torch.backends.cudnn.flags(enabled=True, allow_tf32=half),
            torch.autocast(device.type, self.precision, half),
        ):
            wavs = self(ids.to(device), torch.tensor(list(speakers), device=device), mask)
        return [wav[: int(count) * HOP].float() for wav, count in zip(wavs, counts)]

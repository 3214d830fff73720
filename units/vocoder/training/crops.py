"""Training crops: units aligned with their audio, as a function of the seed and the step alone.

B batch, N frames of a crop (50 a second), U units of a crop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from units.audio import HOP, load_wav, num_frames
from units.codebook import Codebook, Units
from units.corpus.manifest import Utterance
from units.dataset.unit_set import UnitRecord
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.frames import Frames, run_frames
from units.vocoder.training.recipe import VocoderRecipe

Pair = tuple[Utterance, Units]


@dataclass(frozen=True)
class TrainingData:
    """What a vocoder is trained on.

    pairs: utterances with their units, at least one. speakers: names of the rows of the speaker table; each utterance's
    speaker is one of them, unless there is no table.
    """

    pairs: list[Pair]
    speakers: tuple[str, ...] = ()

    @classmethod
    def of(cls, pairs: list[Pair], multi_speaker: bool) -> TrainingData:
        """The pairs, with a speaker table of all their speakers if `multi_speaker`."""
        names = {str(utterance.speaker) for utterance, _ in pairs} if multi_speaker else ()
        return cls(pairs, tuple(sorted(names)))

    @property
    def codebook(self) -> Codebook:
        return self.pairs[0][1].codebook

    @property
    def units(self) -> list[Units]:
        return [units for _, units in self.pairs]


@dataclass(frozen=True)
class CropBatch:
    """Crops for one step.

    frames: units laid out in time, (B, N).
    target: what the head learns to make of them, (B, r N, ...), r rows a frame: two of log-mels, or one of 320 samples.
    ids, durations, unit_mask: the units that sound in the crop, with their whole durations, (B, U).
    speakers: rows of the speaker table, int64 (B,).
    """

    frames: Frames
    target: Tensor
    ids: Tensor
    durations: Tensor
    unit_mask: Tensor
    speakers: Tensor

    def to(self, device: str | torch.device) -> CropBatch:
        """The batch on a device; the copy from pinned memory is asynchronous."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> CropBatch:
        """The batch in pinned memory; a DataLoader calls this."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> CropBatch:
        frames, *others = (getattr(self, field.name) for field in dataclasses.fields(self))
        laid_out = Frames(change(frames.ids), change(frames.runs), change(frames.mask))
        return CropBatch(laid_out, *map(change, others))


def wav_frames(wav: Tensor) -> Tensor:
    """Wav (B, N * 320) as rows of frames (B, N, 320): the target of a waveform head."""
    return wav.unflatten(1, (-1, HOP))


class CropDataset(Dataset):
    """Crops by step: item i, the crops of step i, is a function of the recipe's seed and i."""

    def __init__(
        self, data: TrainingData, recipe: VocoderRecipe, target: Callable[[Tensor], Tensor], copies: int = 1
    ) -> None:
        """
        Args:
            data: utterances, their units, and the speaker table.
            recipe: crop length, batch size, seed and cache.
            target: wav (1, N * 320) -> what the head learns to make of it, (1, r N, ...).
            copies: processes that have such a dataset each and share the recipe's cache.
        """
        self.pairs, self.recipe, self._target = data.pairs, recipe, target
        self._rows = {name: row for row, name in enumerate(data.speakers)}
        self._cache: dict[int, Tensor] = {}
        self._free = recipe.cache_gib * 2**30 / copies  # bytes
        lengths = np.array([len(units.frames()) for units in data.units], dtype=np.float64)
        self.seconds = float(lengths.sum()) / data.codebook.frame_rate
        self._chances = lengths / lengths.sum()

    def __getitem__(self, step: int) -> CropBatch:
        return self.batch(step)

    def batch(self, step: int) -> CropBatch:
        """The crops of step 0, 1, ...; the shape is the same for all steps."""
        draw = np.random.default_rng([self.recipe.seed, step])
        members = draw.choice(len(self.pairs), self.recipe.batch_size, p=self._chances)
        columns = zip(*(self._crop(int(index), draw) for index in members))
        ids, runs, mask, target, units, durations, unit_mask, speakers = (torch.stack(column) for column in columns)
        return CropBatch(Frames(ids, runs, mask), target, units, durations, unit_mask, speakers)

    def _crop(self, index: int, draw: np.random.Generator) -> tuple[Tensor, ...]:
        size = self.recipe.crop_frames
        utterance, units = self.pairs[index]
        unit_ids, durations = torch.tensor(units.ids), torch.tensor(units.durations)
        ids, runs = run_frames(unit_ids, durations)
        start = int(draw.integers(max(1, len(ids) - size + 1)))
        stop = start + size
        frames = [_sized(x[start:stop], size) for x in (ids, runs, torch.ones(len(ids), dtype=torch.bool))]
        whole = self._whole_target(index)
        rows = len(whole) // len(ids)  # of the target in a frame
        target = _sized(whole[rows * start : rows * stop], rows * size)
        first = int(torch.searchsorted(durations.cumsum(0), start, right=True))  # the unit of the frame `start`
        unit_columns = (unit_ids, durations, torch.ones(len(unit_ids), dtype=torch.bool))
        sounding = [_sized(x[first : first + size], size) for x in unit_columns]
        return *frames, target, *sounding, torch.tensor(self._rows[str(utterance.speaker)] if self._rows else 0)

    def _whole_target(self, index: int) -> Tensor:
        """The target of a whole utterance, (r N, ...); cached while there is memory."""
        if index in self._cache:
            return self._cache[index]
        utterance, units = self.pairs[index]
        wav = load_wav(utterance.audio, utterance.start, utterance.duration)
        frames = len(units.frames())
        if num_frames(len(wav)) != frames:
            raise VocoderError(
                VocoderReason.OTHER_AUDIO,
                f"{utterance.audio} has {num_frames(len(wav))} frames, but its units last {frames}. "
                "The units were made from other audio: extract them again from this manifest.",
            )
        target = self._target(torch.from_numpy(wav[None, : frames * HOP]))[0]
        if self._free >= target.nbytes:
            self._free -= target.nbytes
            self._cache[index] = target
        return target


def _sized(x: Tensor, size: int) -> Tensor:
    """Pad x (n, ...) with zeros to (size, ...)."""
    return torch.cat([x, x.new_zeros(size - len(x), *x.shape[1:])])


def match(records: Iterable[UnitRecord], utterances: list[Utterance], speaker: str | None) -> list[Pair]:
    """Pair utterances with their units by id, in the manifest's order.

    Args:
        records: of a unit set.
        utterances: of a manifest.
        speaker: the only speaker to keep; None keeps all.

    Raises: VocoderError if no utterance is of the speaker, or none has units.
    """
    chosen = [u for u in utterances if speaker is None or u.speaker == speaker]
    if not chosen:
        speakers = sorted({str(u.speaker) for u in utterances})
        raise VocoderError(
            VocoderReason.NOTHING_TO_TRAIN_ON, f"no utterance of {speaker!r} in the manifest; its speakers: {speakers}"
        )
    wanted = {u.id for u in chosen}
    units = {record.id: record.units for record in records if record.id in wanted and record.units.ids}
    if not units:
        raise VocoderError(
            VocoderReason.NOTHING_TO_TRAIN_ON,
            f"none of the {len(chosen)} utterances is in the unit set; extract units from this manifest",
        )
    if len(units) < len(chosen):
        print(f"{len(chosen) - len(units)} of {len(chosen)} utterances have no units and are left out")
    return [(u, units[u.id]) for u in chosen if u.id in units]

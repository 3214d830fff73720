"""Aligned crops of units and sound, as a function of the seed and the step alone.

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
from units.codebook import Units
from units.corpus.manifest import Utterance
from units.dataset.unit_set import UnitRecord
from units.vocoder.heads.frames import Frames, run_frames
from units.vocoder.training.recipe import VocoderRecipe


@dataclass(frozen=True)
class Batch:
    """Crops for one step: units in time, what they should sound like, and units with their whole durations.

    target: (B, r N, ...), r rows a frame, such as two of log-mels or one of 320 samples. ids, durations, unit_mask:
    (B, U). speakers: int64 (B,).
    """

    frames: Frames
    target: Tensor
    ids: Tensor
    durations: Tensor
    unit_mask: Tensor
    speakers: Tensor

    def to(self, device: str | torch.device) -> Batch:
        """The batch on a device; from pinned memory nobody waits for the copy."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In pinned memory: what a DataLoader asks a batch for."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        frames, *others = (getattr(self, field.name) for field in dataclasses.fields(self))
        laid_out = Frames(change(frames.ids), change(frames.runs), change(frames.mask))
        return Batch(laid_out, *map(change, others))


def wav_frames(wav: Tensor) -> Tensor:
    """Wav (B, N * 320) as rows of frames, (B, N, 320): the target of a waveform head."""
    return wav.unflatten(1, (-1, HOP))


class CropDataset(Dataset):
    """Wavs with their units. Item i, the crops of step i, is a function of the recipe's seed and i."""

    def __init__(
        self, pairs: list[tuple[Utterance, Units]], recipe: VocoderRecipe, target: Callable[[Tensor], Tensor],
        speakers: tuple[str, ...] = (), copies: int = 1,
    ) -> None:  # fmt: skip
        """
        Args:
            target: wav (1, N * 320) -> what the head learns to make of it, (1, r N, ...).
            speakers: rows of the speaker table; every pair's speaker is one of them, if there are any.
            copies: processes that have such a corpus each, and share the recipe's cache.
        """
        self.pairs, self.recipe, self._target = pairs, recipe, target
        self._rows = {name: row for row, name in enumerate(speakers)}
        self._cache: dict[int, Tensor] = {}
        self._room = recipe.cache_gib * 2**30 / copies  # bytes
        lengths = np.array([len(units.frames()) for _, units in pairs], dtype=np.float64)
        self.seconds = float(lengths.sum()) / pairs[0][1].codebook.frame_rate
        self._chances = lengths / lengths.sum()

    def __getitem__(self, step: int) -> Batch:
        return self.batch(step)

    def batch(self, step: int) -> Batch:
        """The crops of step 0, 1, ..., of always the same shape."""
        draw = np.random.default_rng([self.recipe.seed, step])
        members = draw.choice(len(self.pairs), self.recipe.batch_size, p=self._chances)
        columns = zip(*(self._crop(int(index), draw) for index in members))
        ids, runs, mask, target, units, durations, unit_mask, speakers = (torch.stack(column) for column in columns)
        return Batch(Frames(ids, runs, mask), target, units, durations, unit_mask, speakers)

    def _crop(self, index: int, draw: np.random.Generator) -> tuple[Tensor, ...]:
        size = self.recipe.crop_frames
        utterance, units = self.pairs[index]
        unit_ids, durations = torch.tensor(units.ids), torch.tensor(units.durations)
        ids, runs = run_frames(unit_ids, durations)
        start = int(draw.integers(max(1, len(ids) - size + 1)))
        stop = start + size
        first = int(torch.searchsorted(durations.cumsum(0), start, right=True))  # the unit that sounds at `start`
        frames = [_sized(x[start:stop], size) for x in (ids, runs, torch.ones(len(ids), dtype=torch.bool))]
        whole = self._sound(index)
        rows = len(whole) // len(ids)  # of the target in a frame
        target = _sized(whole[rows * start : rows * stop], rows * size)
        words = [
            _sized(x[first : first + size], size)
            for x in (unit_ids, durations, torch.ones(len(unit_ids), dtype=torch.bool))
        ]
        return *frames, target, *words, torch.tensor(self._rows[str(utterance.speaker)] if self._rows else 0)

    def _sound(self, index: int) -> Tensor:
        """Target of the whole utterance, (r N, ...); kept while there is room."""
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
        target = self._target(torch.from_numpy(wav[None, : frames * HOP]))[0]
        if self._room >= target.nbytes:
            self._room -= target.nbytes
            self._cache[index] = target
        return target


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

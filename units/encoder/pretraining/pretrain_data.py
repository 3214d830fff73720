"""What HuBERT pre-training reads: the corpus with the lengths of its utterances, and the steps made of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from units.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, AudioError, load_wav, num_frames
from units.containers import check_wav_length
from units.corpus.manifest import Utterance
from units.encoder.centring import centred
from units.encoder.pretraining.perturb import echoed, other_tract, over_babble, over_noise, tilted
from units.encoder.recipes import PretrainRecipe
from units.encoder.unit_encoder import Features
from units.runtime.ahead import worked_ahead
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import read_json
from units.runtime.progress import progress

BATCH_FILES, BATCH_SECONDS = 16, 240  # features are computed for at most so many utterances at once

Job: TypeAlias = tuple[Features, Callable[[Tensor], Any]]  # features, and a function of an utterance's features (N, D)


def measure(
    utterances: list[Utterance], kept: Path | None = None, workers: int = 0, settled: bool = False
) -> dict[str, int | str]:
    """Measure utterances: by id, the samples that load_wav gives, or the reason why it gives none.

    Args:
        kept: a file that holds the result, or will, unless nothing is readable; it is written whole.
        workers: threads that read; 0 reads in this one.
        settled: utterances that are unreadable in `kept` stay so; else they are tried again, as errors may pass.

    Raises: ValueError if `kept` was measured for other utterances.
    """
    digest = hashlib.sha256()
    for u in utterances:
        digest.update(f"{u.id} {u.audio.name} {u.start} {u.duration}\n".encode("utf-8", "surrogateescape"))
    rows, found = digest.hexdigest()[:16], dict[str, int | str]()
    if kept and kept.exists():
        record = read_json(kept, {"rows": str, "found": dict})
        if record["rows"] != rows:
            raise ValueError(f"{kept} is of other utterances than the manifest's: it changed; give another --out")
        found = {id: length for id, length in record["found"].items() if _is_measure(length)}
    unknown = [u for u in utterances if u.id not in found or (isinstance(found[u.id], str) and not settled)]
    if not unknown:
        return found
    bar = progress(worked_ahead(_measured, unknown, workers), desc="lengths", unit="files", total=len(unknown))
    found |= {u.id: length for length, u in zip(bar, unknown)}
    if kept and any(isinstance(length, int) for length in found.values()):
        with written_whole(kept) as file:
            json.dump({"rows": rows, "found": found}, file)
    return found


def _is_measure(length: object) -> bool:
    """Whether a kept value is a number of samples, or a reason; others are measured again."""
    return isinstance(length, str) or (isinstance(length, int) and not isinstance(length, bool) and length > 0)


def _measured(utterance: Utterance) -> int | str:
    try:
        return _length_in_header(utterance) or len(_load(utterance))
    except (AudioError, OSError) as error:
        return str(error)


def _length_in_header(utterance: Utterance) -> int | None:
    """Samples of an utterance by its file's header, for 16 kHz PCM in a wav; None where the file must be decoded.

    The header of a compressed file may announce too much (cut, damaged), floats may be NaN, and resampling rounds.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(utterance.audio) if os.name == "nt" else os.fsencode(utterance.audio)) as file:
            plain = file.format in ("WAV", "WAVEX") and file.subtype.startswith("PCM_") and file.seekable()
            if not plain or file.samplerate != SAMPLE_RATE:
                return None
            with utterance.audio.open("rb") as same:
                check_wav_length(same.fileno())
            left = file.frames - min(round(utterance.start * SAMPLE_RATE), file.frames)
            length = left if utterance.duration is None else min(left, round(utterance.duration * SAMPLE_RATE))
            file.seek(file.frames - left + max(0, length - 1))
            return length if length >= RECEPTIVE_FIELD and len(file.read(1)) else None
    except (soundfile.LibsndfileError, RuntimeError, ValueError, TypeError):  # load_wav reports the reason
        return None


def _load(utterance: Utterance) -> np.ndarray:
    return load_wav(utterance.audio, utterance.start, utterance.duration)


class PretrainCorpus:
    """The utterances of a manifest that crops can be taken from; the others are left out and counted.

    utterances: those U. lengths: int64 (U,), samples. first_frame: int64 (U + 1,), where the frames of each begin in
    the targets. refused: by id, why an utterance could not be read. short: ids of those below `shortest` samples.
    """

    def __init__(
        self,
        utterances: list[Utterance],
        shortest: int,
        kept: Path | None = None,
        workers: int = 0,
        settled: bool = False,
    ) -> None:
        """Measure the utterances that `kept` does not hold (see `measure`). Raises ValueError if none can be used."""
        found = measure(utterances, kept, workers, settled)
        self.refused = {name: length for name, length in found.items() if isinstance(length, str)}
        lengths = {name: length for name, length in found.items() if isinstance(length, int)}
        self.short = [name for name, length in lengths.items() if length < shortest]
        self.utterances = [u for u in utterances if lengths.get(u.id, 0) >= shortest]
        if not self.utterances:
            raise ValueError(
                f"none of {len(utterances)} utterances can be used: {len(self.short)} are shorter than "
                f"{shortest / SAMPLE_RATE:.2f} s, {len(self.refused)} not readable {list(self.refused.values())[:1]}"
            )
        self.lengths = np.array([lengths[u.id] for u in self.utterances])
        self.first_frame = np.concatenate([[0], np.cumsum([num_frames(n) for n in self.lengths])])

    @property
    def hours(self) -> float:
        """Hours of audio."""
        return float(self.lengths.sum() / SAMPLE_RATE / 3600)

    def wav(self, index: int) -> np.ndarray:
        """float32 (T,) of utterance `index`, T = lengths[index].

        Raises: what load_wav raises; ValueError if the file has changed since it was measured.
        """
        wav, length, utterance = _load(self.utterances[index]), self.lengths[index], self.utterances[index]
        if len(wav) != length:
            raise ValueError(
                f"{utterance.audio} has {len(wav)} samples for {utterance.id!r} and had {length}: it changed; "
                "give another --out"
            )
        return wav

    def run_jobs(
        self, order: np.ndarray, jobs: list[Job], centring: str = "utterance"
    ) -> Iterator[tuple[np.ndarray, list[list]]]:
        """Compute features of utterances in batches, mean-normalise them, and give them to each job's function.

        Each core decodes a separate batch and runs the CPU's jobs on it, which is faster than sharing every small
        matrix product; a GPU's jobs run in this thread.

        Args:
            order: int64, indices of utterances, the shortest first.
            jobs: features, and the function of them.
            centring: mean normalisation of the features.

        Returns: for each batch, the indices of its utterances, and for each job the results of these.
        """

        def work(rows: np.ndarray) -> tuple[list[np.ndarray], list[list | None]]:
            wavs = [self.wav(row) for row in rows]
            return wavs, [_run(job, wavs, centring) if job[0].device.type == "cpu" else None for job in jobs]

        threads = torch.get_num_threads()
        batches = list(self._batches(order))
        found = worked_ahead(work, batches, threads, prepare=lambda: torch.set_num_threads(1))
        names = ", ".join(extract.name for extract, _ in jobs)
        bar = progress(found, desc=f"features of {names}", unit="batches", total=len(batches))
        try:
            for (wavs, results), rows in zip(bar, batches):
                yield rows, [_run(job, wavs, centring) if done is None else done for job, done in zip(jobs, results)]
        finally:
            torch.set_num_threads(threads)

    def _batches(self, order: np.ndarray) -> Iterator[np.ndarray]:
        while len(order):
            fits = int(np.clip(BATCH_SECONDS * SAMPLE_RATE // self.lengths[order[0]], 1, BATCH_FILES))
            yield order[:fits]
            order = order[fits:]


def _run(job: Job, wavs: list[np.ndarray], centring: str) -> list:
    extract, act = job
    return [act(centred(piece, centring)) for piece in extract(wavs)]


class Steps(torch.utils.data.Dataset):
    """Step i of an iteration: perturbed crops of utterances of similar length, with their targets.

    A step depends on the seed and on i only.

    Args:
        corpus: utterances of at least `recipe.shortest` samples.
        targets: labels of every frame of the corpus, whole numbers (total frames, heads).
    """

    def __init__(
        self, corpus: PretrainCorpus, targets: np.ndarray, recipe: PretrainRecipe, iteration: int, steps: int
    ) -> None:
        self.corpus, self.targets, self.recipe, self.salt, self.steps = corpus, targets, recipe, iteration, steps
        self.by_length = np.argsort(corpus.lengths, kind="stable")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """wav float32 (B, T), targets int32 (B, N, heads), mask bool (B, N)."""
        draw = np.random.default_rng([self.recipe.seed, self.salt, step])
        members = self._members(int(draw.integers(len(self.by_length))))
        length = self.recipe.crop_length(int(self.corpus.lengths[members[0]]))
        clean, targets = zip(*(self._crop(m, length, draw) for m in members))
        crops = [self._perturb(clean, row, draw) for row in range(len(clean))]
        targets_t = torch.from_numpy(np.stack(targets))
        return torch.from_numpy(np.stack(crops)), targets_t, self._mask(targets_t.shape[:2], draw)

    def _members(self, anchor: int) -> np.ndarray:
        """The utterance at `anchor` in the order of length and the next longer ones, the shortest first: (B,).

        Near the end the anchor moves down, so that the longest never share a step with the shortest. Only if the corpus
        is smaller than a step do its utterances occur in it more than once.
        """
        total = len(self.by_length)
        length = min(self.recipe.longest, int(self.corpus.lengths[self.by_length[anchor]]))
        rows = max(1, round(self.recipe.batch_seconds * SAMPLE_RATE / length))
        anchor = max(0, min(anchor, total - rows))
        return self.by_length[anchor + np.arange(rows) % (total - anchor)]

    def _crop(self, index: int, length: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A segment of one utterance at another speed, float32 (length,), and its frames' targets, int32 (N, heads)."""
        wav = self.corpus.wav(index)
        speed = draw.uniform(1 - self.recipe.speed_range, 1 + self.recipe.speed_range)
        taken = min(len(wav), round(length * speed))
        start = int(draw.integers(len(wav) - taken + 1))
        at = start + np.linspace(0, taken - 1, length)
        crop = np.interp(at, np.arange(len(wav)), wav).astype(np.float32)
        centres = at[np.arange(num_frames(length)) * HOP + RECEPTIVE_FIELD // 2]
        first, frames = self.corpus.first_frame[index], num_frames(len(wav))
        frame = np.clip(np.round((centres - RECEPTIVE_FIELD // 2) / HOP).astype(int), 0, frames - 1)
        return crop, self.targets[first + frame].astype(np.int32)

    def _perturb(self, clean: Sequence[np.ndarray], row: int, draw: np.random.Generator) -> np.ndarray:
        """Crop `row` of a step in another voice, through another microphone, in another place."""
        recipe, crop = self.recipe, clean[row]
        if recipe.formant_range:
            crop = other_tract(crop, draw.uniform(1 - recipe.formant_range, 1 + recipe.formant_range))
        crop = tilted(crop, draw.uniform(-0.4, 0.4))
        if recipe.room_probability and draw.random() < recipe.room_probability:
            crop = echoed(crop, draw.uniform(0.1, 0.6), draw)
        if recipe.babble_probability and draw.random() < recipe.babble_probability:
            crop = over_babble(crop, clean[int(draw.integers(len(clean)))], draw.uniform(5, 25))
        if draw.random() < recipe.noise_probability:
            crop = over_noise(crop, draw.uniform(10, 40), draw)
        return crop

    def _mask(self, shape: torch.Size, draw: np.random.Generator) -> Tensor:
        starts = draw.random(shape) < self.recipe.mask_start
        starts[:, shape[1] // 3] = True  # at least one span a row
        mask = np.zeros(shape, bool)
        for shift in range(min(self.recipe.mask_span, shape[1])):
            mask[:, shift:] |= starts[:, : shape[1] - shift]
        return torch.from_numpy(mask)

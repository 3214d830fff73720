"""A voice for units: UnitVocoder turns Units into a wav.

    vocoder = UnitVocoder.from_pretrained("runs/toy/vocoder")
    wav = vocoder.decode(units)                            # float32 (sum(durations) * 320,)
    wav = vocoder.decode(units, predict_durations=True)    # the vocoder's own rhythm
    for wav in vocoder.stream(pieces): ...                 # while the units are still coming

    UnitVocoder.from_pretrained("vocoder.pt", config="config.json")    # the published CodeHiFiGAN

On disk a vocoder is a folder: `model.safetensors`, and `config.json` with its codebook, head and sizes. The head
"hifigan" writes the published keys into config.json, and the published `vocoder.pt` beside it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.audio import FRAME_RATE, SAMPLE_RATE
from units.codebook import Codebook, Units
from units.vocoder.heads.configs import HeadConfig, MelGeneratorConfig
from units.vocoder.heads.unit_network import UnitNetwork
from units.vocoder.streaming import UnitStream, WholeStream
from units.vocoder.vocoder_folder import HEADS, read_vocoder, write_vocoder

AT_ONCE = 32  # rows of a padded batch on an accelerator
CALIBRATED_AT_ONCE = 64  # utterances whose durations are predicted together
FRAMES_AT_ONCE = 16_000  # of a padded batch, padding included: 320 s; 330 MB a tensor at the published sizes


class UnitVocoder(nn.Module):
    """Network and duration predictor for one codebook, of one voice or several."""

    sample_rate = SAMPLE_RATE

    def __init__(
        self, codebook: Codebook, settings: HeadConfig = MelGeneratorConfig(), speakers: Sequence[str] = ()
    ) -> None:
        """
        Args:
            settings: sizes; their class decides the head.
            speakers: names of the rows of the speaker table, or none to call them by number only.
        """
        super().__init__()
        if codebook.frame_rate != FRAME_RATE:
            raise ValueError(
                f"codebook {codebook.name!r} has {codebook.frame_rate} frames a second; vocoders speak {FRAME_RATE}"
            )
        if speakers and len(speakers) != settings.num_speakers:
            raise ValueError(f"{len(speakers)} names for {settings.num_speakers} speakers; each has one")
        self.codebook, self.settings, self.speakers = codebook, settings, tuple(speakers)
        self.network = HEADS[settings.head][0](codebook.size, settings)

    @property
    def head(self) -> str:
        return self.settings.head

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def delay_ms(self) -> float:
        """Sound that an exact stream holds back, in ms: the network's right context; infinite for the mel head."""
        context = self.network.context
        return math.inf if context is None else context.right * 1000 / FRAME_RATE

    # --- folders

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device = "cpu", config: str | Path | None = None,
        codebook: Codebook | None = None, precision: torch.dtype = torch.float32,
    ) -> UnitVocoder:  # fmt: skip
        """Open a vocoder folder, or a published CodeHiFiGAN.

        Args:
            source: the folder; or `vocoder.pt`, `g_00500000` and the like.
            config: the json of a published file; `config.json` beside it if not given.
            codebook: what a published vocoder's units mean, which its files do not say. On your word; without it the
                vocoder has a codebook of its own, and foreign units are refused. Our folders know theirs.
            precision: of a waveform head's convolutions. torch.bfloat16 is nearly twice as fast on a CPU that has it,
                and no longer exact: samples differ by about a hundredth of the loudest.

        Raises:
            FileNotFoundError: the folder, its config.json or its weights are missing.
            ValueError: the config has a head, a field or an input this version does not know, the weights do not fit
                it, or they are anything but tensors; or the head, which is "mel", has no precision to choose.
        """
        files = read_vocoder(Path(source), None if config is None else Path(config), codebook)
        vocoder = cls(files.codebook, files.settings, files.speakers)
        try:
            vocoder.network.load_state_dict(files.weights)
        except RuntimeError as error:
            raise ValueError(f"{source} does not hold the weights that its config describes: {error}") from error
        if precision != torch.float32 and not isinstance(vocoder.network, UnitNetwork):
            raise ValueError(
                f'{source} has the head "mel", which speaks in float32 only; {precision} is for the others'
            )
        vocoder.network.precision = precision
        return vocoder.eval().to(device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder; config.json comes last, so its presence means complete. Inverse of from_pretrained."""
        folder = Path(folder)
        write_vocoder(folder, self.codebook, self.settings, self.speakers, self.network)
        return folder

    # --- speaking

    def decode(self, units: Units, predict_durations: bool = False, speaker: int | str = 0) -> np.ndarray:
        """Speak units.

        Args:
            units: of this vocoder's codebook, at least one.
            predict_durations: do not use `units.durations` but the vocoder's own; always so where they are None.
            speaker: number or name of the voice, where there are several.

        Returns: wav, float32 (T,), T = sum(durations) * 320.

        Raises:
            CodebookMismatch: the units are another codebook's.
            ValueError: no units, or no such speaker.
        """
        return self.decode_batch([units], predict_durations, speaker)[0]

    @torch.inference_mode()
    def decode_batch(
        self, batch: Sequence[Units], predict_durations: bool = False,
        speaker: int | str | Sequence[int | str] = 0,
    ) -> list[np.ndarray]:  # fmt: skip
        """Speak many at once: what `decode` gives for each, faster. Arguments and errors as in decode; the speaker is
        one for all, or one for each."""
        each = [speaker] * len(batch) if isinstance(speaker, int | str) else list(speaker)
        if len(each) != len(batch):
            raise ValueError(f"{len(batch)} utterances but {len(each)} speakers; give one, or one for each")
        voices = [self.check_speaker(one) for one in each]
        for units in batch:
            self._check(units)
        rows = [self._timed(units, predict_durations) for units in batch]
        wavs: dict[int, np.ndarray] = {}
        groups = _groups([int(durations.sum()) for _, durations in rows], 1 if self.device.type == "cpu" else AT_ONCE)
        with _side_by_side(self.device, len(groups)) as each_group:
            for group, sound in zip(groups, each_group(lambda group: self._synthesise(rows, voices, group), groups)):
                wavs |= dict(zip(group, sound))
        return [wavs[i] for i in range(len(rows))]

    def _synthesise(self, rows: list, voices: list[int], group: list[int]) -> list[np.ndarray]:
        with torch.inference_mode():  # a thread of its own does not inherit it
            sound = self.network.synthesise([rows[i] for i in group], [voices[i] for i in group])
            return [wav.cpu().numpy().copy() for wav in sound]

    @torch.inference_mode()
    def stream(
        self, pieces: Iterable[Units], predict_durations: bool = False, speaker: int | str = 0,
        lookahead: int | None = None,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Speak units while they are coming; the joined wavs are what `decode` gives for all of them at once.

        A piece's last `delay_ms` (and, where durations are predicted, its last units) wait for the next piece. The mel
        head says everything at the end.

        Args:
            pieces: consecutive units of one utterance, such as 10 or 40 at a time; all with durations, or none.
            lookahead: frames of 20 ms to wait for, fewer than `delay_ms` to speak sooner and no longer exactly; joins
                then slide over 20 ms.

        Yields: wavs, float32 (T,), none of them empty. Raises: as decode does.
        """
        voice = self.check_speaker(speaker)
        if self.network.context is None:
            stream: UnitStream | WholeStream = WholeStream(self._decode_whole)
        else:
            stream = UnitStream(self.network, voice, lookahead)
        said = 0
        for piece in pieces:
            if piece.ids:
                self._check(piece)
                said += len(piece.ids)
                timed = piece.durations is not None and not predict_durations
                wav = stream.push(torch.tensor(piece.ids), torch.tensor(piece.durations) if timed else None)
                if len(wav):
                    yield wav
        if not said:
            raise ValueError("no units to speak: a wav needs at least one unit")
        wav = stream.finish()
        if len(wav):
            yield wav

    def _decode_whole(self, ids: Tensor, durations: Tensor | None) -> np.ndarray:
        known = None if durations is None else tuple(durations.tolist())
        return self.decode(Units(tuple(ids.tolist()), known, self.codebook))

    def _check(self, units: Units) -> None:
        self.codebook.check_same(units.codebook, "this vocoder", "the units")
        if not units.ids:
            raise ValueError("no units to speak: a wav needs at least one unit")

    def check_speaker(self, speaker: int | str) -> int:
        """Row of the speaker table; 0 where there is one voice only. Raises ValueError if there is no such speaker."""
        count = self.settings.num_speakers
        if isinstance(speaker, str):
            if speaker not in self.speakers:
                raise ValueError(f"no speaker {speaker!r}; this vocoder knows {list(self.speakers) or 'numbers only'}")
            return self.speakers.index(speaker)
        if not 0 <= speaker < max(1, count):
            raise ValueError(f"speaker {speaker} is out of range; this vocoder has 0 to {max(1, count) - 1}")
        return speaker

    def _timed(self, units: Units, predict_durations: bool) -> tuple[Tensor, Tensor]:
        """Ids and durations, int64 (U,) each."""
        ids = torch.tensor(units.ids)
        if units.durations is not None and not predict_durations:
            return ids, torch.tensor(units.durations)
        # one at a time: a matrix product rounds differently in another batch shape, and a duration is rounded to frames
        row = ids[None].to(self.device)
        return ids, self.network.whole_frames(self.network.log_durations(row, torch.ones_like(row, dtype=torch.bool)))[
            0
        ].cpu()

    @torch.inference_mode()
    def calibrate_durations(self, corpus: Sequence[Units]) -> float:
        """Make predicted utterances as long as spoken ones, by one number added to the predictor's bias.

        A predictor trained on the squared error of logarithms finds the geometric mean of durations, which is short of
        the mean (Duan 1983, the retransformation problem). The factor is the one that makes the total right,
        rounding included.

        Args:
            corpus: units with their durations, such as the training set's.

        Returns: the factor by which durations grew; it is already in the weights, and so in every format they are
        saved in.
        """
        target = sum(sum(units.durations or ()) for units in corpus)
        logs = []
        for first in range(0, len(corpus), CALIBRATED_AT_ONCE):
            rows = [torch.tensor(units.ids) for units in corpus[first : first + CALIBRATED_AT_ONCE]]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
            logs.append(self.network.log_durations(ids.to(self.device), mask.to(self.device)).cpu()[mask])
        predicted = torch.cat(logs)
        low, high = -5.0, 5.0
        for _ in range(40):
            middle = (low + high) / 2
            short = int(self.network.whole_frames(predicted + middle).sum()) < target
            low, high = (middle, high) if short else (low, middle)
        self.network.duration_bias().add_(high)
        return math.exp(high)


def _groups(lengths: list[int], at_once: int) -> list[list[int]]:
    """Indices in batches of rows of similar length."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and len(groups[-1]) < at_once and lengths[i] * (len(groups[-1]) + 1) <= FRAMES_AT_ONCE:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@contextlib.contextmanager
def _side_by_side(device: torch.device, jobs: int) -> Iterator:
    """A `map` that gives each CPU core rows of its own: threads that share one small convolution mostly wait."""
    cores = min(torch.get_num_threads(), jobs)
    if device.type != "cpu" or cores < 2:
        yield map
        return
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(before)

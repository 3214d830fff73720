"""The unit vocoder: Units -> wav.

    vocoder = UnitVocoder.from_pretrained("runs/toy/vocoder")
    wav = vocoder.decode(units)                            # float32 (sum(durations) * 320,)
    wav = vocoder.decode(units, predict_durations=True)    # with durations from the vocoder's predictor
    for wav in vocoder.stream(pieces): ...                 # while further units are being generated

    UnitVocoder.from_pretrained("vocoder.pt", config="config.json")    # the published CodeHiFiGAN

On disk a vocoder is a folder: `model.safetensors`, and `config.json` with its codebook, head and settings. With the
head "hifigan" config.json has the published keys, and the published `vocoder.pt` is written beside it.
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
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import HeadConfig, MelGeneratorConfig
from units.vocoder.heads.mel_generator import MelNetwork
from units.vocoder.heads.unit_network import UnitNetwork
from units.vocoder.published import named_settings
from units.vocoder.streaming import MelStream, UnitStream, WholeStream
from units.vocoder.vocoder_folder import HEADS, read_vocoder, write_vocoder

AT_ONCE = 32  # rows of a padded batch on an accelerator
CALIBRATED_AT_ONCE = 64  # utterances whose durations are predicted together
FRAMES_AT_ONCE = 16_000  # of a padded batch, padding included: 320 s; 330 MB a tensor at the published sizes


class UnitVocoder(nn.Module):
    """Network and duration predictor for the units of one codebook, with one speaker or several."""

    sample_rate = SAMPLE_RATE

    def __init__(
        self, codebook: Codebook, settings: HeadConfig = MelGeneratorConfig(), speakers: Sequence[str] = ()
    ) -> None:
        """
        Args:
            codebook: of the units that it decodes.
            settings: of the network; their class selects the head.
            speakers: names of the rows of the speaker table; empty if speakers have numbers only.

        Raises: VocoderError.
        """
        super().__init__()
        if codebook.frame_rate != FRAME_RATE:
            raise VocoderError(
                VocoderReason.FRAME_RATE,
                f"codebook {codebook.name!r} has {codebook.frame_rate} frames a second; vocoders need {FRAME_RATE}",
            )
        if speakers and len(speakers) != settings.num_speakers:
            raise VocoderError(
                VocoderReason.SPEAKER_COUNT,
                f"{len(speakers)} names for {settings.num_speakers} speakers; each speaker has one",
            )
        self.codebook, self.settings, self.speakers = codebook, settings, tuple(speakers)
        self.network = HEADS[settings.head].network(codebook.size, settings)

    @property
    def head(self) -> str:
        """The head's name: mel, hifigan or vocos."""
        return self.settings.head

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def delay_ms(self) -> float:
        """Sound that an exact stream holds back, in ms, at most; infinite for the head "mel" without blocks."""
        context = self.network.context
        return math.inf if context is None else context.right * 1000 / FRAME_RATE

    # --- folders

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        device: str | torch.device = "cpu",
        config: str | Path | None = None,
        codebook: Codebook | None = None,
        precision: torch.dtype = torch.float32,
    ) -> UnitVocoder:
        """Open a vocoder folder, or a published CodeHiFiGAN.

        Args:
            source: the folder; or a published file such as `vocoder.pt` or `g_00500000`.
            device: where the weights go.
            config: the JSON config of a published file; `config.json` beside it if not given.
            codebook: of a published vocoder, whose files do not name it. Only its size can be checked. Without it
                the vocoder gets a codebook of its own, and units of any other codebook are refused. A vocoder folder
                names its codebook.
            precision: of a waveform head's convolutions. torch.bfloat16 is nearly twice as fast on a CPU that
                multiplies it, and not exact: samples differ by about a hundredth of the loudest.

        Raises:
            FileNotFoundError: the folder, its config.json or its weights are missing.
            VocoderError: the config has an unknown head or field, or needs an input that this version cannot give;
                the weights do not fit the config, or the file holds anything but tensors; or the head is "mel", which
                has no choice of precision.
        """
        files = read_vocoder(Path(source), None if config is None else Path(config), codebook)
        with named_settings(files.config):
            vocoder = cls(files.codebook, files.settings, files.speakers)
        try:
            vocoder.network.load_state_dict(files.weights)
        except RuntimeError as error:
            raise VocoderError(
                VocoderReason.OTHER_WEIGHTS,
                f"{files.weights_file} does not hold the weights that {files.config} describes: {error}",
            ) from error
        if precision != torch.float32 and not isinstance(vocoder.network, UnitNetwork):
            raise VocoderError(
                VocoderReason.UNSUPPORTED,
                f'{source} has the head "mel", which runs in float32 only, not in {precision}',
            )
        vocoder.network.precision = precision
        return vocoder.eval().to(device)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder. config.json comes last, so its presence means complete. Inverse of from_pretrained."""
        folder = Path(folder)
        write_vocoder(folder, self.codebook, self.settings, self.speakers, self.network)
        return folder

    # --- decoding

    def decode(self, units: Units, predict_durations: bool = False, speaker: int | str = 0) -> np.ndarray:
        """Units to wav.

        Args:
            units: of this vocoder's codebook, at least one.
            predict_durations: predict the durations even if `units.durations` has them; None is always predicted.
            speaker: number or name, where the vocoder has several.

        Returns: wav, float32 (T,), T = sum(durations) * 320.

        Raises:
            CodebookMismatch: the units are of another codebook.
            VocoderError: no units, no such speaker, or no duration predictor.
        """
        return self.decode_batch([units], predict_durations, speaker)[0]

    @torch.inference_mode()
    def decode_batch(
        self, batch: Sequence[Units], predict_durations: bool = False, speaker: int | str | Sequence[int | str] = 0
    ) -> list[np.ndarray]:
        """Decode many utterances, faster than one by one and with the same result.

        Args:
            batch: as in decode.
            predict_durations: as in decode.
            speaker: one for all utterances, or one for each.

        Returns: a wav for each. Raises: as decode.
        """
        speakers = [speaker] * len(batch) if isinstance(speaker, int | str) else list(speaker)
        if len(speakers) != len(batch):
            raise VocoderError(
                VocoderReason.SPEAKER_COUNT,
                f"{len(batch)} utterances but {len(speakers)} speakers; give one, or one for each",
            )
        table_rows = [self.check_speaker(one) for one in speakers]
        for units in batch:
            self._check(units)
        rows = [self._timed(units, predict_durations) for units in batch]
        wavs: dict[int, np.ndarray] = {}
        groups = _groups([int(durations.sum()) for _, durations in rows], 1 if self.device.type == "cpu" else AT_ONCE)
        with _side_by_side(self.device, len(groups)) as map_groups:
            for group, sound in zip(groups, map_groups(lambda g: self._synthesise(rows, table_rows, g), groups)):
                wavs |= dict(zip(group, sound))
        return [wavs[i] for i in range(len(rows))]

    def _synthesise(self, rows: list, table_rows: list[int], group: list[int]) -> list[np.ndarray]:
        with torch.inference_mode():  # a worker thread does not inherit it
            sound = self.network.synthesise([rows[i] for i in group], [table_rows[i] for i in group])
            return [wav.cpu().numpy().copy() for wav in sound]

    @torch.inference_mode()
    def stream(
        self,
        pieces: Iterable[Units],
        predict_durations: bool = False,
        speaker: int | str = 0,
        lookahead: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Decode units while further ones are being generated; the joined wavs equal `decode` of all units.

        The last `delay_ms` of a piece wait for the next piece, and so do its last units where durations are predicted.
        The head "mel" returns whole blocks; of a vocoder without blocks everything comes at the end.

        Args:
            pieces: consecutive units of one utterance, such as 10 or 40 at a time; all with durations, or none.
            predict_durations: as in decode.
            speaker: as in decode.
            lookahead: of a waveform head: frames of 20 ms to wait for. Fewer than `delay_ms` return sound sooner, but
                not exactly; joins are then cross-faded over 20 ms.

        Yields: wavs, float32 (T,), none of them empty.

        Raises: as decode; VocoderError if `lookahead` is negative.
        """
        stream = self.open_stream(predict_durations, speaker, lookahead)
        for piece in pieces:
            wav = stream.push(piece)
            if len(wav):
                yield wav
        yield from stream.finish()

    def open_stream(
        self, predict_durations: bool = False, speaker: int | str = 0, lookahead: int | None = None
    ) -> VocoderStream:
        """`stream` for a caller that pushes units when it has some; arguments and errors as there."""
        row = self.check_speaker(speaker)
        stream: UnitStream | MelStream | WholeStream
        if self.network.context is None:
            stream = WholeStream(self._decode_whole)
        elif isinstance(self.network, MelNetwork):
            stream = MelStream(self.network)
        else:
            stream = UnitStream(self.network, row, lookahead)
        return VocoderStream(self, stream, predict_durations)

    def _decode_whole(self, ids: Tensor, durations: Tensor | None) -> np.ndarray:
        known = None if durations is None else tuple(durations.tolist())
        return self.decode(Units(tuple(ids.tolist()), known, self.codebook))

    def _check(self, units: Units) -> None:
        self.codebook.check_same(units.codebook, "this vocoder", "the units")
        if not units.ids:
            raise _no_units()

    def check_speaker(self, speaker: int | str) -> int:
        """The row of the speaker table; 0 for a vocoder with one speaker.

        Raises: VocoderError if there is no such speaker.
        """
        count = max(1, self.settings.num_speakers)
        if isinstance(speaker, str):
            if speaker in self.speakers:
                return self.speakers.index(speaker)
            allowed = list(self.speakers) or "numbers only"
            raise VocoderError(
                VocoderReason.UNKNOWN_SPEAKER, f"no speaker {speaker!r}; this vocoder's speakers: {allowed}"
            )
        if not 0 <= speaker < count:
            raise VocoderError(
                VocoderReason.UNKNOWN_SPEAKER, f"speaker {speaker} is out of range; this vocoder has 0 to {count - 1}"
            )
        return speaker

    # --- durations

    def _timed(self, units: Units, predict_durations: bool) -> tuple[Tensor, Tensor]:
        """Ids and durations, int64 (U,) each."""
        ids = torch.tensor(units.ids)
        if units.durations is not None and not predict_durations:
            return ids, torch.tensor(units.durations)
        # one utterance at a time: matrix products round differently in another batch shape, and durations are rounded
        row = ids[None].to(self.device)
        log_durations = self.network.log_durations(row, torch.ones_like(row, dtype=torch.bool))
        return ids, self.network.whole_frames(log_durations)[0].cpu()

    @torch.inference_mode()
    def calibrate_durations(self, corpus: Sequence[Units]) -> float:
        """Make predicted durations add up to true ones, by a constant added to the duration predictor's bias.

        A predictor trained on the squared error of logarithms finds the geometric mean of durations, which is less than
        the mean (Duan 1983, the retransformation problem). The constant is the one that makes the total right, rounding
        included. docs/decisions/durations.md has the figures.

        Args:
            corpus: units with their durations, such as the training set's.

        Returns: the factor by which durations grew. It is in the weights, so every saved format has it.
        """
        target = sum(sum(units.durations or ()) for units in corpus)
        predicted = self._log_durations(corpus)
        low, high = -5.0, 5.0
        for _ in range(40):
            middle = (low + high) / 2
            short = int(self.network.whole_frames(predicted + middle).sum()) < target
            low, high = (middle, high) if short else (low, middle)
        self.network.duration_bias().add_(high)
        return math.exp(high)

    def _log_durations(self, corpus: Sequence[Units]) -> Tensor:
        """The predicted log durations of all units of a corpus, as one row."""
        found = []
        for first in range(0, len(corpus), CALIBRATED_AT_ONCE):
            rows = [torch.tensor(units.ids) for units in corpus[first : first + CALIBRATED_AT_ONCE]]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
            found.append(self.network.log_durations(ids.to(self.device), mask.to(self.device)).cpu()[mask])
        return torch.cat(found)


class VocoderStream:
    """One utterance of a vocoder, synthesised while its units come."""

    def __init__(
        self, vocoder: UnitVocoder, stream: UnitStream | MelStream | WholeStream, predict_durations: bool
    ) -> None:
        self._vocoder, self._stream, self._predict = vocoder, stream, predict_durations
        self._count = 0

    @torch.inference_mode()
    def push(self, units: Units) -> np.ndarray:
        """Add units, all with durations or none; returns the wav (T,) that can now be synthesised; T may be 0."""
        if not units.ids:
            return np.zeros(0, np.float32)
        self._vocoder._check(units)
        self._count += len(units.ids)
        known = units.durations is not None and not self._predict
        return self._stream.push(torch.tensor(units.ids), torch.tensor(units.durations) if known else None)

    @torch.inference_mode()
    def finish(self) -> Iterator[np.ndarray]:
        """End the utterance; gives the rest of the wav, in pieces (T,) as they are made.

        Raises: VocoderError if there were no units.
        """
        if not self._count:
            raise _no_units()
        yield from (wav for wav in self._stream.finish() if len(wav))


def _no_units() -> VocoderError:
    return VocoderError(VocoderReason.NO_UNITS, "there are no units; a wav needs at least one unit")


def _groups(lengths: list[int], at_once: int) -> list[list[int]]:
    """Indices of rows in batches of similar length."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and len(groups[-1]) < at_once and lengths[i] * (len(groups[-1]) + 1) <= FRAMES_AT_ONCE:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@contextlib.contextmanager
def _side_by_side(device: torch.device, jobs: int) -> Iterator:
    """A `map` for a device. On a CPU each core gets other rows: threads that share a small convolution mostly wait."""
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

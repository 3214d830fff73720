"""UnitEncoder: wav -> units. Features, mean-normalised if the codebook says so, then each frame's nearest of K centres.

encoder = UnitEncoder.from_pretrained("runs/toy/unit_encoder")                           # a unit encoder folder
encoder = UnitEncoder.join("hubert_base_ls960.pt", "hubert_base_ls960_L9_km500.bin")     # a published pair
units = encoder.encode(load_wav("question.wav"))
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from units.audio import SAMPLE_RATE, FrameGrid, check_wav
from units.codebook import Codebook, CodebookMismatch, Units
from units.encoder import kmeans
from units.encoder.centring import centred, takes_mean
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.published.fairseq_hubert import published_layer, read_centres
from units.encoder.whisper import WhisperFeatures
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, FileReason
from units.shipped import UNIT_ENCODERS

Backend = Literal["torch", "fairseq"]
FEATURE_SECONDS = 1800  # seconds of a long wav whose features may be in memory at once: 0.3 GB at a width of 768
TRANSFORMERS = (HubertFeatures, WhisperFeatures)  # features that a folder of transformers' holds
MFCC = "mfcc"  # the encoder's name that stands for MfccFeatures


class Features(Protocol):
    """Turns wavs into frames: HubertFeatures, WhisperFeatures, MfccFeatures, or FairseqFeatures."""

    name: str
    layer: int
    dim: int
    grid: FrameGrid

    @property
    def device(self) -> torch.device: ...

    @property
    def manner(self) -> str:
        """How features are computed, as far as units depend on it: "float32", "bfloat16", "fairseq" and the like."""

    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, D) for each wav (T,), N = grid.num_frames(T)."""


class UnitEncoder:
    """Features and K centres: a folder of `codebook.json`, `centres.safetensors` and `encoder/` (for transformers)."""

    def __init__(self, features: Features, centres: Tensor, codebook: Codebook) -> None:
        if centres.shape != (codebook.size, features.dim):
            raise ValueError(
                f"centres are {tuple(centres.shape)}; the codebook {codebook.name!r} on features of width "
                f"{features.dim} needs {(codebook.size, features.dim)}. Fit the centres on this encoder and layer."
            )
        self.features, self.codebook = features, codebook
        self.centres = centres.to(features.device)
        self._squares = kmeans.squares(self.centres)

    @classmethod
    def from_features(cls, features: Features, centres: Tensor, name: str, centring: str) -> UnitEncoder:
        """Join features and centres, and make their codebook with its fingerprint."""
        codebook = Codebook(
            name,
            features.name,
            features.layer,
            len(centres),
            features.grid.rate,
            centring,
            _fingerprint(features, centres, centring),
        )
        return cls(features, centres, codebook)

    @classmethod
    def join(
        cls,
        encoder: str | Path,
        centres: str | Path,
        layer: int | None = None,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        backend: Backend = "torch",
    ) -> UnitEncoder:
        """Join an encoder and a k-means file of any origin (see `read_centres`).

        Args:
            layer: layer that the centres were fitted on; not needed for the pairs of
                units/encoder/published/fairseq_hubert.py.

        Raises: ValueError if the layer is not known, or the centres are of another width.
        """
        found = read_centres(centres)
        layer = layer or published_layer(str(encoder), len(found))
        if layer is None:
            raise ValueError(
                f"{centres} does not state the layer of {encoder} that it was fitted on; give it with --layer N"
            )
        features = open_features(encoder, layer, device, dtype, backend)
        return cls.from_features(features, found, f"{Path(encoder).stem}-L{layer}-km{len(found)}", "none")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> UnitEncoder:
        """Open a unit encoder: a folder, or the name of one that ships, `codec` or `starter`.

        Raises: FileNotFoundError with the files that are missing; CodebookMismatch if its files are of two encoders;
            FileError naming a file that is damaged.
        """
        folder = UNIT_ENCODERS.get(str(folder), Path(folder))
        missing = [name for name in ("codebook.json", "centres.safetensors") if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is no unit encoder: it lacks {' and '.join(missing)}. Make one with: "
                f"units-fit --manifest M --out {folder}, or join a HuBERT and its k-means: --kmeans FILE"
            )
        codebook = Codebook.load(folder / "codebook.json")
        if codebook.encoder == MFCC:
            features: Features = MfccFeatures()
        else:
            features = _read_features(folder / "encoder", codebook, dtype).to(device)
        centres = kmeans.load_centres(folder / "centres.safetensors")
        if centres.shape != (codebook.size, features.dim):
            raise CodebookMismatch(
                f"{folder}: centres.safetensors holds centres {tuple(centres.shape)}; codebook.json and the encoder "
                f"{codebook.encoder!r} say {(codebook.size, features.dim)}. Files of two encoders were mixed, or one "
                "is damaged. Fit the centres on this encoder, or copy the whole folder again"
            )
        encoder = cls(features, centres, codebook)
        if _fingerprint(features, centres, codebook.centring) != codebook.fingerprint:
            raise CodebookMismatch(
                f"the weights in {folder} (centres.safetensors, encoder/model.safetensors, and their manner in "
                f"preprocessor_config.json) do not have the fingerprint in its codebook.json ({codebook.fingerprint}); "
                "files of two encoders were mixed. Fit the codebook again, or copy the whole folder again."
            )
        return encoder

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder that from_pretrained opens; `codebook.json` comes last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.features, TRANSFORMERS):
            self.features.save_pretrained(folder / "encoder")
        kmeans.save_centres(folder / "centres.safetensors", self.centres)
        with written_whole(folder / "codebook.json") as file:
            file.write(self.codebook.to_json() + "\n")
        return folder

    def encode(self, wav: np.ndarray) -> Units:
        """Units of one wav (T,); their durations sum to the number of its frames, features.grid.num_frames(T).

        Raises: units.audio.AudioError if the wav is too short or not finite.
        """
        return self.encode_batch([wav])[0]

    def encode_batch(self, wavs: list[np.ndarray]) -> list[Units]:
        """Units of several wavs, equal to encoding them one at a time.

        Features of at most FEATURE_SECONDS of a wav are in memory at once.
        """
        wavs = [check_wav(wav, grid=self.features.grid) for wav in wavs]
        long = [isinstance(self.features, TRANSFORMERS) and self.features.is_long(wav) for wav in wavs]
        batch = iter(self._assign(self.features([wav for wav, is_long in zip(wavs, long) if not is_long])))
        frames = [self._assign_long(wav) if is_long else next(batch) for wav, is_long in zip(wavs, long)]
        return [Units.from_frames(ids, self.codebook) for ids in frames]

    def _assign(self, features: list[Tensor]) -> list[list[int]]:
        """Units of each frame, wav by wav, so that none changes another's rounding; waits for the GPU once."""
        if not features:
            return []
        features = [centred(one, self.codebook.centring) for one in features]
        ids = torch.cat([kmeans.assign(one, self.centres, self._squares) for one in features]).cpu()
        return [own.tolist() for own in ids.split([len(one) for one in features])]

    def _assign_long(self, wav: np.ndarray) -> list[int]:
        """Units of each frame, window by window.

        With mean normalisation the mean is known at the end only: a wav of more than FEATURE_SECONDS is encoded twice.
        """
        assert isinstance(self.features, TRANSFORMERS)
        windows: Iterable[Tensor] = self.features.windows(wav)
        mean: Tensor | None = None
        if takes_mean(self.codebook.centring):
            if in_memory := len(wav) <= FEATURE_SECONDS * SAMPLE_RATE:
                windows = list(windows)
            sums, counts = zip(*((window.double().sum(0), len(window)) for window in windows))
            mean = (torch.stack(sums).sum(0) / sum(counts)).float()
            windows = windows if in_memory else self.features.windows(wav)
        frames = (centred(window, self.codebook.centring, mean) for window in windows)
        return [unit for window in frames for unit in kmeans.assign(window, self.centres, self._squares).tolist()]


def open_features(
    encoder: str | Path, layer: int, device: str = "cpu", dtype: torch.dtype = torch.float32, backend: Backend = "torch"
) -> Features:
    """Features of `mfcc`, of a transformers HuBERT or Whisper folder or hub id, or of a fairseq checkpoint (.pt).

    Args:
        backend: "fairseq" runs fairseq's code on its checkpoint, one wav at a time.
    """
    if backend == "fairseq":
        from units.encoder.published.fairseq_backend import FairseqFeatures

        return FairseqFeatures.from_pretrained(encoder, layer, device)
    if str(encoder) == MFCC:
        return MfccFeatures()
    return open_transformers(encoder, layer, dtype=dtype).to(device)


def open_transformers(
    encoder: str | Path, layer: int, name: str | None = None, dtype: torch.dtype = torch.float32
) -> HubertFeatures | WhisperFeatures:
    """Features of a transformers HuBERT or Whisper, a folder or hub id, or of a fairseq checkpoint (.pt)."""
    if Path(encoder).suffix != ".pt":
        from transformers import AutoConfig

        if AutoConfig.from_pretrained(encoder).model_type == "whisper":
            return WhisperFeatures.from_pretrained(encoder, layer, name, dtype)
    return HubertFeatures.from_pretrained(encoder, layer, name, dtype)


def _read_features(folder: Path, codebook: Codebook, dtype: torch.dtype) -> HubertFeatures | WhisperFeatures:
    """The features of a unit encoder folder.

    Raises: FileError if its files are damaged; ImportError and errors of memory as they are.
    """
    try:
        return open_transformers(folder, codebook.layer, codebook.encoder, dtype)
    except (ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each config class of transformers, and safetensors, has its own errors
        raise FileError(
            FileReason.DAMAGED,
            f"{folder}: config.json, preprocessor_config.json and model.safetensors do not open as the "
            f"{codebook.encoder}, layer {codebook.layer}, of codebook.json: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}. Copy the whole folder again",
        ) from error


def _fingerprint(features: Features, centres: Tensor, centring: str) -> str:
    """16 hex digits over everything that decides a unit: weights up to the layer, mean normalisation, centres."""
    digest = hashlib.sha256(f"{features.layer} {centring} ".encode())
    if not isinstance(features, MfccFeatures):
        hubert: Any = getattr(features, "same_as", features)  # FairseqFeatures has the weights of a HubertFeatures
        digest.update(f"normalise {hubert.normalise} ".encode())
        weights = hubert.model.state_dict()  # of the layers up to the requested one
        for name in sorted(weights):
            if not (hubert.pre_norm and name.startswith("encoder.layer_norm.")):  # it follows the last layer
                digest.update(name.encode())
                digest.update(weights[name].float().cpu().contiguous().numpy().tobytes())
    digest.update(centres.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

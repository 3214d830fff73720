"""UnitEncoder: wav -> units. Features, centred if the codebook says so, then the nearest of K centres for every frame.

encoder = UnitEncoder.from_pretrained("runs/toy/unit_encoder")
units = encoder.encode(load_wav("question.wav"))
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from torch import Tensor

from units import kmeans
from units.audio import FRAME_RATE, check_wav
from units.codebook import Codebook, CodebookMismatch, Units
from units.hubert import HubertFeatures
from units.manifest import written_whole
from units.mfcc import MfccFeatures

STARTER = Path(__file__).parent / "starter"  # the unit encoder that comes with the package
MFCC = "mfcc"  # the name that stands for MfccFeatures wherever an encoder is asked for


class UnitEncoder:
    """A unit encoder is a folder: `codebook.json`, `centres.safetensors`, and `encoder/` (a plain transformers HuBERT)."""

    def __init__(self, features: HubertFeatures | MfccFeatures, centres: Tensor, codebook: Codebook) -> None:
        if centres.shape != (codebook.size, features.dim):
            raise ValueError(
                f"centres are {tuple(centres.shape)}; the codebook {codebook.name!r} on features of width {features.dim} "
                f"needs {(codebook.size, features.dim)}. Fit the centres again on this encoder and layer."
            )
        self.features, self.codebook = features, codebook
        self.centres = centres.to(features.device)

    @classmethod
    def from_features(
        cls, features: HubertFeatures | MfccFeatures, centres: Tensor, name: str, centring: str
    ) -> UnitEncoder:
        """Join features and centres; the codebook, fingerprint included, follows from them."""
        codebook = Codebook(
            name,
            features.name,
            features.layer,
            len(centres),
            FRAME_RATE,
            centring,
            _fingerprint(features, centres, centring),
        )
        return cls(features, centres, codebook)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> UnitEncoder:
        """Open a unit encoder folder.

        Raises: FileNotFoundError naming what the folder lacks; CodebookMismatch if its files are of two encoders.
        """
        folder = Path(folder)
        missing = [name for name in ("codebook.json", "centres.safetensors") if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is no unit encoder: it lacks {' and '.join(missing)}. Make one with: "
                f"python -m units.fit --manifest M --out {folder}"
            )
        codebook = Codebook.load(folder / "codebook.json")
        if codebook.encoder == MFCC:
            features: HubertFeatures | MfccFeatures = MfccFeatures()
        else:
            features = HubertFeatures.from_pretrained(folder / "encoder", codebook.layer, codebook.encoder).to(device)
        centres = kmeans.load_centres(folder / "centres.safetensors")
        encoder = cls(features, centres, codebook)
        if _fingerprint(features, centres, codebook.centring) != codebook.fingerprint:
            raise CodebookMismatch(
                f"the weights in {folder} are not those that its codebook.json names ({codebook.fingerprint}); files of "
                "two encoders were mixed. Fit the codebook again, or copy the folder again, whole."
            )
        return encoder

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder that from_pretrained opens; `codebook.json` comes last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.features, HubertFeatures):
            self.features.save_pretrained(folder / "encoder")
        kmeans.save_centres(folder / "centres.safetensors", self.centres)
        with written_whole(folder / "codebook.json") as file:
            file.write(self.codebook.to_json() + "\n")
        return folder

    def encode(self, wav: np.ndarray) -> Units:
        """Units of one wav (T,); their durations sum to num_frames(T).

        Raises: units.audio.AudioError if the wav is too short or not finite.
        """
        return self.encode_batch([wav])[0]

    def encode_batch(self, wavs: list[np.ndarray]) -> list[Units]:
        """Units of several wavs, equal to encoding them one at a time."""
        return [
            Units.from_frames(self._assign(piece), self.codebook)
            for piece in self.features([check_wav(wav) for wav in wavs])
        ]

    def _assign(self, features: Tensor) -> list[int]:
        if self.codebook.centring == "utterance":
            features = features - features.mean(0)
        return kmeans.assign(features, self.centres).tolist()


def open_features(encoder: str | Path, layer: int, device: str = "cpu") -> HubertFeatures | MfccFeatures:
    """Features of `mfcc`, of a transformers HuBERT folder, or of a hub id."""
    if str(encoder) == MFCC:
        return MfccFeatures()
    return HubertFeatures.from_pretrained(encoder, layer).to(device)


def _fingerprint(features: HubertFeatures | MfccFeatures, centres: Tensor, centring: str) -> str:
    """16 hex digits over everything that decides a unit: weights up to the layer, centring, centres."""
    digest = hashlib.sha256(f"{features.layer} {centring} ".encode())
    weights = {}
    if isinstance(features, HubertFeatures):
        digest.update(f"normalise {features.normalise} ".encode())
        weights = features.model.state_dict()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].float().cpu().contiguous().numpy().tobytes())
    digest.update(centres.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

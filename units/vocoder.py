"""A voice for units: UnitVocoder turns Units into a wav.

    vocoder = UnitVocoder.from_pretrained("runs/toy/vocoder")
    wav = vocoder.decode(units)                            # float32 (sum(durations) * 320,)
    wav = vocoder.decode(units, predict_durations=True)    # the vocoder's own rhythm

On disk a vocoder is a folder: `model.safetensors`, and `config.json` with its codebook, head and sizes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from units.audio import FRAME_RATE, SAMPLE_RATE
from units.codebook import Codebook, Units
from units.generator import HEADS, DurationPredictor, MelGeneratorConfig
from units.manifest import written_whole

CONFIG, WEIGHTS = "config.json", "model.safetensors"
AT_ONCE = 32  # rows of a padded batch on an accelerator


class UnitVocoder(nn.Module):
    """Generator and duration predictor for one codebook and one voice."""

    sample_rate = SAMPLE_RATE

    def __init__(
        self, codebook: Codebook, settings: MelGeneratorConfig = MelGeneratorConfig(), head: str = "mel"
    ) -> None:
        super().__init__()
        if codebook.frame_rate != FRAME_RATE:
            raise ValueError(
                f"codebook {codebook.name!r} has {codebook.frame_rate} frames a second; vocoders speak {FRAME_RATE}"
            )
        self.codebook, self.head, self.settings = codebook, head, settings
        self.generator = HEADS[head][0](codebook.size, settings)
        self.durations = DurationPredictor(codebook.size)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> UnitVocoder:
        """Open a vocoder folder.

        Raises:
            FileNotFoundError: the folder, its config.json or its model.safetensors is missing.
            ValueError: the config has a head or a field this version does not know, or the weights do not fit it.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"no {name} in {folder}; a vocoder folder holds {CONFIG} and {WEIGHTS}. "
                    f"Train one with: python -m units.train_vocoder --out {folder} ... (a killed training goes on)"
                )
        vocoder = cls._from_config(json.loads((folder / CONFIG).read_text(encoding="utf-8")), folder / CONFIG)
        try:
            vocoder.load_state_dict(load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(
                f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes: {error}"
            ) from error
        return vocoder.eval().to(device)

    @classmethod
    def _from_config(cls, config: dict, source: Path) -> UnitVocoder:
        if set(config) != {"codebook", "head", "generator"}:
            raise ValueError(f"{source} has the fields {sorted(config)}; a vocoder's are codebook, generator and head")
        head = config["head"]
        if head not in HEADS:
            raise ValueError(f"{source} names the head {head!r}; this version knows {sorted(HEADS)}")
        settings_class = HEADS[head][1]
        unknown = set(config["generator"]) - {field.name for field in dataclasses.fields(settings_class)}
        if unknown:
            raise ValueError(f"{source}: the {head} head has no settings {sorted(unknown)}")
        return cls(Codebook.from_json(config["codebook"]), settings_class(**config["generator"]), head)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder; config.json comes last, so its presence means complete. Inverse of from_pretrained."""
        folder = Path(folder)
        with written_whole(folder / WEIGHTS, "wb") as file:
            file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}))
        config = {
            "codebook": dataclasses.asdict(self.codebook),
            "head": self.head,
            "generator": dataclasses.asdict(self.settings),
        }
        with written_whole(folder / CONFIG) as file:
            json.dump(config, file, indent=1)
        return folder

    @property
    def device(self) -> torch.device:
        return self.durations.head.weight.device

    def decode(self, units: Units, predict_durations: bool = False) -> np.ndarray:
        """Speak units.

        Args:
            units: of this vocoder's codebook, at least one.
            predict_durations: do not use `units.durations` but the vocoder's own; always so where they are None.

        Returns: wav, float32 (T,), T = sum(durations) * 320.

        Raises:
            CodebookMismatch: the units are another codebook's.
            ValueError: no units.
        """
        return self.decode_batch([units], predict_durations)[0]

    @torch.inference_mode()
    def decode_batch(self, batch: Sequence[Units], predict_durations: bool = False) -> list[np.ndarray]:
        """Speak many at once: what `decode` gives for each, faster. Arguments and errors as in decode."""
        for units in batch:
            self.codebook.check_same(units.codebook, "this vocoder", "the units")
            if not units.ids:
                raise ValueError("no units to speak: a wav needs at least one unit")
        rows = [self._timed(units, predict_durations) for units in batch]
        order = sorted(range(len(rows)), key=lambda i: int(rows[i][1].sum()))
        wavs: dict[int, np.ndarray] = {}
        at_once = 1 if self.device.type == "cpu" else AT_ONCE  # a CPU's caches hold one row
        for first in range(0, len(order), at_once):
            group = order[first : first + at_once]
            sound = self.generator.synthesise([rows[i] for i in group])
            wavs |= {i: wav.cpu().numpy().copy() for i, wav in zip(group, sound)}
        return [wavs[i] for i in range(len(rows))]

    def _timed(self, units: Units, predict_durations: bool) -> tuple[Tensor, Tensor]:
        """Ids and durations, int64 (U,) each."""
        ids = torch.tensor(units.ids)
        if units.durations is not None and not predict_durations:
            return ids, torch.tensor(units.durations)
        row = ids[None].to(self.device)
        return ids, self.durations.durations(row, torch.ones_like(row, dtype=torch.bool))[0].cpu()

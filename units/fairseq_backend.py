"""fairseq's own HuBERT on a fairseq checkpoint, one wav at a time: the reference, for those who have fairseq installed.

    units-extract a.wav --encoder hubert_base_ls960.pt --kmeans hubert_base_ls960_L9_km500.bin --backend fairseq

The checkpoint is read without unpickling (units.inert) and given to fairseq's model; the wav goes through as in
examples/hubert/simple_kmeans/dump_hubert_feature.py, with its cut at 100 seconds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.hubert import HubertFeatures
from units.upstream import read_fairseq_checkpoint


class FairseqFeatures:
    """Same interface as `units.hubert.HubertFeatures`, computed by `fairseq.models.hubert.HubertModel`."""

    def __init__(self, checkpoint: str | Path, layer: int, device: str = "cpu") -> None:
        """Build fairseq's model from a checkpoint.

        Raises: ImportError if fairseq is not installed; units.inert.UnreadableFile if the checkpoint is no HuBERT.
        """
        try:
            from fairseq.models.hubert.hubert import HubertConfig, HubertModel
            from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
        except ImportError as error:
            raise ImportError(
                f"--backend fairseq needs fairseq ({error}); it installs on Python up to 3.10: pip install '.[fairseq]'. "
                "Without the option the same units are computed here."
            ) from error
        found = read_fairseq_checkpoint(checkpoint)
        config, task = HubertConfig(), HubertPretrainingConfig()
        for settings, of in ((config, found.model), (task, found.task)):
            for name in vars(settings).keys() & of.keys():
                setattr(settings, name, of[name])
        config.conv_feature_layers = str(
            found.convolutions
        )  # fairseq evaluates this text, so it is made of numbers here
        self.model = HubertModel(config, task, [None])
        wanted = self.model.state_dict()
        weights = {k: v for k, v in found.weights.items() if k in wanted and v.shape == wanted[k].shape}
        lacking = {name for name in wanted if not name.startswith("final_proj")} - weights.keys()
        if lacking:
            raise ValueError(f"{checkpoint} lacks {sorted(lacking)[:3]} of fairseq's model")
        self.model.load_state_dict(weights, strict=False)
        self.model.to(device).eval().requires_grad_(False)
        self.same_as = HubertFeatures.from_pretrained(checkpoint, layer)  # whose units these are
        self.layer, self.name = layer, self.same_as.name
        self.dim, self.grid = self.same_as.dim, self.same_as.grid

    @property
    def device(self) -> torch.device:
        return self.model.mask_emb.device

    @torch.inference_mode()
    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, D) for each wav (T,)."""
        return [self._one(torch.from_numpy(wav).to(self.device)) for wav in wavs]

    def _one(self, wav: Tensor) -> Tensor:
        if self.same_as.normalise:
            wav = nn.functional.layer_norm(wav, wav.shape)
        pieces = [
            self.model.extract_features(source=part[None], padding_mask=None, mask=False, output_layer=self.layer)[0][0]
            for part in self.same_as.cut(wav)
        ]
        return torch.cat(pieces)

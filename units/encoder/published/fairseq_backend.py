"""The reference: fairseq's HuBERT code on a fairseq checkpoint, one wav at a time. It needs fairseq installed.

    units-extract a.wav --encoder hubert_base_ls960.pt --kmeans hubert_base_ls960_L9_km500.bin --backend fairseq

The checkpoint is read by `fairseq_hubert.py`, without fairseq's unpickling, and its weights are loaded into fairseq's
model. The wav is read as in fairseq's examples/hubert/simple_kmeans/dump_hubert_feature.py: normalised if
`task.normalize` is set, and cut at 100 seconds into parts that are encoded separately.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from units.encoder.hubert import HubertFeatures
from units.encoder.published.fairseq_hubert import FairseqHubert, read_fairseq_checkpoint


class FairseqFeatures:
    """Same interface as `units.encoder.hubert.HubertFeatures`, computed by `fairseq.models.hubert.HubertModel`."""

    def __init__(self, model: nn.Module, same_as: HubertFeatures, device: str = "cpu") -> None:
        """Take over a model.

        Args:
            model: fairseq's HubertModel.
            same_as: the same weights and layer as HubertFeatures, for facts that fairseq's model does not hold.
        """
        self.model = model.to(device).eval().requires_grad_(False)
        self.same_as = same_as
        self.layer, self.name, self.dim, self.grid = same_as.layer, same_as.name, same_as.dim, same_as.grid

    @classmethod
    def from_pretrained(cls, checkpoint: str | Path, layer: int, device: str = "cpu") -> FairseqFeatures:
        """Open a fairseq checkpoint.

        Raises: ImportError if fairseq is not installed; UnreadableFile if the checkpoint is no HuBERT.
        """
        model = fairseq_model(read_fairseq_checkpoint(checkpoint))
        return cls(model, HubertFeatures.from_pretrained(checkpoint, layer), device)

    @property
    def device(self) -> torch.device:
        return self.model.mask_emb.device

    manner = "fairseq"

    @torch.inference_mode()
    def __call__(self, wavs: list[np.ndarray]) -> list[Tensor]:
        """One float32 (N, D) for each wav (T,)."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32, as in units/encoder/hubert.py
            return [self._one(torch.from_numpy(wav).to(self.device)) for wav in wavs]

    def _one(self, wav: Tensor) -> Tensor:
        if self.same_as.normalise:
            wav = nn.functional.layer_norm(wav, wav.shape)
        pieces = [
            self.model.extract_features(source=part[None], padding_mask=None, mask=False, output_layer=self.layer)[0][0]
            for part in self.same_as.cut(wav)
        ]
        return torch.cat(pieces)


def fairseq_model(found: FairseqHubert) -> nn.Module:
    """fairseq's HubertModel with the checkpoint's settings and weights.

    Raises: ImportError if fairseq is not installed; ValueError if weights are missing.
    """
    try:
        from fairseq.models.hubert.hubert import HubertConfig, HubertModel
        from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig
    except ImportError as error:
        raise ImportError(
            f"the backend fairseq needs fairseq, which cannot be imported ({error}); it installs on Python up to 3.10: "
            "pip install '.[fairseq]'. The default backend computes the same units without it."
        ) from error
    config, task = HubertConfig(), HubertPretrainingConfig()
    for settings, of in ((config, found.model), (task, found.task)):
        for name in vars(settings).keys() & of.keys():
            setattr(settings, name, of[name])
    for name, value in list(vars(config).items()):  # references to the task's settings, as hydra resolves them
        if isinstance(value, str) and value.startswith("${task."):
            setattr(config, name, getattr(task, value.removeprefix("${task.").removesuffix("}")))
    config.conv_feature_layers = str(
        found.convolutions
    )  # fairseq runs eval() on this text: it is written here, from numbers
    model = HubertModel(config, task, [None])
    expected = model.state_dict()
    weights = {name: w for name, w in found.weights.items() if name in expected and w.shape == expected[name].shape}
    missing = {name for name in expected if not name.startswith("final_proj")} - weights.keys()
    if missing:
        raise ValueError(f"{found.path} lacks weights of fairseq's model: {sorted(missing)[:3]}")
    model.load_state_dict(weights, strict=False)
    return model

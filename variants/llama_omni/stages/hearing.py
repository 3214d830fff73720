"""LLaMA-Omni's stage of kind hearing: the adaptor learns to hear words (variants/speech_in/hearing).

python -m variants.llama_omni.train variants/llama_omni/configs/smol/hear.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from variants.llama_omni.config import OmniConfig
from variants.llama_omni.stages.opened import OmniOpened
from variants.speech_in.hearing.ctc import HearingModel
from variants.speech_in.hearing.stage import HearingOpened

LAST = ("adapter.linear2.weight", "adapter.linear2.bias")  # the adaptor's last layer


class OmniHearing(HearingOpened, OmniOpened):  # type: ignore[misc]
    """LLaMA-Omni at the start of a stage of kind hearing.

    words: root mean square of the LLM's word embeddings. Cosines do not say how loud embeddings are, and the adaptor
    has no norm: the finished one is made as loud as words.
    """

    parts = {"adaptor": ("adapter.", "head.")}
    decoder = None

    def __init__(self, config: OmniConfig, model: HearingModel, tokenizer: Any, start: Path, words: float) -> None:
        super().__init__(config, model, tokenizer, start)  # type: ignore[arg-type]
        self.words = words

    def save(self, model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        weights = dict(model.state_dict() if state_dict is None else state_dict)
        loudness = float(weights["loudness"])
        if loudness:
            weights |= {name: weights[name] * (self.words / loudness) for name in LAST}
        super().save(model, folder, weights)

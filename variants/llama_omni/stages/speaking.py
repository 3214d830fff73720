"""LLaMA-Omni at the start of a stage of kind speaking: the speech decoder learns on the states of the LLM.

    python -m variants.llama_omni.train variants/llama_omni/configs/toy/stage2.yaml

S answers of a batch, K units.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.config import Source
from stages.evaluating import evaluating
from stages.held_out import sample_documents
from stages.packing.blocks import PackedBlocks, on_device
from stages.system import Collator, Documents
from units.audio import save_wav
from units.codebook import Codebook, Units
from units.dataset.measures.information import edit_distance
from units.vocoder.unit_vocoder import UnitVocoder
from variants.llama_omni.config import OmniConfig
from variants.llama_omni.data.batch import collate
from variants.llama_omni.data.examples import codebook_of
from variants.llama_omni.network.decoder import Answers
from variants.llama_omni.network.model import OmniLLM, Wanted
from variants.llama_omni.stages.opened import OmniOpened
from variants.speech_in.batch import Block


class SpeakingOpened(OmniOpened):
    """LLaMA-Omni at the start of a stage of kind speaking.

    codebook: of the units that are learned.
    """

    def __init__(self, config: OmniConfig, model: OmniLLM, tokenizer: Any, start: Path, codebook: Codebook) -> None:
        super().__init__(config, model, tokenizer, start)
        self.codebook = codebook

    def documents(self, source: Source, path: Path) -> Iterator[Documents]:
        assert self.codebook is not None
        found = codebook_of(path)
        if found is not None:
            self.codebook.check_same(found, f"the config's codebook ({self.config.codebook})", str(path))
        yield from super().documents(source, path)

    def collator(self) -> Collator:
        return self.collator_of(collate)

    def items(self, batch: dict[str, Any]) -> Tensor:
        """Target units, and the ends of answers where the decoder says these."""
        assert self.decoder is not None
        return batch["unit_counts"].sum() + self.decoder.ends * len(batch["unit_counts"])

    def loss(self, model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
        """The loss of the answers' units, summed, divided by the targets of the whole step."""
        return self.spoken(model, batch, "loss") / items

    def spoken(self, model: Any, batch: dict[str, Any], wanted: Wanted) -> Any:
        """What the decoder makes of the answers of a batch. wanted: as for OmniLLM.forward."""
        inputs = self.inputs(batch, model.training)
        for name in ("said", "said_lengths", "units", "unit_counts"):
            inputs.pop(name)
        lengths, counts = batch["said_lengths"].tolist(), batch["unit_counts"].tolist()
        return model(**inputs, answers=Answers(batch["said"], lengths, batch["units"], counts), wanted=wanted)

    def plain(self, block: Block) -> Block:
        left_out = ("said", "said_start", "units", "units_start")
        return {name: column for name, column in block.items() if name not in left_out}

    @torch.no_grad()
    def samples(self, model: Any, held_out: PackedBlocks, count: int) -> list[dict[str, Any]]:
        """What the decoder says of some held-out answers: units, and sound in `samples/` where there is a vocoder."""
        with evaluating(model):
            found = []
            for number, (task, source, document) in enumerate(sample_documents(held_out, count)):
                tokenised = held_out.sources[source]
                length = int(tokenised.lengths[document])
                block = PackedBlocks([(tokenised, np.array([document]), 1.0)], length, None, held_out.pad, 0)[0]
                batch = on_device(self.collator()([block]), self.model.device)
                (said,) = self.spoken(model, batch, "units")
                text = self.tokenizer.decode(batch["input_ids"].flatten()[batch["said"]], skip_special_tokens=True)
                target = batch["units"].tolist()
                sample = {"task": task, "text": text, "units": said, "expected": target}
                found.append(sample | {"unit_error": round(edit_distance(target, said) / len(target), 4)})
                if self.vocoder is not None and said:
                    units = Units(tuple(said), None, self.vocoder.codebook)
                    save_wav(self.config.at(self.config.out) / f"samples/{number}.wav", self.vocoder.decode(units))
        return found

    @functools.cached_property
    def vocoder(self) -> UnitVocoder | None:
        """The vocoder of the config, for samples; None if there is none yet."""
        folder = self.config.vocoder and self.config.at(self.config.vocoder)
        return UnitVocoder.from_pretrained(folder) if folder and (folder / "config.json").exists() else None

    @torch.no_grad()
    def report(self, model: Any, held_out: PackedBlocks, chosen: Sequence[int]) -> dict[str, float]:
        """Figures of the decoder on the chosen held-out blocks (docs/systems/llama-omni.md)."""
        assert self.decoder is not None
        sums: dict[str, float] = {}
        with evaluating(model):
            for index in chosen:
                batch = on_device(self.collator()([held_out[index]]), self.model.device)
                for name, value in self.spoken(model, batch, "figures").items():
                    sums[name] = sums.get(name, 0.0) + value
        return self.decoder.report(sums)

"""What the published BLSP code gives on tiny random weights (tests/data/blsp, see tests/data/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechgpt.dialogue import Message, Speech
from variants.blsp.adapter import SpeechAdapter
from variants.blsp.records import BlspFacts, read_adapter
from variants.blsp.template import BlspTemplate
from variants.blsp.upstream import adopt
from variants.listening import Row, SpeechLLM, row

FOLDER = Path(__file__).parent / "data/blsp"
WAVS = Path(__file__).parent / "data/wav"
NAMES = ("base", "variant")
SOUNDS = ("u1-slt", "u4-rms", "u9-awb", "u11-kal16")


@dataclass
class Oracle:
    """One published model, adopted and opened in float32, and what it gives."""

    folder: Path
    facts: BlspFacts
    model: SpeechLLM
    tokenizer: Any
    template: BlspTemplate
    json: dict[str, Any]
    arrays: Any

    def states(self, sound: str) -> Tensor:
        """The encoder's states of a wav, (N, D)."""
        return torch.from_numpy(self.arrays[f"{sound}/encoder_states"])

    def embeddings(self, *sounds: str) -> list[int]:
        return [self.facts.shape.embeddings(len(self.states(sound))) for sound in sounds]

    def example(self, sound: str) -> Row:
        """The stage-2 example of a wav."""
        messages = (
            Message("human", (self.json["instruction"], Speech(f"{sound}.wav"))),
            Message("assistant", (self.json["wavs"][sound]["answer"],)),
        )
        return row(self.template.document(messages), self.embeddings(sound), 0)


def open_oracle(name: str, out: Path) -> Oracle:
    """Adopt a published folder into `out`, and open it."""
    adopt(FOLDER / name / "checkpoint", out)
    facts = BlspFacts.load(out)
    llm = AutoModelForCausalLM.from_pretrained(facts.llm.find(out), dtype=torch.float32)
    adapter = SpeechAdapter(facts.width, llm.config.hidden_size, facts.shape)
    adapter.load_state_dict(read_adapter(out))
    tokenizer = AutoTokenizer.from_pretrained(out)
    found = json.loads((FOLDER / name / "expected.json").read_text())
    arrays = dict(np.load(FOLDER / name / "expected.npz"))
    model = SpeechLLM(llm, adapter.float()).eval()
    return Oracle(out, facts, model, tokenizer, BlspTemplate(tokenizer), found, arrays)


def inputs(rows: list[Row], states: list[Tensor]) -> dict[str, Tensor]:
    """A batch of one row."""
    (one,) = rows
    (sound,) = states
    return {
        "input_ids": torch.tensor([one.ids]),
        "states": sound[None],
        "frames": torch.tensor([len(sound)]),
        "places": torch.tensor(one.places),
    }

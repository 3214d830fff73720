"""What the published LLaMA-Omni code gives on tiny random weights (tests/data/llama_omni, see tests/data/README.md)."""

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
from units.audio import load_wav
from units.encoder.unit_encoder import Features
from variants.encoders import open_encoder
from variants.listening import Row, row
from variants.llama_omni.network.adaptor import SpeechAdaptor
from variants.llama_omni.network.ctc_decoder import CtcDecoder
from variants.llama_omni.network.model import OmniLLM
from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, OmniFacts
from variants.llama_omni.template import Llama3Template
from variants.llama_omni.upstream import adopt
from variants.speech_in.facts import read_part

FOLDER = Path(__file__).parent / "data/llama_omni"
WAVS = Path(__file__).parent / "data/wav"
NAMES = ("base", "variant")
MODEL = "Llama-3.1-tiny-Omni"


@dataclass
class Oracle:
    """One published model, adopted and opened in float32, and what it gives."""

    folder: Path
    facts: OmniFacts
    model: OmniLLM
    encoder: Features
    tokenizer: Any
    template: Llama3Template
    json: dict[str, Any]
    arrays: dict[str, np.ndarray]
    states: dict[str, Tensor]

    @property
    def sounds(self) -> list[str]:
        return list(self.json["wavs"])

    @property
    def decoder(self) -> CtcDecoder:
        assert isinstance(self.model.decoder, CtcDecoder)
        return self.model.decoder

    def question(self, sound: str) -> Message:
        return Message("human", (Speech(f"{sound}.wav"), self.facts.instructions["answer"]))

    def row(self, pieces: Any, sound: str) -> Row:
        return row(pieces, [self.facts.shape.embeddings(len(self.states[sound]))], 0)

    def inputs(self, one: Row, sound: str) -> dict[str, Tensor]:
        """A batch of one row."""
        states = self.states[sound]
        return {
            "input_ids": torch.tensor([one.ids]),
            "states": states[None],
            "frames": torch.tensor([len(states)]),
            "places": torch.tensor(one.places),
        }


def open_oracle(name: str, out: Path) -> Oracle:
    """Adopt a published folder into `out`, and open it."""
    adopt(FOLDER / name / MODEL, out)
    facts = OmniFacts.load(out)
    llm = AutoModelForCausalLM.from_pretrained(facts.llm.find(out), dtype=torch.float32)
    adaptor = SpeechAdaptor(facts.width, llm.config.hidden_size, facts.shape)
    adaptor.load_state_dict(read_part(out, ADAPTOR_FILE, "adapter."))
    assert facts.decoder and facts.speaking
    decoder = CtcDecoder(facts.decoder, facts.speaking)
    decoder.load_state_dict(read_part(out, DECODER_FILE, "decoder."))
    tokenizer = AutoTokenizer.from_pretrained(out)
    encoder = open_encoder(str(facts.encoder.find(out)), facts.layer, window=facts.window)
    found = json.loads((FOLDER / name / "expected.json").read_text())
    arrays = dict(np.load(FOLDER / name / "expected.npz"))
    states = {sound: encoder([load_wav(WAVS / f"{sound}.wav")])[0].clone() for sound in found["wavs"]}
    model = OmniLLM(llm, adaptor, decoder).eval()
    return Oracle(out, facts, model, encoder, tokenizer, Llama3Template(tokenizer), found, arrays, states)

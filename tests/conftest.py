"""Tiny parts that many tests share: wavs, unit encoders, a widened Llama, a vocoder, and the model they make together."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # hermetic: nothing may be looked up

import numpy as np
import pytest
import torch
from hypothesis import settings
from transformers import AutoTokenizer, HubertConfig, HubertModel, LlamaConfig, LlamaForCausalLM

from speechgpt import bundle
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Dialogue
from speechgpt.inference import SpeechGPT
from speechgpt.widen import widen
from stages.text_llm import train_tokenizer
from units import kmeans
from units.audio import SAMPLE_RATE
from units.encoder import UnitEncoder
from units.generator import MelGeneratorConfig
from units.hubert import HubertFeatures
from units.mfcc import MfccFeatures
from units.notation import EOSP
from units.vocoder import UnitVocoder

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

K = 12  # units of the tiny codebooks
TEXT = """what is two plus two? that makes four.
which is bigger three or nine? nine is bigger.
please say the small red dog jumps. the small red dog jumps.
anna likes green; peter eats soup; maria lives in london.
Please transcribe this speech. This is input: [Human]: user
"""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def tones(seconds: float, seed: int = 0) -> np.ndarray:
    """A wav (T,) of drifting tones and noise: every frame of it differs."""
    draw = np.random.default_rng(seed)
    count = round(seconds * SAMPLE_RATE)
    pitch = np.repeat(draw.uniform(100, 3000, count // 1600 + 1), 1600)[:count]
    wav = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) + 0.02 * draw.standard_normal(count)
    return wav.astype(np.float32)


def tiny_hubert(large: bool = False, layers: int = 3, **settings: object) -> HubertModel:
    """A random HuBERT with the strides of the real one; `large` is the layout of hubert-large (LayerNorm, pre-norm)."""
    torch.manual_seed(1)
    usual = {
        "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 48, "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "conv_bias": large,
        "feat_extract_norm": "layer" if large else "group", "do_stable_layer_norm": large,
    }  # fmt: skip
    config = HubertConfig(**(usual | settings))
    model = HubertModel(config).eval()
    with torch.no_grad():  # as initialised, features hardly depend on the audio
        for name, weight in model.named_parameters():
            if "encoder.layers" in name and weight.dim() > 1:
                weight.mul_(8)
    return model


def fit_encoder(features: HubertFeatures | MfccFeatures, size: int = K, seed: int = 0) -> UnitEncoder:
    """A unit encoder of `size` centres, fitted on tones."""
    frames = [piece - piece.mean(0) for piece in features([tones(4.0, 100 + seed), tones(3.0, 200 + seed)])]
    centres = kmeans.fit(torch.cat(frames), size, seed).centres
    return UnitEncoder.from_features(features, centres, f"tiny-{features.name}-{seed}", "utterance")


def tiny_vocoder(encoder: UnitEncoder) -> UnitVocoder:
    """A random voice for an encoder's units."""
    torch.manual_seed(2)
    settings = MelGeneratorConfig(width=16, slow_blocks=1, fast_blocks=1, kernel=5, griffin_lim_iterations=2)
    return UnitVocoder(encoder.codebook, settings).eval()


@pytest.fixture(scope="session")
def mfcc_encoder() -> UnitEncoder:
    return fit_encoder(MfccFeatures())


@pytest.fixture(scope="session")
def hubert_encoder() -> UnitEncoder:
    return fit_encoder(HubertFeatures(tiny_hubert(), 2, "tiny"))


@pytest.fixture(scope="session")
def widened(tmp_path_factory: pytest.TempPathFactory, mfcc_encoder: UnitEncoder) -> Path:
    """A checkpoint folder: a random Llama of 300 words, widened by the units of mfcc_encoder."""
    folder = tmp_path_factory.mktemp("widened")
    text = folder / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    tokenizer = train_tokenizer(text, 360)
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    )
    vocab = widen(tokenizer, model, K)
    checkpoint = folder / "stage3"
    tokenizer.save_pretrained(checkpoint)
    model.save_pretrained(checkpoint)
    CheckpointFacts(mfcc_encoder.codebook, "stage3", vocab.first_unit_id).save(checkpoint)
    return checkpoint


@pytest.fixture(scope="session")
def dialogue(widened: Path) -> Dialogue:
    return Dialogue(AutoTokenizer.from_pretrained(widened))


@pytest.fixture(scope="session")
def make_bundle(widened: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[UnitEncoder, UnitEncoder], Path]:
    """Join the checkpoint with the ears of one encoder and the voice of another (refused unless they are alike)."""

    def make(ears: UnitEncoder, voice: UnitEncoder) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        ears.save_pretrained(folder / "ears")
        tiny_vocoder(voice).save_pretrained(folder / "voice")
        bundle.main(widened, folder / "ears", folder / "voice", folder / "model")
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def model_folder(make_bundle: Callable[[UnitEncoder, UnitEncoder], Path], mfcc_encoder: UnitEncoder) -> Path:
    """A whole model folder, as speechgpt-cli opens it. Tests that change it copy it first."""
    return make_bundle(mfcc_encoder, mfcc_encoder)


def talkative(gpt: SpeechGPT, endless: bool = False) -> SpeechGPT:
    """Let a random model end its sections: its markers are made likelier. endless: but for the end of its speech."""
    liking = torch.zeros(gpt.model.get_output_embeddings().weight.shape[0])
    liking[list(gpt.dialogue.vocab.markers.values())] = 7.0
    liking[gpt.dialogue.vocab.marker(EOSP)] = -99.0 if endless else 7.0
    gpt.model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + liking)
    return gpt

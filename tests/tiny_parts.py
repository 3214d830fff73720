"""Tiny parts that many tests share: wavs, random encoders and vocoders, text."""

from __future__ import annotations

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from speechgpt.inference import SpeechGPT
from units.audio import SAMPLE_RATE
from units.encoder import kmeans
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.unit_encoder import UnitEncoder
from units.notation import EOSP
from units.vocoder.heads.configs import MelGeneratorConfig
from units.vocoder.unit_vocoder import UnitVocoder

K = 12  # units of the tiny codebooks


TEXT = """what is two plus two? that makes four.
which is bigger three or nine? nine is bigger.
please say the small red dog jumps. the small red dog jumps.
anna likes green; peter eats soup; maria lives in london.
Please transcribe this speech. This is input: [Human]: user
"""


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
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "conv_bias": large,
        "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large,
    }
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
    """A random vocoder for the units of an encoder."""
    torch.manual_seed(2)
    settings = MelGeneratorConfig(width=16, slow_blocks=1, fast_blocks=1, kernel=5, griffin_lim_iterations=2)
    return UnitVocoder(encoder.codebook, settings).eval()


def talkative(gpt: SpeechGPT, endless: bool = False) -> SpeechGPT:
    """Let a random model end its sections by likelier special tokens. endless: all but the end of its speech."""
    liking = torch.zeros(gpt.model.get_output_embeddings().weight.shape[0])
    liking[list(gpt.dialogue.vocab.special_ids.values())] = 7.0
    liking[gpt.dialogue.vocab.special_id(EOSP)] = -99.0 if endless else 7.0
    gpt.model.get_output_embeddings().register_forward_hook(lambda module, given, logits: logits + liking)
    return gpt

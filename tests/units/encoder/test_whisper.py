"""Whisper's encoder as features, alone and as the teacher of a pre-training."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperModel

from units.audio import num_frames, save_wav
from units.corpus.manifest import Utterance, write_manifest
from units.encoder import kmeans
from units.encoder.centring import centred
from units.encoder.fit import main as fit
from units.encoder.pretrain import main as pretrain
from units.encoder.recipes import FitRecipe, Iteration, PretrainRecipe
from units.encoder.unit_encoder import UnitEncoder, open_features
from units.encoder.whisper import SILENCE, WhisperFeatures

REAL = Path(os.environ.get("REAL_MODELS", "runs/real")) / "whisper-tiny.en"  # of make real-models


def tiny_whisper(layers: int = 3) -> WhisperModel:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return WhisperModel(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    tiny_whisper().save_pretrained(folder)
    return folder


def noise(*seconds: float) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [(0.1 * draw.standard_normal(round(one * 16_000))).astype(np.float32) for one in seconds]


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_states_are_those_of_transformers_on_the_same_mels(folder, layer):
    features = WhisperFeatures.from_pretrained(folder, layer)
    [wav] = noise(1.3)
    mel = features._log_mel(torch.from_numpy(np.pad(wav, (0, round(SILENCE * 16_000)))))
    model = tiny_whisper().encoder
    padded = torch.nn.functional.pad(mel, (0, 3000 - mel.shape[1]))
    hidden = torch.nn.functional.gelu(model.conv1(padded[None]))
    frames = (mel.shape[1] - 1) // 2 + 1
    short = torch.nn.functional.gelu(model.conv2(torch.nn.functional.gelu(model.conv1(mel[None]))))[0].T
    assert hidden.shape[-1] == 3000 and len(short) == frames
    state = (short + model.embed_positions.weight[:frames])[None]
    for one in model.layers[:layer]:
        state = one(state, None)
        state = state[0] if isinstance(state, tuple) else state
    found = features([wav])[0]
    assert found.shape == (num_frames(len(wav)), 32)
    assert torch.allclose(found, state[0, : len(found)], atol=1e-4)


def test_batches_equal_single_wavs_and_lengths_are_huberts(folder):
    features = WhisperFeatures.from_pretrained(folder, 2)
    wavs = noise(0.025, 0.5, 1.234, 3.01)
    together = features(wavs)
    assert [len(one) for one in together] == [num_frames(len(wav)) for wav in wavs]
    for wav, one in zip(wavs, together):
        assert torch.allclose(features([wav])[0], one, atol=1e-5)


def test_a_long_wav_is_encoded_in_windows(folder):
    features = WhisperFeatures.from_pretrained(folder, 1)
    [wav] = noise(61.0)
    assert features.is_long(wav)
    windows = list(features.windows(wav))
    assert len(windows) == 4
    assert torch.equal(torch.cat(windows), features([wav])[0])
    assert sum(map(len, windows)) == num_frames(len(wav))


def test_a_layer_that_is_not_there_is_refused(folder):
    with pytest.raises(ValueError, match="layer is 0"):
        WhisperFeatures(tiny_whisper().encoder, 0, "tiny")
    with pytest.raises(ValueError, match="layers 1 to 3"):
        WhisperFeatures.from_pretrained(folder, 4)


def test_a_codebook_on_whisper_is_fitted_saved_and_opened(folder, tmp_path):
    rows = [Utterance(f"u{i}", save_wav(tmp_path / f"u{i}.wav", wav)) for i, wav in enumerate(noise(1.0, 1.5, 2.0))]
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    recipe = FitRecipe(encoder=str(folder), layer=2, size=12, centring="frame")
    fit(manifest, tmp_path / "enc", recipe=recipe)
    encoder = UnitEncoder.from_pretrained(tmp_path / "enc")
    assert isinstance(encoder.features, WhisperFeatures)
    assert (encoder.codebook.layer, encoder.codebook.size, encoder.codebook.centring) == (2, 12, "frame")
    [wav] = noise(1.0)
    frames = centred(open_features(folder, 2)([wav])[0], "frame")
    assert encoder.encode(wav).frames() == kmeans.assign(frames, encoder.centres).tolist()
    [long] = noise(40.0)
    assert len(encoder.encode(long).frames()) == num_frames(len(long))


def test_frame_centring_gives_frames_of_mean_0_over_time_and_deviation_1():
    x = torch.randn(50, 8) * 3 + 5
    for given in (None, x.mean(0)):
        found = centred(x, "frame", given)
        assert torch.allclose(found.std(1, unbiased=False), torch.ones(50), atol=1e-4)
    assert torch.equal(centred(x, "none"), x)
    assert centred(x, "utterance").mean(0).abs().max() < 1e-5
    with pytest.raises(ValueError, match="'speaker'"):
        centred(x, "speaker")


def test_pretraining_with_a_teacher_and_prototypes_makes_a_unit_encoder(folder, tmp_path):
    rows = [
        Utterance(f"u{i}", save_wav(tmp_path / f"u{i}.wav", wav)) for i, wav in enumerate(noise(1.0, 1.2, 1.4, 1.6))
    ]
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    recipe = PretrainRecipe(
        width=32,
        layers=2,
        heads=2,
        conv_width=16,
        batch_seconds=2.0,
        warmup=2,
        save_every=3,
        iterations=[Iteration(4, {3: [8]}, teacher=str(folder), centring="frame")],
        prototypes=True,
        formant_range=0.1,
        room_probability=0.5,
        babble_probability=0.5,
    )
    pretrain(manifest, tmp_path / "out", recipe, threads=1)
    encoder = UnitEncoder.from_pretrained(tmp_path / "out" / "unit_encoder")
    assert (encoder.codebook.size, encoder.codebook.layer, encoder.codebook.centring) == (8, 2, "none")
    first = encoder.centres
    pretrain(manifest, tmp_path / "out", recipe, threads=1)  # all is done: read from the checkpoint
    assert torch.equal(UnitEncoder.from_pretrained(tmp_path / "out" / "unit_encoder").centres, first)


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason="no real Whisper; make real-models")
def test_a_short_window_keeps_the_states_of_30_seconds():
    from transformers import WhisperFeatureExtractor

    wavs = noise(2.0, 4.0)
    features = WhisperFeatures.from_pretrained(REAL, 3)
    model = WhisperModel.from_pretrained(REAL, dtype=torch.float32).eval().encoder
    extractor = WhisperFeatureExtractor.from_pretrained(REAL)
    for wav, found in zip(wavs, features(wavs)):
        mel = extractor(wav, sampling_rate=16_000, return_tensors="pt").input_features
        with torch.inference_mode():
            states = model(mel, output_hidden_states=True).hidden_states[3][0]
        between = (states[: len(found)] + states[1 : len(found) + 1]) / 2  # ours lie 12.5 ms later
        assert torch.cosine_similarity(found, between).mean() > 0.9


def test_the_table_of_positions_is_computed_and_not_saved(tmp_path: Path) -> None:
    features = WhisperFeatures(tiny_whisper().encoder, 1, "tiny")
    features.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert len(saved) == 19 and not [name for name in saved if "positions" in name]
    wav = np.random.default_rng(0).standard_normal(9000).astype(np.float32) / 10
    [opened] = WhisperFeatures.from_pretrained(tmp_path, 1)([wav])
    [before] = features([wav])
    assert torch.equal(opened, before)

"""wav -> units: refused arrays, batches equal to single wavs, HuBERT's layers, k-means, encoder folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import DATA
from tiny_parts import K, fit_encoder, tiny_hubert, tones

from units.audio import HOP, RECEPTIVE_FIELD, SAMPLE_RATE, AudioError, load_wav, num_frames
from units.codebook import CodebookMismatch
from units.encoder import hubert, kmeans
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.unit_encoder import UnitEncoder

# --- wavs


@pytest.mark.parametrize(
    "wav", [np.zeros((2, 4000), np.float32), np.zeros(399, np.float32), np.full(800, np.inf), np.zeros(4000, np.int16)]
)
def test_arrays_that_are_no_wav_are_refused(mfcc_encoder: UnitEncoder, wav: np.ndarray) -> None:
    with pytest.raises(AudioError):
        mfcc_encoder.encode(wav)


def test_a_float64_wav_is_the_float32_one(hubert_encoder: UnitEncoder) -> None:
    wav = tones(0.6)
    assert hubert_encoder.encode(wav.astype(np.float64)) == hubert_encoder.encode(wav)


# --- features


@pytest.fixture(scope="module")
def layouts() -> dict[str, HubertFeatures | MfccFeatures]:
    return {
        "mfcc": MfccFeatures(),
        "base": HubertFeatures(tiny_hubert(), 2, "tiny"),
        "large": HubertFeatures(tiny_hubert(large=True), 3, "tiny-large", normalise=True),
    }


@pytest.mark.parametrize("layout", ["mfcc", "base", "large"])
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(RECEPTIVE_FIELD, 16_000), min_size=1, max_size=5))
def test_a_padded_batch_is_its_rows_one_by_one(layouts, layout: str, lengths: list[int]) -> None:
    features = layouts[layout]
    wavs = [tones(1.0, seed)[:length] for seed, length in enumerate(lengths)]
    for wav, row in zip(wavs, features(wavs)):
        assert row.shape == (num_frames(len(wav)), features.dim)
        assert row.dtype == torch.float32
        torch.testing.assert_close(row, features([wav])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["mfcc", "base", "large"])
def test_a_batch_has_the_units_of_its_rows(layouts, layout: str) -> None:
    encoder = fit_encoder(layouts[layout])
    wavs = [tones(seconds, seed) for seed, seconds in enumerate((0.025, 0.03, 0.4, 1.7, 1.0, 0.04501))]
    for wav, units in zip(wavs, encoder.encode_batch(wavs)):
        assert units == encoder.encode(wav)
        assert sum(units.durations) == num_frames(len(wav))
    assert len({unit for units in encoder.encode_batch(wavs) for unit in units.ids}) > K // 2
    assert encoder.encode_batch([]) == []


def test_a_batch_waits_for_the_gpu_once(hubert_encoder: UnitEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number from a tensor waits for all the work of the GPU."""
    waits: list[torch.Tensor] = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: (waits.append(tensor), cpu(tensor))[1])
    hubert_encoder.encode_batch([tones(0.3, seed) for seed in range(5)])
    assert len(waits) == 1


def test_another_wav_costs_two_calls_a_layer() -> None:
    """For short wavs on a GPU, launch overhead dominates."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, call, types, args=(), kwargs=None):
            self.calls += 1
            return call(*args, **(kwargs or {}))

    def calls(layers: int, wavs: int) -> int:
        features = HubertFeatures(tiny_hubert(), layers, "tiny")
        with Count() as count:
            features([tones(0.3, seed) for seed in range(wavs)])
        return count.calls

    of_a_wav = [calls(layers, 5) - calls(layers, 4) for layers in (1, 3)]
    assert of_a_wav[1] - of_a_wav[0] == 2 * 2  # its queries, keys and values; attention


@pytest.mark.parametrize("large", [False, True])
def test_layer_n_is_hidden_states_n(large: bool) -> None:
    wav = tones(0.7)
    whole = tiny_hubert(large)
    with torch.inference_mode():
        expected = whole(torch.from_numpy(wav)[None], output_hidden_states=True).hidden_states
    for layer in (1, 2) if large else (1, 2, 3):  # the last of the large layout has the final norm, which is no layer's
        found = HubertFeatures(tiny_hubert(large), layer, "tiny")([wav])[0]
        torch.testing.assert_close(found, expected[layer][0], atol=1e-5, rtol=1e-5)


def test_a_layer_that_is_not_there_is_refused() -> None:
    for layer in (0, 4):
        with pytest.raises(ValueError, match="has layers 1 to 3"):
            HubertFeatures(tiny_hubert(), layer, "tiny")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("extra", [0, 1, HOP, 5000, 33_333])
def test_long_audio_goes_through_windows(monkeypatch: pytest.MonkeyPatch, extra: int, large: bool) -> None:
    features = HubertFeatures(tiny_hubert(large), 2, "tiny", normalise=large)
    wav = tones(4.0 + 2.5)[: 4 * SAMPLE_RATE + extra]
    [whole] = features([wav])
    monkeypatch.setattr(hubert, "WINDOW", 2)
    monkeypatch.setattr(hubert, "CONTEXT", 2)
    long, short = features([wav, wav[:8000]])
    assert long.shape == whole.shape == (num_frames(len(wav)), features.dim)
    torch.testing.assert_close(short, features([wav[:8000]])[0], atol=1e-4, rtol=1e-4)
    # the last window starts at a join: convolutions and norms cover the whole wav, attention does not
    assert (long - whole).norm() < 0.1 * whole.norm()
    monkeypatch.setattr(hubert, "CONTEXT", 7)  # the context covers the whole wav
    torch.testing.assert_close(features([wav])[0], whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cut", [False, True])
def test_long_audio_has_the_same_units_in_one_pass_and_in_two(monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    features = HubertFeatures(tiny_hubert(), 2, "tiny")
    features.cut_long = cut
    encoder = fit_encoder(features)
    assert encoder.codebook.centring == "utterance"
    monkeypatch.setattr(hubert, "WINDOW", 1)
    wav = tones(3.3)
    [all_at_once] = features([wav])
    expected = kmeans.assign(all_at_once - all_at_once.mean(0), encoder.centres).tolist()
    in_one = encoder.encode(wav)
    monkeypatch.setattr("units.encoder.unit_encoder.FEATURE_SECONDS", 2)
    assert list(in_one.frames()) == list(encoder.encode(wav).frames()) == expected


def test_the_positional_convolution_is_the_model_s() -> None:
    for model in (tiny_hubert(), tiny_hubert(conv_pos_batch_norm=True), tiny_hubert(num_conv_pos_embeddings=15)):
        features = HubertFeatures(model, 2, "tiny")
        frames = torch.randn(37, features.dim)
        torch.testing.assert_close(features.positions(frames, [37]), model.encoder.pos_conv_embed(frames[None])[0])
        counts = [1, 20, 3, 7, 6]  # some shorter than the zeros between two wavs
        found = features.positions._at_once(frames, counts)  # as on a GPU
        torch.testing.assert_close(found, features.positions(frames, counts), atol=1e-4, rtol=1e-5)


def test_a_gpu_convolves_in_few_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN makes a plan for every new length."""
    positions, seen = HubertFeatures(tiny_hubert(), 2, "tiny").positions, set()
    convolved = positions._convolved
    monkeypatch.setattr(positions, "_convolved", lambda x: (seen.add(len(x)), convolved(x))[1])
    for count in range(1, 2000, 37):
        assert positions._at_once(torch.randn(count, 32), [count]).shape == (count, 32)
    assert seen == {1024, 2048}


def test_cudnn_settings_change_on_a_gpu_only() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with hubert._exact_float32(torch.device("cuda"), torch.float32):
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with hubert._exact_float32(torch.device("cpu"), torch.float32):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("large", [False, True])
def test_a_gpu_has_the_features_of_a_cpu_and_makes_no_plan_for_a_new_length(large: bool) -> None:
    import time

    wavs = [tones(seconds, seed) for seed, seconds in enumerate((0.025, 0.4, 1.7, 1.0, 0.04501))]
    here = HubertFeatures(tiny_hubert(large), 2, "tiny", normalise=large)(wavs)
    exact, fast = (
        HubertFeatures(tiny_hubert(large), 2, "tiny", normalise=large, dtype=dtype).to("cuda")
        for dtype in (torch.float32, torch.float16)
    )
    for cpu, gpu, half in zip(here, exact(wavs), fast(wavs)):
        torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-4, rtol=1e-4)
        assert (half.cpu() - cpu).norm() < 0.05 * cpu.norm()
    began = time.monotonic()
    for frames in range(300, 350):
        fast([tones(frames / 50)])[0].cpu()
    assert time.monotonic() - began < 50 * 0.015  # seconds; a plan of cuDNN's attention takes 0.03


def test_weights_of_training_only_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    """wav2vec2-base-960h has no masked_spec_embed, and transformers then draws one, another in each process."""
    model = tiny_hubert()
    weights = {name: weight for name, weight in model.state_dict().items() if name != "masked_spec_embed"}
    model.save_pretrained(tmp_path / "model", state_dict=weights)
    prints = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        prints.add(fit_encoder(HubertFeatures.from_pretrained(tmp_path / "model", 2)).codebook.fingerprint)
    assert len(prints) == 1


def test_the_cut_of_fairseq_s_readers_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubert, "WINDOW", 1)
    features = HubertFeatures(tiny_hubert(), 2, "tiny")
    wav = tones(2.6)
    parts = [wav[:16_000], wav[16_000:32_000], wav[32_000:]]
    expected = torch.cat([features([part])[0] for part in parts])
    features.cut_long = True
    found = features([wav])[0]
    torch.testing.assert_close(found, expected)
    assert len(found) == sum(num_frames(len(part)) for part in parts) < num_frames(len(wav))


def test_a_checkpoint_without_all_weights_is_refused(tmp_path: Path) -> None:
    hubert = tiny_hubert()
    hubert.save_pretrained(tmp_path / "whole")
    assert HubertFeatures.from_pretrained(tmp_path / "whole", 2).layer == 2  # the layer above is left out, and no loss
    weights = {name: w for name, w in hubert.state_dict().items() if "layers.1.attention.k_proj" not in name}
    hubert.save_pretrained(tmp_path / "cut", state_dict=weights)
    with pytest.raises(ValueError, match="cut lacks 2 weights, such as encoder.layers.1.attention.k_proj.bias"):
        HubertFeatures.from_pretrained(tmp_path / "cut", 2)
    assert HubertFeatures.from_pretrained(tmp_path / "cut", 1).layer == 1


def test_frame_rates_come_from_the_model() -> None:
    """The 25 Hz mHuBERT has one more convolution than HuBERT."""
    hubert = tiny_hubert(conv_dim=(16,) * 8, conv_kernel=(10, 3, 3, 3, 3, 2, 2, 2), conv_stride=(5,) + (2,) * 7)
    encoder = fit_encoder(HubertFeatures(hubert, 2, "tiny-25hz"))
    grid = encoder.features.grid
    assert (grid.hop, grid.receptive_field, grid.rate, encoder.codebook.frame_rate) == (640, 720, 25.0, 25.0)
    wavs = [tones(1.0)[:length] for length in (720, 1359, 1360, 15_999)]
    for wav, units in zip(wavs, encoder.encode_batch(wavs)):
        assert sum(units.durations) == (len(wav) - 720) // 640 + 1
        assert units == encoder.encode(wav)
    with pytest.raises(AudioError, match="at least 0.045 s"):
        encoder.encode(wavs[0][:719])


def test_wav2vec2_is_read_too_and_other_models_are_refused() -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2Model, WavLMConfig, WavLMModel

    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": (16,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    }
    model = Wav2Vec2Model(Wav2Vec2Config(**small)).eval()
    wav = tones(0.5)
    with torch.inference_mode():
        expected = model(torch.from_numpy(wav)[None], output_hidden_states=True).hidden_states[1][0]
    torch.testing.assert_close(HubertFeatures(model, 1, "w2v")([wav])[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="is a wavlm"):
        HubertFeatures(WavLMModel(WavLMConfig(**small)), 1, "wavlm")


@pytest.mark.parametrize("large", [False, True])
def test_bfloat16_gives_nearly_the_same_features(large: bool) -> None:
    wav = tones(0.8)
    exact, fast = (
        HubertFeatures(tiny_hubert(large), 2, "tiny", dtype=d)([wav])[0] for d in (torch.float32, torch.bfloat16)
    )
    assert fast.dtype == torch.float32
    assert 0 < (fast - exact).norm() < 0.05 * exact.norm()


# --- k-means, the encoder and its folder


def test_kmeans_repeats_itself_and_agrees_with_sklearn() -> None:
    from sklearn.cluster import KMeans

    points = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    first, second = kmeans.fit(points, 9, seed=4), kmeans.fit(points, 9, seed=4)
    assert torch.equal(first.centres, second.centres)
    reference = KMeans(9, init=first.centres.numpy(), n_init=1, max_iter=1).fit(first.centres.numpy())
    reference.cluster_centers_ = first.centres.numpy()
    assert kmeans.assign(points, first.centres).tolist() == reference.predict(points.numpy()).tolist()
    assert len(kmeans.sample_frames(points.split(70), 100, seed=1)) == 100
    assert torch.equal(kmeans.sample_frames(points.split(70), 99, 1), kmeans.sample_frames(points.split(70), 99, 1))
    with pytest.raises(ValueError, match="3 frames cannot make 9 centres"):
        kmeans.fit(points[:3], 9)
    with pytest.raises(ValueError, match="no features to cluster"):
        kmeans.sample_frames([], 10, 0)


@pytest.mark.parametrize("layout", ["mfcc", "base", "large"])
def test_an_encoder_on_disk_is_the_same_encoder(layouts, layout: str, tmp_path: Path) -> None:
    encoder = fit_encoder(layouts[layout])
    loaded = UnitEncoder.from_pretrained(encoder.save_pretrained(tmp_path / "encoder"))
    assert loaded.codebook == encoder.codebook
    again = UnitEncoder.from_features(loaded.features, loaded.centres, encoder.codebook.name, "utterance")
    assert again.codebook == encoder.codebook  # the fingerprint of what was read back
    assert loaded.encode(tones(0.8)) == encoder.encode(tones(0.8))


def test_the_fingerprint_sees_what_decides_a_unit(mfcc_encoder: UnitEncoder) -> None:
    features, centres = mfcc_encoder.features, mfcc_encoder.centres
    others = [
        UnitEncoder.from_features(features, centres + 1e-4, "x", "utterance"),
        UnitEncoder.from_features(features, centres, "x", "none"),
        fit_encoder(HubertFeatures(tiny_hubert(), 1, "tiny")),
        fit_encoder(HubertFeatures(tiny_hubert(), 2, "tiny")),
    ]
    assert len({encoder.codebook.fingerprint for encoder in [mfcc_encoder, *others]}) == 5
    with pytest.raises(CodebookMismatch, match="the unit encoder .*'x'"):
        mfcc_encoder.codebook.check_same(others[0].codebook, "the model", "the unit encoder")


def test_a_folder_that_is_no_encoder_is_refused(mfcc_encoder: UnitEncoder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lacks codebook.json and centres.safetensors"):
        UnitEncoder.from_pretrained(tmp_path)
    folder = mfcc_encoder.save_pretrained(tmp_path / "encoder")
    kmeans.save_centres(folder / "centres.safetensors", torch.zeros(K + 1, MfccFeatures.dim))
    with pytest.raises(ValueError, match="Fit the centres on this encoder"):
        UnitEncoder.from_pretrained(folder)
    kmeans.save_centres(folder / "centres.safetensors", mfcc_encoder.centres + 1e-3)
    with pytest.raises(CodebookMismatch, match="two encoders were mixed"):
        UnitEncoder.from_pretrained(folder)


# --- real speech


def test_human_speech_at_8_khz_becomes_units(mfcc_encoder: UnitEncoder, hubert_encoder: UnitEncoder) -> None:
    wavs = [load_wav(path) for path in sorted((DATA / "digits").glob("*.wav"))]
    for encoder in (mfcc_encoder, hubert_encoder):
        for wav, units in zip(wavs, encoder.encode_batch(wavs)):
            assert sum(units.durations) == num_frames(len(wav))
            assert units == encoder.encode(wav)

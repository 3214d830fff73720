"""The published CodeHiFiGAN: the output of fairseq's, from the same files; other files are refused by reason."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import DATA
from refused import refused
from tiny_vocoders import CODEBOOK, HIFIGAN, ODD_HIFIGAN, loud_vocoder

from units.codebook import Codebook, CodebookMismatch, Units
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import HifiGanConfig
from units.vocoder.heads.duration_predictors import Context
from units.vocoder.heads.hifigan import receptive_field
from units.vocoder.published import config_of, write_weights
from units.vocoder.unit_vocoder import UnitVocoder

UNSUPPORTED = VocoderReason.UNSUPPORTED
SETS = {"fairseq_base": 0, "fairseq_large": 2}  # speaker of the reference audio
# A unit that is one frame longer or shorter changes the base set's audio by 5e-5 only; the promise is 1e-4.
EXACT = 1e-6


def published(name: str, **options) -> UnitVocoder:
    folder = DATA / name
    return UnitVocoder.from_pretrained(folder / "vocoder.pt", config=folder / "vocoder_config.json", **options)


def references(name: str) -> list[tuple[str, list[int], np.ndarray]]:
    """(kind, units a frame, audio) of every reference; kind "dur" is de-duplicated with durations predicted."""
    lines = (DATA / name / "units.tsv").read_text().splitlines()
    frames = {key: [int(unit) for unit in row.split()] for key, row in (line.split("\t") for line in lines)}
    with np.load(DATA / name / "vocoder_out.npz") as audio:
        return [(key.split(":")[1], frames[key.split(":")[0]], audio[key]) for key in audio]


# --- parity


@pytest.mark.parametrize("name", SETS)
def test_the_audio_is_fairseqs(name: str) -> None:
    vocoder = published(name)
    found = references(name)
    assert {kind for kind, _, _ in found} == {"dur", "nodur"}
    for kind, frames, audio in found:
        units = Units.from_frames(frames, vocoder.codebook)
        wav = vocoder.decode(units, predict_durations=kind == "dur", speaker=SETS[name])
        assert wav.shape == audio.shape
        np.testing.assert_allclose(wav, audio, atol=EXACT, rtol=0)


@pytest.mark.parametrize("name", SETS)
def test_the_durations_are_fairseqs(name: str) -> None:
    """They fit the reference audio: with one unit a frame longer and its neighbour shorter, the audio differs."""
    vocoder = published(name)
    _, frames, audio = next(one for one in references(name) if one[0] == "dur")
    ids = Units.from_frames(frames, vocoder.codebook).ids
    durations = vocoder._timed(Units(ids, None, vocoder.codebook), predict_durations=True)[1].tolist()
    assert sum(durations) * 320 == len(audio)
    draw = random.Random(0)
    for _ in range(5):
        i = draw.choice([i for i in range(len(ids) - 1) if durations[i] > 1 and ids[i] != ids[i + 1]])
        moved = durations.copy()
        moved[i], moved[i + 1] = moved[i] - 1, moved[i + 1] + 1
        wav = vocoder.decode(Units(ids, tuple(moved), vocoder.codebook), speaker=SETS[name])
        assert np.abs(wav - audio).max() > 4 * EXACT


def test_every_speaker_sounds_different() -> None:
    vocoder = published("fairseq_large")
    units = Units.from_frames(references("fairseq_large")[0][1], vocoder.codebook)
    wavs = vocoder.decode_batch([units] * 5, speaker=range(5))
    assert min(np.abs(a - b).max() for i, a in enumerate(wavs) for b in wavs[:i]) > 1e-3
    for wrong in (5, -1, "nobody"):
        with refused(VocoderReason.UNKNOWN_SPEAKER, wrong, error=VocoderError):
            vocoder.decode(units, speaker=wrong)


@pytest.mark.parametrize("name", SETS)
def test_a_saved_vocoder_has_the_published_files(name: str, tmp_path: Path) -> None:
    vocoder = published(name)
    vocoder.save_pretrained(tmp_path)
    theirs, ours = (
        torch.load(folder / "vocoder.pt", weights_only=True)["generator"] for folder in (DATA / name, tmp_path)
    )
    assert ours.keys() == theirs.keys()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    theirs_config = json.loads((DATA / name / "vocoder_config.json").read_text())
    ours_config = json.loads((tmp_path / "config.json").read_text())
    read_by_old_trainers = {"segment_size", "num_freq"}
    assert {key: ours_config[key] for key in theirs_config.keys() - read_by_old_trainers} == {
        key: value for key, value in theirs_config.items() if key not in read_by_old_trainers
    }
    units = Units.from_frames(references(name)[0][1], vocoder.codebook)
    for source in (tmp_path, tmp_path / "vocoder.pt"):
        again = UnitVocoder.from_pretrained(source)
        assert again.codebook == vocoder.codebook
        np.testing.assert_allclose(again.decode(units), vocoder.decode(units), atol=EXACT, rtol=0)


# --- refusals


def write_pair(folder: Path, settings: HifiGanConfig = HIFIGAN, **changes) -> tuple[Path, Path]:
    """A published pair of files, its config changed."""
    vocoder = loud_vocoder(settings)
    weights = write_weights(folder / "vocoder.pt", vocoder.network)
    config = config_of(settings, CODEBOOK.size) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return weights, folder / "config.json"


@pytest.mark.parametrize(
    "changes, reason, values",
    [
        ({"f0": True}, UNSUPPORTED, ["['f0']"]),
        ({"f0_quant_num_bin": 32}, UNSUPPORTED, ["['f0_quant_num_bin']"]),
        ({"embedder_params": {"a": 1}}, UNSUPPORTED, ["['embedder_params']"]),
        ({"multistyle": "x", "f0": True}, UNSUPPORTED, ["['f0', 'multistyle']"]),
        ({"model_in_dim": 16}, UNSUPPORTED, ["model_in_dim 16", "8 channels"]),
        ({"resblock": "2"}, UNSUPPORTED, ["resblock '2'"]),
        ({"sampling_rate": 22050}, UNSUPPORTED, ["sampling_rate 22050", "16000"]),
        ({"code_hop_size": 640}, UNSUPPORTED, ["code_hop_size 640", "320"]),
        ({"upsample_rates": [5, 4, 4, 2, 4]}, VocoderReason.INVALID_SETTING, ["[5, 4, 4, 2, 4]", "640", "320"]),
        ({"upsample_kernel_sizes": [11, 8, 8, 4, 5]}, VocoderReason.INVALID_SETTING, ["upsample_kernel_sizes"]),
        ({"resblock_kernel_sizes": [3, 7]}, VocoderReason.INVALID_SETTING, ["2 resblock_kernel_sizes, but 3"]),
        ({"upsample_initial_channel": 64}, VocoderReason.OTHER_WEIGHTS, ["vocoder.pt"]),
        ({"dur_predictor_params": None}, VocoderReason.OTHER_WEIGHTS, ["vocoder.pt"]),
        ({"upsample_rates": "absent"}, VocoderReason.INVALID_CONFIG, ["['upsample_rates']"]),
        ({"dur_predictor_params": {"encoder_embed_dim": 9}}, UNSUPPORTED, ["9 channels", "embedding_dim is 8"]),
    ],
)
def test_a_network_that_is_not_supported_is_refused(
    tmp_path: Path, changes: dict, reason: VocoderReason, values: list[str]
) -> None:
    weights, config = write_pair(tmp_path, **changes)
    with refused(reason, *values, error=VocoderError):
        UnitVocoder.from_pretrained(weights, config=config)


def test_without_a_duration_predictor_units_need_durations(tmp_path: Path) -> None:
    settings = HifiGanConfig(upsample_initial_channel=32, embedding_dim=8, duration_width=0)
    vocoder = UnitVocoder.from_pretrained(write_pair(tmp_path, settings)[0], codebook=CODEBOOK)
    assert len(vocoder.decode(Units((1, 2), (3, 4), CODEBOOK))) == 7 * 320
    with refused(VocoderReason.NO_DURATION_PREDICTOR, error=VocoderError):
        vocoder.decode(Units((1, 2), None, CODEBOOK))


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("content", [{"generator": _Bomb()}, {"model": {}}, [1], {"generator": {"a": 1}}, b"noise"])
def test_a_file_that_is_not_tensors_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    monkeypatch.chdir(tmp_path)
    weights, config = write_pair(tmp_path)
    if isinstance(content, bytes):
        weights.write_bytes(content)
    else:
        torch.save(content, weights)
    with refused(VocoderReason.NOT_TENSORS, "vocoder.pt", "'generator'", error=VocoderError):
        UnitVocoder.from_pretrained(weights, config=config)
    assert not Path("exploded").exists()


def test_missing_files_are_named(tmp_path: Path) -> None:
    weights, config = write_pair(tmp_path)
    with pytest.raises(FileNotFoundError, match="other.json"):
        UnitVocoder.from_pretrained(weights, config=tmp_path / "other.json")
    config.write_text("{")
    with refused(VocoderReason.INVALID_CONFIG, "config.json", error=VocoderError):
        UnitVocoder.from_pretrained(weights)


def test_a_published_vocoder_has_the_codebook_it_is_given(tmp_path: Path) -> None:
    weights, _ = write_pair(tmp_path)
    units = Units((1, 2, 3), (2, 2, 2), CODEBOOK)
    with pytest.raises(CodebookMismatch, match="'tiny'.*'vocoder-km12'"):
        UnitVocoder.from_pretrained(weights).decode(units)
    assert len(UnitVocoder.from_pretrained(weights, codebook=CODEBOOK).decode(units)) == 6 * 320
    larger = Codebook("larger", "mfcc", 0, 100, 50.0, "utterance", "ffff")
    with refused(VocoderReason.OTHER_CODEBOOK_SIZE, "12 units", "'larger' has 100", error=VocoderError):
        UnitVocoder.from_pretrained(weights, codebook=larger)


# --- receptive field


@pytest.mark.parametrize("settings", [HIFIGAN, ODD_HIFIGAN])
def test_the_receptive_field_is_what_the_network_depends_on(settings: HifiGanConfig) -> None:
    """The gradient of a frame's 320 samples reaches exactly the frames of the context."""
    network = loud_vocoder(settings).network.double()
    context = network.context
    middle, count = context.left + 3, context.left + context.right + 7
    embedded = network.embed(torch.randint(12, (1, count)), torch.zeros(1, dtype=torch.long)).detach().requires_grad_()
    network.embed = lambda ids, speakers: embedded  # type: ignore[method-assign]
    wav = network(torch.zeros(1, count, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    (gradient,) = torch.autograd.grad(wav[0, middle * 320 : (middle + 1) * 320].abs().sum(), embedded)
    reached = gradient[0].abs().sum(0).nonzero()[:, 0]
    assert (int(reached.min()), int(reached.max())) == (middle - context.left, middle + context.right)


def test_the_published_sizes_depend_on_21_frames_to_both_sides() -> None:
    assert receptive_field(HifiGanConfig()) == Context(21, 21)
    assert loud_vocoder(HIFIGAN).delay_ms == 420

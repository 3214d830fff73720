"""All the sound in a file is read, or the file is refused by its reason: headers that state less are not believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused

from units.audio import SAMPLE_RATE, SILENT, AudioError, AudioReason, load_wav, loudness
from units.containers import LENGTHS, _tag_offset

FORMATS = {
    "wav": {},
    "flac": {},
    "mp3": {},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


def tone(hertz: float, seconds: float, rate: int = SAMPLE_RATE) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def written(path: Path, wav: np.ndarray, rate: int = SAMPLE_RATE, **more) -> Path:
    soundfile.write(path, wav, rate, **{**FORMATS[path.suffix[1:]], **more})
    return path


def without_count(data: bytes) -> bytes:
    """An mp3 without its first frame, which counts the others."""
    at = next(i for i in range(len(data)) if data[i] == 0xFF and (data[i + 1] << 8 | data[i + 2]) in LENGTHS)
    return data[at + LENGTHS[data[at + 1] << 8 | data[at + 2]] :]


JOINED = [suffix for suffix in FORMATS if suffix != "wav"]


def test_joined_wavs_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(220, 1.0))
    path.write_bytes(2 * path.read_bytes())
    with refused(AudioReason.UNREADABLE, path, error=AudioError):
        load_wav(path)


OTHERS = {
    "aiff": ("AIFF", "PCM_16"),
    "aifc": ("AIFF", "FLOAT"),
    "au": ("AU", "PCM_16"),
    "mulaw.au": ("AU", "ULAW"),
    "caf": ("CAF", "PCM_16"),
    "w64": ("W64", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "sph": ("NIST", "PCM_16"),
    "voc": ("VOC", "PCM_16"),
}


@pytest.mark.parametrize("suffix", OTHERS)
def test_other_containers_are_read_whole_or_refused(tmp_path: Path, suffix: str) -> None:
    path, (kind, subtype) = tmp_path / f"a.{suffix}", OTHERS[suffix]
    soundfile.write(path, tone(220, 1.0), SAMPLE_RATE, format=kind, subtype=subtype)
    whole = path.read_bytes()
    assert len(load_wav(path)) == SAMPLE_RATE and len(load_wav(path, 0.25, 0.5)) == SAMPLE_RATE // 2
    for bad in (whole[: int(0.6 * len(whole))], 2 * whole, whole + whole[len(whole) // 2 :]):
        path.write_bytes(bad)
        with pytest.raises(AudioError) as error:
            load_wav(path)
        assert error.value.reason in (AudioReason.INCOMPLETE, AudioReason.UNREADABLE)
        assert str(path) in str(error.value)
    path.write_bytes(whole + bytes(300))  # padding, as some writers leave it; some decoders take it for silence
    assert 0 <= len(load_wav(path)) - SAMPLE_RATE <= 300


def test_a_container_whose_end_is_not_known_is_refused(tmp_path: Path) -> None:
    soundfile.write(path := tmp_path / "a.mat", tone(220, 1.0), SAMPLE_RATE, format="MAT5", subtype="PCM_16")
    with refused(AudioReason.INCOMPLETE, path, "MAT5", error=AudioError):
        load_wav(path)


def test_an_au_that_was_written_into_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    soundfile.write(path := tmp_path / "a.au", tone(220, 1.0), SAMPLE_RATE, format="AU", subtype="PCM_16")
    whole = path.read_bytes()
    path.write_bytes(whole[:8] + b"\xff" * 4 + whole[12:])
    assert len(load_wav(path)) == SAMPLE_RATE


def test_a_constant_offset_is_no_sound() -> None:
    assert loudness(np.full(500, 0.5, np.float32)) < SILENT < loudness(0.5 + 0.001 * tone(220, 0.1))
    assert loudness(np.empty(0, np.float32)) == 0


@pytest.mark.parametrize("rate", [1, 100, 2_000_000])
def test_a_sample_rate_that_speech_cannot_have_is_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(path := tmp_path / "a.wav", tone(220, 1.0), rate)
    with refused(AudioReason.INCOMPLETE, path, str(rate), error=AudioError):
        load_wav(path)


@pytest.mark.parametrize("suffix", JOINED)
def test_joined_files_are_read_one_after_the_other(tmp_path: Path, suffix: str) -> None:
    files = [written(tmp_path / f"{i}.{suffix}", tone(220 * (i + 1), 0.7 + 0.3 * i)) for i in range(3)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(path.read_bytes() for path in files))
    whole = np.concatenate([load_wav(path) for path in files])
    np.testing.assert_array_equal(load_wav(joined), whole)
    np.testing.assert_array_equal(load_wav(joined, 1.0, 1.5), whole[16_000:40_000])
    with refused(AudioReason.OUTSIDE_FILE, joined, error=AudioError):
        load_wav(joined, 10.0)


@pytest.mark.parametrize("suffix", ["flac", "mp3", "ogg"])
def test_joined_files_of_two_sample_rates_are_refused(tmp_path: Path, suffix: str) -> None:
    parts = [written(tmp_path / f"{rate}.{suffix}", tone(300, 0.5, rate), rate) for rate in (16_000, 22_050)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(path.read_bytes() for path in parts))
    with refused(AudioReason.INCOMPLETE, joined, 16_000, 22_050, error=AudioError):
        load_wav(joined)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("tags", [False, True])
def test_an_mp3_of_variable_bitrate_without_its_count_is_read_whole(tmp_path: Path, rate: int, tags: bool) -> None:
    noise = np.random.default_rng(0).standard_normal(20 * rate)
    noise[3 * rate :] *= 2e-4  # loud first: a decoder that estimates by the first frames finds less
    path = written(tmp_path / "a.mp3", (0.3 * noise).clip(-1, 1), rate, bitrate_mode="VARIABLE", compression_level=0.3)
    counted = load_wav(path)
    data = without_count(path.read_bytes())
    path.write_bytes(b"ID3\x04\0\0\0\0\0\x20" + bytes(32) + data + b"TAG" + bytes(125) if tags else data)
    assert 20.0 <= len(load_wav(path)) / SAMPLE_RATE < 20.15
    lag = len(load_wav(path)) - len(counted)
    shifts = range(lag + 1)
    wav = load_wav(path)
    assert min(np.abs(wav[s : s + 40_000] - counted[:40_000]).max() for s in shifts) < (1e-4 if rate == 16_000 else 0.1)


def test_a_count_that_is_too_small_is_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp3", tone(300, 4.0))
    whole, data = load_wav(path), bytearray(path.read_bytes())
    tag = max(data.find(b"Xing"), data.find(b"Info"))
    assert tag == data.find(b"\xff") + _tag_offset(data[data.find(b"\xff") :][:4])
    data[tag + 8 : tag + 12] = (20).to_bytes(4, "big")
    path.write_bytes(data)
    np.testing.assert_allclose(load_wav(path), whole, atol=1e-4)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_cut_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a.{suffix}", np.random.default_rng(0).standard_normal(48_000) * 0.1)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(AudioError) as error:
        load_wav(path)
    assert error.value.reason in (AudioReason.INCOMPLETE, AudioReason.UNREADABLE)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_wav_that_was_written_into_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(300, 1.0))
    whole, data = load_wav(path), path.read_bytes()
    at = data.find(b"data")
    path.write_bytes(data[: at + 4] + b"\xff\xff\xff\xff" + data[at + 8 :])
    np.testing.assert_array_equal(load_wav(path), whole)


def test_chunks_and_tags_after_the_audio_are_allowed_and_unknown_bytes_are_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(300, 1.0))
    whole, data = load_wav(path), path.read_bytes()
    for more in (b"LIST\x04\0\0\0INFO", b"id3 \x02\0\0\0ab", b"ID3" + b"x" * 5000, bytes(5000), b"short"):
        path.write_bytes(data + more)
        np.testing.assert_array_equal(load_wav(path), whole)
    path.write_bytes(data + b"\x80\x90" * 5000)
    with refused(AudioReason.INCOMPLETE, path, 10_000, error=AudioError):
        load_wav(path)


# --- channels


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("scale", [-1.0, -0.9, -1.1])
def test_channels_that_cancel_each_other_are_not_averaged(tmp_path: Path, suffix: str, scale: float) -> None:
    wav = tone(300, 1.0)
    path = written(tmp_path / f"a.{suffix}", np.stack([wav, scale * wav], 1))
    np.testing.assert_allclose(load_wav(path), scale * wav if scale < -1 else wav, atol=1e-4)
    np.testing.assert_allclose(load_wav(path, 0.5), (scale * wav if scale < -1 else wav)[8000:], atol=1e-4)


@pytest.mark.parametrize("sides", [(1, 0), (0, 1, 0, 0, 0, 0), (1, 1), (1, 0.5), (1, -0.3), (0, 0)])
def test_other_channels_are_averaged(tmp_path: Path, sides: tuple[float, ...]) -> None:
    wav = tone(300, 1.0)
    path = written(tmp_path / "a.wav", np.stack([side * wav for side in sides], 1), subtype="FLOAT")
    np.testing.assert_allclose(load_wav(path), np.mean(sides) * wav, atol=1e-6)


# --- formats that cannot seek


def test_telephone_speech_in_gsm_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(300, 2.0, 8000), 8000, subtype="GSM610")
    wav = load_wav(path)
    assert abs(len(wav) - 2 * SAMPLE_RATE) <= 640 and wav.std() == pytest.approx(0.21, abs=0.02)
    part = load_wav(path, 0.5, 1.0)
    assert len(part) == SAMPLE_RATE
    np.testing.assert_allclose(part[1000:-1000], wav[8000:24_000][1000:-1000], atol=1e-3)
    with refused(AudioReason.OUTSIDE_FILE, path, error=AudioError):
        load_wav(path, 5.0)


# --- damage


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two sounds in one file of each format."""
    path = tmp_path_factory.mktemp("joined")
    return {
        suffix: 2 * written(path / f"a.{suffix}", np.random.default_rng(0).standard_normal(8000) * 0.1).read_bytes()
        for suffix in FORMATS
    }


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=40, deadline=None)
@given(cut=st.floats(0, 1), damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=4))
def test_damage_is_an_error_that_names_the_file(joined, tmp_path_factory, suffix: str, cut: float, damage) -> None:
    data = bytearray(joined[suffix])
    for where, byte in damage:
        data[int(where * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / f"damaged.{suffix}"
    path.write_bytes(bytes(data[: int(cut * len(data))] if cut < 0.9 else data))
    try:
        assert np.isfinite(load_wav(path)).all()
    except AudioError as error:
        assert str(path) in str(error)

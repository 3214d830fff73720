"""Audio files become wavs and back; what is no audio is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_parts import tones

from units.audio import SAMPLE_RATE, STRETCH, AudioError, load_wav, save_wav
from units.containers import last_flac_frame


def test_other_files_become_wavs(tmp_path: Path) -> None:
    left, right = tones(0.5, 1), tones(0.5, 2)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_wav(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-6)
    soundfile.write(tmp_path / "a.flac", left, SAMPLE_RATE)
    np.testing.assert_allclose(load_wav(tmp_path / "a.flac"), left, atol=1e-4)
    tone = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)
    for rate in (8000, 22_050, 44_100, 48_000):
        soundfile.write(tmp_path / "r.wav", np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate, subtype="FLOAT")
        wav = load_wav(tmp_path / "r.wav")
        assert wav.dtype == np.float32 and abs(len(wav) - SAMPLE_RATE) <= 1
        np.testing.assert_allclose(wav[800:15_000], tone[800:15_000], atol=1e-2)


def test_save_then_load_and_a_stretch_of_a_file(tmp_path: Path) -> None:
    wav = tones(1.0)
    save_wav(tmp_path / "new" / "a.wav", wav)
    np.testing.assert_allclose(load_wav(tmp_path / "new" / "a.wav"), wav, atol=1e-4)
    stretch = load_wav(tmp_path / "new" / "a.wav", start=0.25, duration=0.5)
    np.testing.assert_allclose(stretch, wav[4000:12_000], atol=1e-4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.wav"]


@pytest.mark.parametrize("name, kind", [("a.wav", "WAV"), ("a.flac", "FLAC"), ("a.WAV", "WAV")])
def test_a_wav_is_written_as_its_name_says(tmp_path: Path, name: str, kind: str) -> None:
    wav = tones(0.5)
    info = soundfile.info(save_wav(tmp_path / name, wav))
    assert (info.format, info.subtype, info.samplerate, info.channels) == (kind, "PCM_16", SAMPLE_RATE, 1)
    np.testing.assert_allclose(load_wav(tmp_path / name), wav, atol=1e-4)


@pytest.mark.parametrize("name", ["a.mp3", "a", "a.wav.txt"])
def test_a_wav_is_not_written_under_another_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(AudioError, match=f"{name} cannot be written: .*.wav or .flac"):
        save_wav(tmp_path / "new" / name, tones(0.5))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: str, *_: object, **__: object) -> None:
        Path(part).write_bytes(b"RIFF")
        raise soundfile.LibsndfileError(2)  # System error

    monkeypatch.setattr(soundfile, "write", full)
    with pytest.raises(OSError, match="a.wav cannot be written"):
        save_wav(tmp_path / "a.wav", tones(0.1))
    assert not list(tmp_path.iterdir())


def test_what_is_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound in here")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "short.wav", tones(0.01), SAMPLE_RATE)
    soundfile.write(tmp_path / "hollow.wav", np.zeros(0, np.float32), 8000)
    soundfile.write(tmp_path / "nan.wav", np.full(4000, np.nan, np.float32), 8000, subtype="FLOAT")
    with pytest.raises(FileNotFoundError, match="no audio file at .*absent.wav"):
        load_wav(tmp_path / "absent.wav")
    reasons = {
        "text.wav": "cannot be read as audio",
        "empty.wav": "cannot be read as audio",
        "hollow.wav": "0.000 s",
        "short.wav": "0.010 s long; at least 0.025 s",
        "nan.wav": "NaN or infinite",
        "": "is a folder",
    }
    for name, reason in reasons.items():
        with pytest.raises(AudioError, match=reason) as error:
            load_wav(tmp_path / name)
        assert "\n" not in str(error.value)
        assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("announced", [16_000, 31_000])
def test_flac_whose_header_announces_less_is_refused(tmp_path, announced: int) -> None:
    path = tmp_path / "a.flac"
    wav = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    soundfile.write(path, wav, SAMPLE_RATE)
    assert len(load_wav(path)) == 32_000
    content = bytearray(path.read_bytes())
    content[21:26] = bytes([content[21] & 0xF0]) + announced.to_bytes(4, "big")
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"announces {announced} samples, and 3"):
        load_wav(path)
    assert len(load_wav(path, 0.25, 0.5)) == 8000  # what a segment does not need is not read


def test_the_last_frame_of_flac_ends_with_the_file(tmp_path) -> None:
    draw = np.random.default_rng(1)
    for number in range(30):
        channels, rate = int(draw.integers(1, 3)), int(draw.choice([8000, 11025, 16_000, 44_100, 48_000]))
        wav = draw.standard_normal((int(draw.integers(500, 60_000)), channels)) * draw.choice([0.0, 0.001, 0.1])
        path = tmp_path / f"{number}.flac"
        soundfile.write(path, wav, rate, subtype=str(draw.choice(["PCM_16", "PCM_24"])))
        with path.open("rb") as file:
            assert last_flac_frame(file.fileno()) == len(wav)


def test_channels_that_cancel_in_a_part_of_a_file_are_not_lost(tmp_path) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / SAMPLE_RATE)
    sides = np.stack([tone, np.concatenate([tone[:16_000], -tone[16_000:]])], 1)
    soundfile.write(tmp_path / "a.wav", sides, SAMPLE_RATE)
    found = load_wav(tmp_path / "a.wav")
    lost = np.flatnonzero(np.abs(found - tone) > 1e-3)
    assert not len(lost) or (lost[0] >= 16_000 and lost[-1] < 16_000 + STRETCH)  # a stretch that cancels in part
    two = np.stack([np.where(np.arange(32_000) < 16_000, tone, 0), np.where(np.arange(32_000) < 16_000, 0, tone)], 1)
    soundfile.write(tmp_path / "b.wav", two, SAMPLE_RATE)  # two speakers, one on each side
    np.testing.assert_allclose(load_wav(tmp_path / "b.wav"), tone / 2, atol=1e-3)

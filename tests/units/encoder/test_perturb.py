"""Perturbations keep length, level and time."""

import numpy as np
import pytest

from units.encoder.pretraining.perturb import echoed, other_tract, over_babble, over_noise, tilted


@pytest.fixture
def wav():
    """A pulse train of 120 Hz through a resonance at 1 kHz, 1 s."""
    time = np.arange(16_000) / 16_000
    return (
        sum(np.cos(2 * np.pi * 120 * k * time) / (1 + ((120 * k - 1000) / 150) ** 2) for k in range(1, 60)).astype(
            np.float32
        )
        / 10
    )


def peak(wav):
    spectrum = np.abs(np.fft.rfft(wav))
    return np.sum(spectrum**2 * np.arange(len(spectrum))) / np.sum(spectrum**2)


def test_another_tract_moves_formants_and_keeps_the_pitch(wav):
    assert np.allclose(other_tract(wav, 1.0), wav, atol=1e-5)
    higher, lower = other_tract(wav, 1.2), other_tract(wav, 0.8)
    assert len(higher) == len(wav) and higher.dtype == np.float32
    assert peak(lower) < 0.95 * peak(wav) < 0.9 * peak(higher)
    harmonics = np.abs(np.fft.rfft(higher))
    assert harmonics[np.arange(1, 40) * 120].sum() > 20 * harmonics[np.arange(1, 40) * 120 + 60].sum()


def test_a_room_keeps_the_direct_sound_in_its_place():
    click = np.zeros(4000, np.float32)
    click[1000] = 1
    wet = echoed(click, 0.3, np.random.default_rng(0))
    assert len(wet) == 4000 and np.abs(wet[:999]).max() < 1e-5
    assert np.abs(wet).argmax() == 1000 and np.abs(wet[1001:]).max() > 0


def test_noise_and_babble_have_the_level_asked_for(wav):
    draw = np.random.default_rng(0)
    for noisy in (over_noise(wav, 20, draw), over_babble(wav, wav[::-1].copy(), 20)):
        assert np.sqrt(np.mean((noisy - wav) ** 2)) == pytest.approx(0.1 * np.sqrt(np.mean(wav**2)), rel=0.01)
    assert tilted(wav, 0.0) == pytest.approx(wav)

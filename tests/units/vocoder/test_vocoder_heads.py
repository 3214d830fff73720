"""Every waveform head: a batch equals its rows, a stream equals the whole, and each unit changes the audio."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from refused import refused
from tiny_vocoders import CODEBOOK, HEADS, HIFIGAN, VOCOS, K, draw_units, loud_vocoder

from units.codebook import Codebook, CodebookMismatch, Units
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.heads.configs import HifiGanConfig, MelGeneratorConfig, VocosConfig
from units.vocoder.heads.mel_blocks import BlockInverse
from units.vocoder.mel import MelSpectrogram
from units.vocoder.streaming import FADE
from units.vocoder.unit_vocoder import AT_ONCE, UnitVocoder, _groups

MEL = MelGeneratorConfig(width=16, slow_blocks=1, fast_blocks=1, kernel=5, griffin_lim_iterations=2)
each_head = pytest.mark.parametrize("head", HEADS)


def pieces(units: Units, sizes: list[int]) -> list[Units]:
    """Cut units into pieces of the given sizes, repeated in turn."""
    cut, found = 0, []
    while cut < len(units.ids):
        stop = cut + sizes[len(found) % len(sizes)]
        known = None if units.durations is None else units.durations[cut:stop]
        found.append(Units(units.ids[cut:stop], known, units.codebook))
        cut = stop
    return found


@each_head
def test_audio_is_as_long_as_its_units_and_depends_on_each_of_them(head: str) -> None:
    vocoder = loud_vocoder(HEADS[head])
    units = draw_units(random.Random(0))
    wav = vocoder.decode(units)
    assert wav.dtype == np.float32 and wav.shape == (sum(units.durations or ()) * 320,)
    assert np.isfinite(wav).all() and np.std(wav) > 0.02
    starts = np.cumsum((0, *(units.durations or ()))) * 320
    for i in range(len(units.ids)):
        other = (*units.ids[:i], (units.ids[i] + 1) % K, *units.ids[i + 1 :])
        changed = np.abs(vocoder.decode(Units(other, units.durations, CODEBOOK)) - wav)
        assert changed[starts[i] : starts[i + 1]].max() > 1e-3


@each_head
@pytest.mark.parametrize("known", [True, False])
def test_a_batch_is_its_rows_one_by_one(head: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    vocoder = loud_vocoder(HEADS[head])
    batch = [draw_units(draw, known=known) for _ in range(10)]
    speakers = [draw.randrange(max(1, HEADS[head].num_speakers)) for _ in batch]
    alone = [vocoder.decode(units, speaker=speaker) for units, speaker in zip(batch, speakers)]
    torch.set_num_threads(2)
    beside = vocoder.decode_batch(batch, speaker=speakers)  # on a CPU: rows in threads of their own
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    monkeypatch.setattr("units.vocoder.unit_vocoder._groups", lambda lengths, at_once: _groups(lengths, AT_ONCE))
    padded = vocoder.decode_batch(batch, speaker=speakers)  # as on an accelerator
    for one, other, wav in zip(beside, padded, alone):
        np.testing.assert_allclose(one, wav, atol=1e-5, rtol=0)
        np.testing.assert_allclose(other, wav, atol=1e-5, rtol=0)


@each_head
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("sizes", [[1], [10], [40], [100], [3, 1, 17]])
def test_a_stream_equals_the_whole(head: str, known: bool, sizes: list[int]) -> None:
    draw = random.Random(len(sizes))
    vocoder = loud_vocoder(HEADS[head])
    speaker = HEADS[head].num_speakers and 2
    for longest in (3, 120):
        units = draw_units(draw, longest, known)
        whole = vocoder.decode(units, speaker=speaker)
        wavs = list(vocoder.stream(pieces(units, sizes), speaker=speaker))
        assert all(len(wav) for wav in wavs)
        np.testing.assert_allclose(np.concatenate(wavs), whole, atol=1e-5, rtol=0)


@each_head
def test_a_stream_holds_back_exactly_its_delay(head: str) -> None:
    """After n frames of input it has returned n - right context frames of audio."""
    vocoder = loud_vocoder(HEADS[head])
    units = Units((1, 2, 3, 4, 5) * 8, (5,) * 40, CODEBOOK)
    returned, pushed = 0, 0
    wait = round(vocoder.delay_ms / 20)
    stream = vocoder.stream(piece for piece in pieces(units, [2]))
    for piece in range(20):
        pushed += 10
        if pushed <= wait:
            continue
        returned += len(next(stream))
        assert returned == (pushed - wait) * 320, piece
    assert returned + len(next(stream)) == 200 * 320


def test_less_lookahead_is_less_exact_and_has_no_clicks() -> None:
    vocoder = loud_vocoder(VOCOS)
    units = draw_units(random.Random(3), 100)
    whole = vocoder.decode(units)
    steps = np.abs(np.diff(whole)).max()
    errors = []
    for lookahead in (0, 2, 5, None):
        wavs = list(vocoder.stream(pieces(units, [10]), lookahead=lookahead))
        wav = np.concatenate(wavs)
        assert wav.shape == whole.shape
        errors.append(float(np.abs(wav - whole).mean()))
        joins = np.cumsum([len(one) for one in wavs])[:-1]
        if lookahead:
            assert max(abs(wav[join] - wav[join - 1]) for join in joins) <= 1.5 * steps
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6 < errors[-2]
    with refused(VocoderReason.INVALID_SETTING, "lookahead is -1", error=VocoderError):
        list(vocoder.stream([units], lookahead=-1))


def test_a_join_is_cross_faded() -> None:
    """With too little lookahead the samples around a join come from two passes, which must agree at the join."""
    vocoder = loud_vocoder(HIFIGAN)
    units = draw_units(random.Random(5), 90)
    first, second = list(vocoder.stream(pieces(units, [45]), lookahead=3))[:2]
    known = Units(units.ids[:45], (units.durations or ())[:45], CODEBOOK)
    guess = vocoder.decode(known)[len(first) : len(first) + FADE]
    assert abs(second[0] - guess[0]) < 0.01 * np.abs(guess).max() + np.abs(second[0] - second[1])
    whole = vocoder.decode(units)[len(first) : len(first) + FADE]
    np.testing.assert_allclose(second[FADE - 1], whole[-1], atol=0.05)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("block", [1, 3, 16])
@pytest.mark.parametrize("sizes", [[1], [10], [100], [3, 1, 17]])
def test_a_stream_of_the_head_mel_is_the_whole_bit_by_bit(sizes: list[int], block: int, known: bool) -> None:
    vocoder = UnitVocoder(CODEBOOK, dataclasses.replace(MEL, block_frames=block)).eval()
    draw = random.Random(block)
    for longest in (1, 3, 60):
        units = draw_units(draw, longest, known)
        whole = vocoder.decode(units)
        wavs = list(vocoder.stream(pieces(units, sizes)))
        assert all(len(wav) for wav in wavs)
        np.testing.assert_array_equal(np.concatenate(wavs), whole)
        assert np.isfinite(whole).all() and np.abs(whole).max() <= 1


def test_the_head_mel_streams_within_its_delay() -> None:
    """After n frames of input it has returned at least n - delay frames of audio, in whole blocks."""
    vocoder = UnitVocoder(CODEBOOK, MEL).eval()
    units = Units((1, 2, 3, 4, 5) * 8, (5,) * 40, CODEBOOK)
    wait = round(vocoder.delay_ms / 20)
    assert wait == 15 + 4 + 3  # a block but one frame, Griffin-Lim's look ahead, and the network's reach
    pushed, returned, seen = [0], 0, []

    def counted() -> Iterator[Units]:
        for piece in pieces(units, [1]):
            seen.append((pushed[0], returned))
            pushed[0] += 5
            yield piece

    for wav in vocoder.stream(counted()):
        returned += len(wav)
    assert returned == 200 * 320
    for frames, samples in seen:
        assert samples % (16 * 320) == 0 and samples >= (frames - wait) * 320, (frames, samples)


def test_the_rest_of_an_utterance_comes_block_by_block() -> None:
    """The first sound of units that come all at once does not wait for the last."""
    vocoder = UnitVocoder(CODEBOOK, MEL).eval()
    units = Units((1, 2, 3, 4, 5), (20,) * 5, CODEBOOK)
    stream = vocoder.open_stream()
    pushed = stream.push(units)
    rest = [*stream.finish()]
    assert len(rest) > 1 and all(0 < len(piece) <= 16 * 320 for piece in rest)
    np.testing.assert_array_equal(np.concatenate([pushed, *rest]), vocoder.decode(units))


@pytest.mark.parametrize("size", [1, 7, 30])
@pytest.mark.parametrize("frames", [1, 2, 30])
@pytest.mark.parametrize(("slow", "fast"), [(2, 3), (0, 1), (1, 0), (0, 0)])
def test_log_mels_of_frames_that_arrive_in_pieces_are_those_of_all(
    slow: int, fast: int, frames: int, size: int
) -> None:
    settings = dataclasses.replace(MEL, slow_blocks=slow, fast_blocks=fast)
    generator = UnitVocoder(CODEBOOK, settings).eval().network.generator
    ids, runs = torch.arange(frames) % K, torch.rand(frames, 2, generator=torch.manual_seed(0))
    stream = generator.open_stream()
    with torch.inference_mode():
        every = generator.log_mels(ids, runs)
        parts = [stream.push(*part) for part in zip(ids.split(size), runs.split(size))]
        some = torch.cat([*parts, stream.finish()])
    torch.testing.assert_close(some, every, atol=1e-5, rtol=1e-5)


def test_a_block_continues_the_block_before() -> None:
    """A steady tone has no step and no dip where blocks meet."""
    spectrogram = MelSpectrogram(80, iterations=40)
    tone = 0.3 * torch.sin(2 * math.pi * 220 * torch.arange(160 * 320) / 16_000)
    inverse = BlockInverse(spectrogram, 32)
    log_mels = spectrogram(tone[None])[0]
    wav = torch.cat([sound for part in log_mels.split(7) for sound in inverse.push(part)] + [*inverse.finish()])
    assert len(wav) == len(tone)
    level = wav[1600:-1600].unfold(0, 800, 160).square().mean(1).sqrt()  # 50 ms windows, 10 ms apart
    assert level.min() > 0.8 * level.median()
    steps = wav.diff().abs()
    joins = torch.arange(32 * 160, len(wav) - 1600, 32 * 160) - 1
    assert steps[joins].max() < 1.5 * steps.quantile(0.99)


def test_a_mel_vocoder_of_an_earlier_release_keeps_its_sound(tmp_path: Path) -> None:
    whole = UnitVocoder(CODEBOOK, dataclasses.replace(MEL, block_frames=0)).eval()
    folder = whole.save_pretrained(tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    del config["generator"]["block_frames"]
    (folder / "config.json").write_text(json.dumps(config))
    units = draw_units(random.Random(7), 20)
    opened = UnitVocoder.from_pretrained(folder)
    assert opened.delay_ms == math.inf
    np.testing.assert_array_equal(opened.decode(units), whole.decode(units))


def test_without_blocks_the_head_mel_returns_everything_at_the_end() -> None:
    vocoder = UnitVocoder(CODEBOOK, dataclasses.replace(MEL, block_frames=0)).eval()
    assert vocoder.delay_ms == math.inf
    for known in (True, False):
        units = draw_units(random.Random(4), 20, known)
        (wav,) = vocoder.stream(pieces(units, [3]))
        np.testing.assert_array_equal(wav, vocoder.decode(units))


@each_head
def test_a_stream_refuses_units_of_another_codebook_and_no_units(head: str) -> None:
    vocoder = loud_vocoder(HEADS[head])
    foreign = Codebook("other", "mfcc", 0, K, 50.0, "utterance", "ffff0000")
    with pytest.raises(CodebookMismatch, match="'other'.*'tiny'"):
        list(vocoder.stream([Units((1,), (1,), foreign)]))
    for nothing in ([], [Units((), (), CODEBOOK)]):
        with refused(VocoderReason.NO_UNITS, error=VocoderError):
            list(vocoder.stream(nothing))
    with pytest.raises(ValueError, match="12 to 12.*0 to 11"):
        Units((12,), (1,), CODEBOOK)
    with refused(VocoderReason.UNKNOWN_SPEAKER, "7", error=VocoderError):
        vocoder.decode(Units((1,), (1,), CODEBOOK), speaker=7)
    with refused(VocoderReason.SPEAKER_COUNT, "2 utterances", "1 speakers", error=VocoderError):
        vocoder.decode_batch([Units((1,), (1,), CODEBOOK)] * 2, speaker=[0])


@each_head
def test_a_saved_vocoder_is_loaded_unchanged(head: str, tmp_path: Path) -> None:
    vocoder = loud_vocoder(HEADS[head])
    names = tuple("abc")[: HEADS[head].num_speakers]
    vocoder.speakers = names
    vocoder.save_pretrained(tmp_path)
    loaded = UnitVocoder.from_pretrained(tmp_path)
    assert (loaded.codebook, loaded.settings) == (CODEBOOK, HEADS[head])
    assert (loaded.speakers, loaded.head) == (names, vocoder.head)
    units = draw_units(random.Random(6))
    last = names[-1] if names else 0
    np.testing.assert_array_equal(loaded.decode(units, speaker=last), vocoder.decode(units, speaker=last))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"speakers": ["one"] * 5}))
    with refused(VocoderReason.SPEAKER_COUNT, "5 names", error=VocoderError):
        UnitVocoder.from_pretrained(tmp_path)


def test_invalid_settings_are_refused() -> None:
    with refused(VocoderReason.INVALID_SETTING, "kernel is 4", error=VocoderError):
        VocosConfig(kernel=4)
    with refused(VocoderReason.INVALID_SETTING, "kernel is 4", error=VocoderError):
        MelGeneratorConfig(kernel=4)
    with refused(VocoderReason.INVALID_SETTING, "width is 0", "1 or more", error=VocoderError):
        VocosConfig(width=0)
    with refused(VocoderReason.INVALID_SETTING, "duration_dropout is 1.0", error=VocoderError):
        HifiGanConfig(duration_dropout=1.0)
    with refused(VocoderReason.INVALID_SETTING, "[3, 4, 11]", error=VocoderError):
        HifiGanConfig(resblock_kernel_sizes=(3, 4, 11))
    with refused(VocoderReason.INVALID_SETTING, "48", "halved 5 times", "multiple of 32", error=VocoderError):
        HifiGanConfig(upsample_initial_channel=48)


@pytest.mark.parametrize("head", ["vocos", "hifigan"])
def test_bfloat16_is_close(head: str, tmp_path: Path) -> None:
    vocoder = loud_vocoder(HEADS[head])
    units = draw_units(random.Random(7))
    vocoder.save_pretrained(tmp_path)
    half = UnitVocoder.from_pretrained(tmp_path, precision=torch.bfloat16)
    exact, close = vocoder.decode(units), half.decode(units)
    assert 0 < np.abs(exact - close).max() < 0.2 * np.abs(exact).max()
    assert len(half.decode(units, predict_durations=True)) == len(vocoder.decode(units, predict_durations=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_head
def test_an_accelerator_gives_the_cpus_audio(head: str) -> None:
    draw = random.Random(9)
    batch = [draw_units(draw, 60) for _ in range(40)]
    here, there = loud_vocoder(HEADS[head]), loud_vocoder(HEADS[head]).to("cuda")
    for units, wav in zip(batch, there.decode_batch(batch)):
        np.testing.assert_allclose(wav, here.decode(units), atol=1e-4, rtol=0)
        np.testing.assert_allclose(wav, there.decode(units), atol=1e-4, rtol=0)
        np.testing.assert_allclose(np.concatenate(list(there.stream(pieces(units, [10])))), wav, atol=1e-4, rtol=0)


# --- durations


@pytest.mark.parametrize("settings", [MEL, HIFIGAN, VOCOS], ids=["mel", "hifigan", "vocos"])
def test_calibrated_durations_add_up_to_the_true_ones(settings: object, tmp_path: Path) -> None:
    draw = random.Random(8)
    torch.manual_seed(0)
    vocoder = UnitVocoder(CODEBOOK, settings).eval()  # type: ignore[arg-type]
    corpus = [draw_units(draw) for _ in range(40)]
    true = sum(sum(units.durations or ()) for units in corpus)

    def predicted(of: UnitVocoder) -> int:
        return sum(int(of._timed(units, predict_durations=True)[1].sum()) for units in corpus)

    short = predicted(vocoder)
    factor = vocoder.calibrate_durations(corpus)
    assert abs(short / true - 1) > 0.1
    assert (factor > 1) == (short < true)
    assert abs(predicted(vocoder) / true - 1) < 0.01
    assert abs(vocoder.calibrate_durations(corpus) - 1) < 0.02  # a second time there is nothing left to do
    vocoder.save_pretrained(tmp_path)
    assert predicted(UnitVocoder.from_pretrained(tmp_path)) == predicted(vocoder)

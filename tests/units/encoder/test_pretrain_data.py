"""What pre-training reads: lengths as load_wav gives them, measured once; steps of utterances of similar length."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from units.audio import AudioError, load_wav, num_frames, save_wav
from units.corpus.manifest import Utterance
from units.encoder.pretraining import pretrain_data
from units.encoder.pretraining.pretrain_data import PretrainCorpus, Steps, measure
from units.encoder.recipes import CROP_STEP, FitRecipe, Iteration, PretrainRecipe

RECIPE = PretrainRecipe(batch_seconds=2.0)


def noise(samples, channels=1):
    wav = 0.1 * np.random.default_rng(samples).standard_normal((samples, channels))
    return wav.astype(np.float32).squeeze()


@pytest.fixture
def utterances(tmp_path):
    return [Utterance(f"u{i}", save_wav(tmp_path / f"u{i}.wav", noise(8000 + 900 * i))) for i in range(8)]


@pytest.fixture
def loads(monkeypatch):
    """The utterances that were decoded since the test began."""
    decoded = []
    monkeypatch.setattr(pretrain_data, "load_wav", lambda *segment: decoded.append(segment) or load_wav(*segment))
    return decoded


def files_of_all_kinds(folder):
    """Utterances of files with a right and a wrong length in the header, to be resampled, and unreadable."""
    wav = noise(24_000)
    for name, rate, kind in [
        ("plain.wav", 16_000, "PCM_16"),
        ("deep.wav", 16_000, "PCM_24"),
        ("float.wav", 16_000, "FLOAT"),
        ("slow.wav", 11_025, "PCM_16"),
        ("fast.wav", 44_100, "PCM_16"),
        ("whole.flac", 16_000, "PCM_16"),
        ("vorbis.ogg", 16_000, "VORBIS"),
        ("telephone.wav", 8000, "ULAW"),
    ]:
        soundfile.write(folder / name, wav, rate, subtype=kind)
    soundfile.write(folder / "stereo.wav", noise(24_000, 2), 16_000)
    soundfile.write(folder / "tiny.wav", wav[:399], 16_000)
    soundfile.write(folder / "nan.wav", np.where(np.arange(24_000) == 9000, np.nan, wav), 16_000, subtype="FLOAT")
    for name in ("plain.wav", "whole.flac"):
        data = (folder / name).read_bytes()
        (folder / f"cut_{name}").write_bytes(data[: len(data) // 2 + 1])
        middle = len(data) // 2
        (folder / f"damaged_{name}").write_bytes(data[:middle] + bytes(3000) + data[middle + 3000 :])
    (folder / "text.wav").write_text("no audio")
    names = sorted(path.name for path in folder.iterdir())
    segments = [(0.0, None), (0.5, None), (0.3, 0.7), (1.2, 9.0), (1.49, 0.5), (7.0, None), (0.1234567, 0.7654321)]
    return [
        Utterance(f"{name} {start} {duration}", folder / name, start, duration)
        for name in (*names, "missing.wav", 300 * "a")
        for start, duration in segments
    ]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_length_is_what_load_wav_gives_and_every_refusal_has_its_reason(tmp_path, workers):
    utterances = files_of_all_kinds(tmp_path)
    found = measure(utterances, workers=workers)
    assert list(found) == [u.id for u in utterances]
    for u in utterances:
        try:
            wanted = len(load_wav(u.audio, u.start, u.duration))
        except (AudioError, OSError) as error:
            wanted = str(error)
        assert found[u.id] == wanted, u.id
    assert isinstance(found["damaged_whole.flac 0.0 None"], str) and isinstance(found["nan.wav 0.0 None"], str)


def test_files_whose_header_has_the_length_are_not_decoded(utterances, loads):
    utterances.append(dataclasses.replace(utterances[0], id="segment", start=0.05, duration=0.4))
    corpus = PretrainCorpus(utterances, RECIPE.shortest)
    assert not loads and corpus.lengths.tolist() == [8000 + 900 * i for i in range(8)] + [6400]


def test_lengths_are_measured_once(tmp_path, loads):
    utterances = []
    for i in range(4):  # at a rate at which files must be decoded
        soundfile.write(tmp_path / f"u{i}.wav", noise(5000 + i), 8000)
        utterances.append(Utterance(f"u{i}", tmp_path / f"u{i}.wav"))
    utterances.append(Utterance("missing", tmp_path / "missing.wav"))
    kept = tmp_path / "out" / "lengths.json"
    first = PretrainCorpus(utterances, RECIPE.shortest, kept, workers=2)
    assert len(loads) == 5 and kept.exists()
    again = PretrainCorpus(utterances, RECIPE.shortest, kept, workers=2, settled=True)
    assert len(loads) == 5
    assert again.lengths.tolist() == first.lengths.tolist() == [10_000, 10_002, 10_004, 10_006]
    assert again.refused == first.refused and list(first.refused) == ["missing"]
    with pytest.raises(ValueError, match="it changed"):
        PretrainCorpus(utterances[1:], RECIPE.shortest, kept)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_the_system_cannot_read_is_counted(utterances, monkeypatch, error):
    def refusing(path, *segment):
        if path == utterances[2].audio:
            raise error
        return load_wav(path, *segment)

    monkeypatch.setattr(pretrain_data, "_length_in_header", lambda utterance: None)
    monkeypatch.setattr(pretrain_data, "load_wav", refusing)
    corpus = PretrainCorpus(utterances, RECIPE.shortest)
    assert corpus.refused == {"u2": str(error)} and len(corpus.utterances) == 7


def test_an_error_that_passes_is_not_kept_until_targets_were_made(utterances, tmp_path, monkeypatch, loads):
    kept, given = tmp_path / "lengths.json", pretrain_data._measured
    monkeypatch.setattr(pretrain_data, "_measured", lambda u: "Input/output error" if u.id == "u2" else given(u))
    assert list(PretrainCorpus(utterances, RECIPE.shortest, kept).refused) == ["u2"]
    monkeypatch.setattr(pretrain_data, "_measured", given)
    assert list(PretrainCorpus(utterances, RECIPE.shortest, kept, settled=True).refused) == ["u2"]
    tried = []
    monkeypatch.setattr(pretrain_data, "_measured", lambda u: tried.append(u.id) or given(u))
    for _ in range(2):
        corpus = PretrainCorpus(utterances, RECIPE.shortest, kept)
        assert not corpus.refused and corpus.lengths.tolist() == [8000 + 900 * i for i in range(8)]
    assert tried == ["u2"]


def test_lengths_are_not_kept_if_nothing_is_readable(tmp_path):
    kept = tmp_path / "lengths.json"
    with pytest.raises(ValueError, match="1 not readable"):
        PretrainCorpus([Utterance("u", tmp_path / "missing.wav")], RECIPE.shortest, kept)
    assert not kept.exists()  # so that the next start looks again


def test_a_file_that_changed_while_the_run_went_on_is_refused(utterances):
    corpus = PretrainCorpus(utterances, RECIPE.shortest)
    save_wav(utterances[3].audio, noise(7000))
    with pytest.raises(ValueError, match="it changed"):
        corpus.wav(3)


def test_short_utterances_are_left_out_and_the_shortest_of_the_others_fills_a_crop(tmp_path):
    sizes = (400, 3000, RECIPE.shortest - 1, RECIPE.shortest, RECIPE.shortest + 1)
    corpus = PretrainCorpus(
        [Utterance(str(n), save_wav(tmp_path / f"{n}.wav", noise(n))) for n in sizes], RECIPE.shortest
    )
    assert corpus.short == [str(n) for n in sizes[:3]] and corpus.lengths.tolist() == list(sizes[3:])
    steps = Steps(corpus, np.zeros((corpus.first_frame[-1], 1), np.uint16), RECIPE, 1, 20)
    for wav, labels, mask in (steps[i] for i in range(20)):
        assert wav.shape[1] == CROP_STEP and wav.isfinite().all()
        assert labels.shape[:2] == mask.shape == (len(wav), num_frames(CROP_STEP))


@pytest.mark.parametrize("speed", [0.0, 0.05, 0.08, 0.3])
def test_a_crop_is_whole_steps_and_fits_at_any_speed(speed):
    recipe = PretrainRecipe(speed_range=speed)
    for length in [recipe.shortest, recipe.shortest + 1, 9000, 20_000, recipe.longest, 10 * recipe.longest]:
        crop = recipe.crop_length(length)
        assert crop >= CROP_STEP and crop % CROP_STEP == 0
        assert round(crop * (1 + speed)) <= min(length, recipe.longest)


def test_a_recipe_whose_crops_are_too_short_is_refused():
    with pytest.raises(ValueError, match="at least 0.27 at a speed_range of 0.08"):
        PretrainRecipe(max_crop_seconds=0.26)


def test_the_longest_never_share_a_step_with_the_shortest():
    lengths = np.sort(np.random.default_rng(0).integers(RECIPE.shortest, 40_000, 300))[::-1].copy()
    steps = Steps(SimpleNamespace(lengths=lengths), None, PretrainRecipe(batch_seconds=10.0), 1, 1)
    rank = np.argsort(steps.by_length)
    for anchor in range(len(lengths)):
        members = rank[steps._members(anchor)]
        assert (np.diff(members) == 1).all() and members[0] <= anchor  # neighbours, the shortest first
        assert members[0] == anchor or members[-1] == len(lengths) - 1
        assert lengths[steps.by_length[members[0]]] >= 0.8 * lengths[steps.by_length[anchor]]


def test_a_corpus_smaller_than_a_step_fills_it_all_the_same():
    steps = Steps(SimpleNamespace(lengths=np.array([9000, 8000])), None, RECIPE, 1, 1)
    assert [steps._members(anchor).tolist() for anchor in (0, 1)] == [[1, 0, 1, 0], [1, 0, 1, 0]]


def test_steps_are_a_function_of_seed_and_number(utterances):
    corpus = PretrainCorpus(utterances, RECIPE.shortest)
    targets = np.arange(int(corpus.first_frame[-1]), dtype=np.uint16)[:, None]
    one, two = (Steps(corpus, targets, RECIPE, 1, 10) for _ in range(2))
    two[7]  # another step first
    for a, b in zip(one[3], two[3]):
        assert torch.equal(a, b)
    wav, labels, mask = one[3]
    assert labels.shape[:2] == mask.shape and mask.any(dim=1).all()
    assert (labels.diff(dim=1) >= 0).all()  # frames of the clean wav, in order at any speed


def test_a_mask_span_longer_than_a_crop_masks_to_its_end(utterances):
    recipe = dataclasses.replace(RECIPE, mask_span=500, mask_start=0.0)
    corpus = PretrainCorpus(utterances, recipe.shortest)
    mask = Steps(corpus, np.zeros((corpus.first_frame[-1], 1), np.uint16), recipe, 1, 1)[0][2]
    first = mask.shape[1] // 3
    assert mask[:, first:].all() and not mask[:, :first].any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": 0}, "size is 0; it is from 1 to 65536"),
        ({"size": 70_000}, "size is 70000"),
        ({"layer": 0}, "layer is 0; it is at least 1"),
        ({"frames": -1}, "frames is -1"),
        ({"utterances": 0}, "utterances is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"centring": "speaker"}, "'speaker'; it is one of utterance, frame, none"),
    ],
)
def test_a_fit_out_of_range_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        FitRecipe(**settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"heads": 3}, "width is 256; it is a multiple of heads"),
        ({"width": 40}, "width is 40; it is a multiple of heads .* and of 16"),
        ({"mask_start": 1.5}, "mask_start is 1.5; it is from 0 to 1"),
        ({"speed_range": 1.0}, "speed_range is 1.0"),
        ({"warmup": 0}, "warmup is 0"),
        ({"layers": 2}, "layers 0 to 2"),
        ({"iterations": []}, "there is at least one"),
    ],
)
def test_a_recipe_out_of_range_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        PretrainRecipe(**settings)


@pytest.mark.parametrize(("steps", "clusters"), [(0, {0: [8]}), (1, {}), (1, {0: []}), (1, {0: [0]}), (1, {-1: [8]})])
def test_an_iteration_out_of_range_is_refused(steps, clusters):
    with pytest.raises(ValueError, match="steps is 0" if not steps else "clusters is"):
        Iteration(steps, clusters)

"""The corpus of the shipped codec: open sentences, perturbed copies, and the manifests of codebook and vocoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from instruct_data.speech import codec_corpus, open_corpus
from instruct_data.speech.codec_corpus import ANSWER_VOICE, UNHEARD, answer_lines, repeated, voice_lines
from instruct_data.speech.open_sentences import open_sentences
from instruct_data.speech.perturbed_copies import perturbed, perturbed_copies, with_pauses
from instruct_data.speech.speak import Line, Spoken
from instruct_data.text.english_words import ONE_LETTER
from units.audio import load_wav, num_frames, save_wav
from units.corpus.manifest import Utterance, read_manifest, write_manifest
from units.encoder.mfcc import MfccFeatures


def voice(seconds: float = 1.0, pitch: float = 120.0) -> np.ndarray:
    """A buzz that opens and closes three times a second."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    buzz = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 30))
    return (0.1 * buzz * (1 + np.sin(2 * np.pi * 3 * time))).astype(np.float32)


def test_open_sentences_are_english_words_and_the_same_for_a_seed() -> None:
    pytest.importorskip("pocketsphinx")
    found = list(open_sentences(200, seed=3))
    assert found == list(open_sentences(200, seed=3)) and found != list(open_sentences(200, seed=4))
    words = [word for sentence in found for word in sentence.split()]
    assert all(word.isascii() and word.isalpha() and word == word.lower() for word in words)
    assert all(5 <= len(sentence.split()) <= 13 for sentence in found)
    assert all(word in ONE_LETTER for word in words if len(word) == 1)
    assert len(set(found)) == 200 and len(set(words)) > 500
    assert words.count("the") > len(words) / 100  # common words are common


def test_a_copy_keeps_its_frames_in_place() -> None:
    wav = voice()
    features = MfccFeatures()
    for seed in range(5):
        copy = perturbed(wav, np.random.default_rng(seed))
        assert copy.shape == wav.shape and copy.dtype == np.float32 and np.abs(copy).max() <= 1
        assert np.abs(copy - wav).max() > 0.01
        energy, clean = (np.convolve(np.square(one), np.ones(800), "same")[::320] for one in (copy, wav))
        best = max(range(-10, 11), key=lambda shift: np.corrcoef(np.roll(energy, shift), clean)[0, 1])
        assert abs(best) <= 1
        assert features([copy])[0].shape[0] == num_frames(len(wav))


def test_copies_are_made_once_and_depend_on_seed_and_id(tmp_path: Path) -> None:
    clean = [Utterance(name, save_wav(tmp_path / f"{name}.wav", voice())) for name in ("a", "b")]
    copies, sounds = perturbed_copies(clean, tmp_path / "one", workers=1, seed=1)
    assert [u.id for u in copies] == [u.id for u in sounds] == ["a-p", "b-p"]
    first, second = (load_wav(copy.audio) for copy in copies)
    assert not np.array_equal(first, second)  # the same sound, perturbed otherwise
    assert [len(load_wav(sound.audio)) for sound in sounds] == [len(first), len(second)]
    Path(copies[0].audio).unlink()
    before = Path(copies[1].audio).stat().st_mtime_ns
    again, _ = perturbed_copies(clean, tmp_path / "one", workers=1, seed=1)
    np.testing.assert_array_equal(load_wav(again[0].audio), first)
    assert Path(copies[1].audio).stat().st_mtime_ns == before
    other, _ = perturbed_copies(clean, tmp_path / "two", workers=1, seed=2)
    assert not np.array_equal(load_wav(other[0].audio), first)


def test_pauses_are_silence_and_nothing_is_lost() -> None:
    wav = voice()
    lengths = set()
    for seed in range(20):
        longer = with_pauses(wav, np.random.default_rng(seed))
        lengths.add(len(longer))
        kept = longer[longer != 0]
        np.testing.assert_array_equal(kept, wav[wav != 0])
        assert len(wav) <= len(longer) <= len(wav) + 3 * 0.8 * 16_000
    assert len(lengths) > 10


def test_the_manifests_of_a_small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoken(lines: list[Line], folder: Path, name: str, workers: int | None = None) -> object:
        rows = [Utterance(line.id, save_wav(folder / f"{line.id}.wav", voice()), speaker=line.voice) for line in lines]
        return type("Spoken", (), {"manifest": write_manifest(folder / f"{name}.jsonl", rows)})

    monkeypatch.setattr(codec_corpus, "speak_lines", spoken)
    monkeypatch.setattr(codec_corpus, "open_sentences", lambda count, seed: (f"line {i}" for i in range(count)))
    readers = tmp_path / "readers"
    save_wav(readers / "19-198-0000.wav", voice(11.0))
    codec_corpus.main(tmp_path / "out", lines=4, answers=2, readers=readers, workers=1)

    def read(name: str) -> list[Utterance]:
        return list(read_manifest(tmp_path / "out" / f"{name}.jsonl"))

    encoder, units, sound = read("encoder"), read("vocoder_units"), read("vocoder_sound")
    people = [u for u in encoder if u.speaker == "19"]
    assert len(encoder) == 6 + len(people) and len(people) == 4  # two segments of the recording, twice
    assert 0.3 < len(people) / len(encoder) < 0.5
    assert [u.id for u in units] == [u.id for u in sound] == ["a000000", "a000001", "a000000-p", "a000001-p"]
    assert [u.audio for u in sound[:2]] == [u.audio for u in units[:2]]
    assert [Path(u.audio).name for u in units[2:]] == ["a000000-p.wav", "a000001-p.wav"]
    assert [Path(u.audio).name for u in sound[2:]] == ["a000000-s.wav", "a000001-s.wav"]


def test_unheard_voices_and_the_answer_voice_are_among_no_other_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_corpus, "open_sentences", lambda count, seed: (f"line {i}" for i in range(count)))
    voices = {line.voice for line in voice_lines(400)}
    assert len(voices) > 100 and not voices & {ANSWER_VOICE, *UNHEARD}


@pytest.mark.parametrize("others", [1, 10, 1000])
def test_readers_are_repeated_to_their_share(others: int) -> None:
    readers = [Utterance(str(i), Path(f"{i}.wav")) for i in range(20)]
    found = repeated(readers, others)
    assert len({u.id for u in found}) == len(found) and len(found) % 20 == 0 and len(found) >= 20
    if others == 1000:
        assert abs(len(found) / (len(found) + others) - codec_corpus.READERS_SHARE) < 0.02


def test_no_recordings_of_readers_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="LibriSpeech"):
        list(codec_corpus.reader_segments(tmp_path))


def test_an_open_corpus_has_answers_that_no_test_sentence_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pocketsphinx")
    spoken: dict[str, list[Line]] = {}

    def speak(lines: list[Line], folder: Path, name: str, workers: int | None) -> Spoken:
        spoken[name] = lines
        return Spoken(folder / f"{name}.jsonl", len(lines), 0)

    monkeypatch.setattr(open_corpus, "speak_lines", speak)
    open_corpus.main(tmp_path, lines=6, test=4)
    assert set(spoken) == {"test", "train"}
    first = dict(spoken)
    monkeypatch.setattr(
        open_corpus,
        "answer_lines",
        lambda count, seed: [*answer_lines(count, seed), Line("x", first["test"][0].text, "v")],
    )
    open_corpus.main(tmp_path, lines=6, test=4, answers=5)
    assert spoken["test"] == first["test"] and spoken["train"] == first["train"]
    assert len(spoken["answers"]) == 5 and {line.voice for line in spoken["answers"]} == {ANSWER_VOICE}
    assert {line.voice for line in spoken["test"]} == {open_corpus.UNHEARD}


def test_most_of_an_open_corpus_is_in_voices_made_of_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_corpus, "open_sentences", lambda count, seed: (f"line {i}" for i in range(count)))
    voices = [line.voice for line in voice_lines(600, 0, open_corpus.RECORDED, open_corpus.RECORDED_SHARE)]
    shares = [voices.count(voice) / len(voices) for voice in open_corpus.RECORDED]
    assert open_corpus.UNHEARD not in voices
    assert sum(shares) == pytest.approx(open_corpus.RECORDED_SHARE, abs=0.06)
    assert shares == pytest.approx([open_corpus.RECORDED_SHARE / 3] * 3, abs=0.06)

"""The unit encoder and the vocoder in another process: the same units and sounds, errors, and a process that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_parts import talkative, tones

from speechgpt.generation.sound_process import SoundProcess, SoundProcessError, _sendable, part_sound
from speechgpt.inference import ENCODER, VOCODER, SpeechGPT
from speechgpt.sampling import Sampling
from units.codebook import Units

SHORT = Sampling(1.0, seed=5, max_new_tokens=60)


@pytest.fixture(scope="module")
def alone(model_folder: Path) -> SpeechGPT:
    return talkative(SpeechGPT.from_pretrained(model_folder))


@pytest.fixture(scope="module")
def sound(model_folder: Path, alone: SpeechGPT) -> Iterator[SoundProcess]:
    process = SoundProcess(model_folder / ENCODER, model_folder / VOCODER, alone.codebook)
    yield process
    process.close()


@pytest.fixture
def one_thread(alone: SpeechGPT) -> Iterator[None]:
    """As in the process, so that sums are of the same order."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def said(alone: SpeechGPT, count: int = 30) -> Units:
    return Units(tuple(number % alone.codebook.size for number in range(count)), None, alone.codebook)


def test_units_and_sounds_are_those_of_this_process(sound: SoundProcess, alone: SpeechGPT, one_thread) -> None:
    wavs = [tones(0.4, 1), tones(0.9, 2)]
    assert sound.encode(wavs) == alone.encoder.encode_batch(wavs)
    [wav] = sound.decode([(said(alone), 0)])
    np.testing.assert_array_equal(wav, alone.vocoder.decode(said(alone)))


def test_streams_of_several_threads_are_those_of_this_process(
    sound: SoundProcess, alone: SpeechGPT, one_thread
) -> None:
    found: dict[int, np.ndarray] = {}

    def speak(number: int) -> None:
        stream = sound.open_stream()
        ids = said(alone, 12 + number).ids
        parts = [stream.push(Units(ids[at : at + 5], None, alone.codebook)) for at in range(0, len(ids), 5)]
        found[number] = np.concatenate([*parts, *stream.finish()])

    threads = [threading.Thread(target=speak, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, wav in found.items():
        np.testing.assert_array_equal(wav, alone.vocoder.decode(said(alone, 12 + number)))
    assert len(found) == 6


def test_errors_are_raised_where_they_were_asked(sound: SoundProcess, alone: SpeechGPT) -> None:
    with pytest.raises(ValueError, match="no units"):
        list(_pushed(sound, Units((), None, alone.codebook)).finish())
    stream = sound.open_stream(speaker=99)
    with pytest.raises(ValueError, match="99"):
        stream.push(said(alone))
    assert sound.encode([tones(0.4, 1)])  # and the next call is answered


def _pushed(sound: SoundProcess, units: Units):
    stream = sound.open_stream()
    stream.push(units)
    return stream


class Odd(ValueError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def test_an_error_that_cannot_be_sent_is_told_in_its_words() -> None:
    assert type(_sendable(Odd("a", "b"))) is ValueError and str(_sendable(Odd("a", "b"))) == "a b"
    kept = ValueError("c")
    assert _sendable(kept) is kept


def test_a_stream_that_is_left_is_dropped(sound: SoundProcess, alone: SpeechGPT) -> None:
    stream = _pushed(sound, said(alone))
    stream.close()
    with pytest.raises(KeyError):
        next(stream.finish())
    sound.open_stream().close()  # nothing was pushed


def test_a_process_that_was_killed_is_started_again(sound: SoundProcess, alone: SpeechGPT) -> None:
    stream = _pushed(sound, said(alone))
    killed = sound._worker._process.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(SoundProcessError, match="has ended"):
        for _ in range(1000):  # until the pipe says so
            stream.push(said(alone))
    assert sound.encode([tones(0.4, 1)]) == alone.encoder.encode_batch([tones(0.4, 1)])
    assert sound._worker._process.pid != killed
    stream.close()


def test_a_damaged_part_is_said_at_the_start(model_folder: Path, tmp_path: Path, alone: SpeechGPT) -> None:
    (tmp_path / "vocoder").mkdir()
    with pytest.raises(FileNotFoundError, match="vocoder"):
        SoundProcess(None, tmp_path / "vocoder", alone.codebook).close()


def test_it_ends_with_the_process_that_started_it(model_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "begin.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        "from speechgpt.inference import SpeechGPT\n"
        "if __name__ == '__main__':\n"
        "    gpt = SpeechGPT.from_pretrained(sys.argv[1])\n"
        "    gpt.use_sound_process()\n"
        "    print(gpt._sound._worker._process.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen(
        [sys.executable, str(script), str(model_folder)], stdout=subprocess.PIPE, text=True, env=environment
    ) as begun:
        assert begun.stdout is not None
        child = int(begun.stdout.readline())
        os.kill(child, 0)  # it runs
        begun.kill()
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("it goes on without its parent")


def test_a_model_answers_alike_through_it(model_folder: Path, alone: SpeechGPT, one_thread) -> None:
    gpt = talkative(SpeechGPT.from_pretrained(model_folder))
    part_sound(gpt, 4, wanted=True)
    gpt.share(4)
    question = tones(0.6, 3)
    for one, other in zip(gpt.stream(question, SHORT), alone.stream(question, SHORT), strict=True):
        assert (one.text, one.transcript) == (other.text, other.transcript)
        if other.wav is not None:
            np.testing.assert_array_equal(one.wav, other.wav)
    assert gpt.answer(question, SHORT).units == alone.answer(question, SHORT).units
    assert gpt.say("red dog", SHORT).units == alone.say("red dog", SHORT).units
    assert gpt._sound is not None
    gpt._sound.close()


class Plain:
    """A model that has no parts of its own."""

    name = "plain"


class Parted:
    name, device, parted = "parted", "cpu", 0

    def use_sound_process(self) -> None:
        self.parted += 1


def test_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="plain cannot"):
        part_sound(Plain(), 16, wanted=True)
    part_sound(Plain(), 16)
    for device, rows, threads, wanted, used in (
        ("cpu", 16, 2, None, 1),
        ("cpu", 16, 2, False, 0),
        ("cpu", 1, 2, None, 0),
        ("cpu", 16, 1, None, 0),
        ("cuda", 16, 2, None, 0),
        ("cuda", 1, 1, True, 1),
    ):
        model = Parted()
        model.device = device
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        part_sound(model, rows, wanted)
        assert model.parted == used, (device, rows, threads, wanted)

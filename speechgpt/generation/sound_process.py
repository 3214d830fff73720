"""The unit encoder and the vocoder in a process of their own, so that a language model on the same CPU is not held up.

Threads of one python take turns at every small operation: with many clients, encoding, drawing and making sound cost
each other more time than they take. Here sounds are encoded and made on one core, and tokens drawn on the others.

sound = SoundProcess(folder / "unit_encoder", folder / "vocoder", codebook)
units = sound.encode([wav])
stream = sound.open_stream()          # as UnitVocoder.open_stream
wav = stream.push(units[0])
"""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from units.codebook import Codebook, Units

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from units.vocoder.unit_vocoder import VocoderStream

Result = tuple[Any, Exception | None]


class SoundProcessError(RuntimeError):
    """The process has ended before it had answered."""


class SoundProcess:
    """Encodes wavs and makes sound of units, in another process. Threads may ask at once; they take turns.

    codebook: of encoder and vocoder. A process that has ended, such as one that was killed, is started again for the
    next call; what was asked of it fails.
    """

    def __init__(self, encoder: Path | None, vocoder: Path | None, codebook: Codebook, device: str = "cpu") -> None:
        """Start it, and open the parts.

        Args:
            encoder, vocoder: folders; None for a model without one.

        Raises: what opening them raises.
        """
        self.codebook = codebook
        self._parts = (encoder, vocoder, device)
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._worker = _Worker(self._parts)
        self._asked("ready")

    def encode(self, wavs: Sequence[np.ndarray]) -> list[Units]:
        """As UnitEncoder.encode_batch."""
        return self._asked("encode", list(wavs))

    def decode(self, spoken: Sequence[tuple[Units, int]]) -> list[np.ndarray]:
        """Wavs of units, each with its speaker, as UnitVocoder.decode_batch gives them."""
        return self._asked("decode", list(spoken))

    def open_stream(self, *, speaker: int = 0) -> SoundStream:
        """As UnitVocoder.open_stream."""
        return SoundStream(self._asked, next(self._numbers), speaker)

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _asked(self, what: str, *arguments: Any) -> Any:
        with self._lock:
            if self._worker.ended:
                self._worker = _Worker(self._parts)
            worker = self._worker
        found, error = worker.ask(what, arguments)
        if error is not None:
            raise error
        return found


class _Worker:
    """A process, and what was asked of it.

    ended: whether it answers no more.
    """

    def __init__(self, parts: tuple[Path | None, Path | None, str]) -> None:
        spawned = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
        self._pipe, there = spawned.Pipe()
        self._process = spawned.Process(target=_serve, args=(there, *parts), name="sound", daemon=True)
        self._process.start()
        there.close()
        self._sending, self._waiting = threading.Lock(), dict[int, SimpleQueue[Result]]()
        self._numbers, self.ended = itertools.count(), False
        threading.Thread(target=self._receive, name="sound", daemon=True).start()

    def ask(self, what: str, arguments: tuple[Any, ...]) -> Result:
        """What the process answers; blocks until then."""
        number, answer = next(self._numbers), SimpleQueue[Result]()
        self._waiting[number] = answer
        with self._sending, suppress(OSError):  # of a pipe that nobody reads
            self._pipe.send((number, what, arguments))
        if self.ended:  # perhaps after the last who waited were told
            self._tell_all()
        return answer.get()

    def close(self) -> None:
        self._process.terminate()
        self._process.join()

    def _receive(self) -> None:
        with suppress(Exception):  # the end of the pipe, or something that cannot be read
            while True:
                number, *result = self._pipe.recv()
                self._waiting.pop(number).put(tuple(result))
        self.ended = True
        self.close()
        self._tell_all()

    def _tell_all(self) -> None:
        """Give an error to all who wait."""
        error = SoundProcessError("the process that encodes and makes sound has ended; the next request starts another")
        while self._waiting:
            with suppress(KeyError):  # another thread was faster
                self._waiting.popitem()[1].put((None, error))


class SoundStream:
    """One utterance of the vocoder of a SoundProcess, made while its units come. See VocoderStream."""

    def __init__(self, asked: Callable[..., Any], number: int, speaker: int) -> None:
        self._asked, self._number, self._speaker = asked, number, speaker
        self._begun = False

    def push(self, units: Units) -> np.ndarray:
        """As VocoderStream.push."""
        self._begun = True
        return self._asked("push", self._number, self._speaker, units)

    def finish(self) -> Iterator[np.ndarray]:
        """As VocoderStream.finish."""
        while (wav := self._asked("finish", self._number)) is not None:
            yield wav
        self._begun = False

    def close(self) -> None:
        """Drop what the process keeps of it, if it was left before its end."""
        if self._begun:
            with suppress(SoundProcessError):  # it is gone with its process
                self._asked("drop", self._number)


def part_sound(model: Any, rows: int, wanted: bool | None = None) -> None:
    """Let a model encode and make sound in a process of its own, where that pays or is wanted.

    Args:
        model: any speechgpt.answers.SpeechModel; one that cannot is left as it is.
        rows: answers that it makes at once.
        wanted: by default on a CPU of several cores, for more than one row.

    Raises: ValueError if it is wanted of a model that cannot.
    """
    part = getattr(model, "use_sound_process", None)
    if part is None and wanted:
        raise ValueError(f"sound_process: {model.name} cannot encode and make sound in another process")
    if part is not None and (_pays(model.device, rows) if wanted is None else wanted):
        part()


def _pays(device: str, rows: int) -> bool:
    import torch

    return device == "cpu" and rows > 1 and torch.get_num_threads() > 1


# --- in the process


def _serve(pipe: Connection, encoder: Path | None, vocoder: Path | None, device: str) -> None:
    """Answer until nobody asks any more, as when the server is gone."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's
    torch.set_num_threads(1)
    parts: _Parts | None = None
    with suppress(EOFError, OSError):
        while True:
            number, what, arguments = pipe.recv()
            try:
                parts = parts or _Parts(encoder, vocoder, device)
                pipe.send((number, getattr(parts, what)(*arguments), None))
            except Exception as error:  # noqa: BLE001 - it is raised where it was asked
                pipe.send((number, None, _sendable(error)))


def _sendable(error: Exception) -> Exception:
    """An error, or one with its words, if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    except Exception:  # noqa: BLE001 - whatever its class does
        return ValueError(str(error)) if isinstance(error, ValueError) else RuntimeError(str(error))
    return error


class _Parts:
    """What the process has opened; its methods are what can be asked."""

    def __init__(self, encoder: Path | None, vocoder: Path | None, device: str) -> None:
        from units.encoder.unit_encoder import UnitEncoder
        from units.vocoder.unit_vocoder import UnitVocoder

        self._encoder = None if encoder is None else UnitEncoder.from_pretrained(encoder, device)
        self._vocoder = None if vocoder is None else UnitVocoder.from_pretrained(vocoder, device)
        self._streams: dict[int, VocoderStream] = {}
        self._endings: dict[int, Iterator[np.ndarray]] = {}

    def ready(self) -> None:
        """That it is answered says that the parts are open."""

    def encode(self, wavs: list[np.ndarray]) -> list[Units]:
        assert self._encoder is not None
        return self._encoder.encode_batch(wavs)

    def decode(self, spoken: list[tuple[Units, int]]) -> list[np.ndarray]:
        assert self._vocoder is not None
        units, speakers = zip(*spoken)
        return self._vocoder.decode_batch(units, speaker=speakers)

    def push(self, number: int, speaker: int, units: Units) -> np.ndarray:
        assert self._vocoder is not None
        if number not in self._streams:
            self._streams[number] = self._vocoder.open_stream(speaker=speaker)
        return self._streams[number].push(units)

    def finish(self, number: int) -> np.ndarray | None:
        """The next piece of the rest of a stream; None at its end, where it is dropped."""
        if number in self._streams:
            self._endings[number] = self._streams.pop(number).finish()
        wav = next(self._endings[number], None)
        if wav is None:
            del self._endings[number]
        return wav

    def drop(self, number: int) -> None:
        self._streams.pop(number, None)
        self._endings.pop(number, None)

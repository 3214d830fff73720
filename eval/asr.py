"""The judge: an outside recogniser that listens to spoken answers and knows nothing of the model or of the answer.

    judge = Judge("runs/toy/corpus/judge.jsgf")
    judge.transcribe(load_wav("answer.wav"))      # "that makes twelve"

pocketsphinx 5.1 with its own English model. It may hear any sentence of a grammar whose slots are open to their whole
word class, so a wrong number is heard as that number; it cannot hear a sentence outside of the grammar, so its word
error rates are those of a closed world. Its own error on real recordings is its floor, and is always reported beside.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from units.audio import SAMPLE_RATE

PAD = round(0.25 * SAMPLE_RATE)  # samples of faint noise on either side
NOISE = 1e-3  # standard deviation of that noise: digital silence has no log energy to normalise
PEAK = 0.7
SILENCE = 1e-4  # peak below which a wav holds no speech
FEW = 8  # wavs that are heard sooner than a second process has started


class JudgeError(RuntimeError):
    """The recogniser is missing or cannot read its grammar; the message says what to do."""


class Judge:
    """A recogniser of the sentences of one grammar.

    Args:
        grammar: a JSGF file with one public rule; every word is in the CMU dictionary.

    Raises:
        FileNotFoundError: no such grammar.
        JudgeError: pocketsphinx is not installed, or refuses the grammar.
    """

    def __init__(self, grammar: str | Path) -> None:
        self.grammar = Path(grammar)
        if not self.grammar.is_file():
            raise FileNotFoundError(
                f"no judge grammar at {self.grammar}; instruct_data.toy writes judge.jsgf into its corpus folder"
            )
        self._decoder = _open_decoder(self.grammar)

    @property
    def name(self) -> str:
        return f"pocketsphinx {metadata.version('pocketsphinx')}, sentence grammar"

    def transcribe(self, wav: np.ndarray | None) -> str:
        """Hear one wav (T,) at 16 kHz; "" for None, for silence, and for what fits no sentence of the grammar."""
        if wav is None or not len(wav) or np.abs(wav).max() < SILENCE:
            return ""
        self._decoder.start_utt()
        self._decoder.process_raw(_prepare(wav).tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr if heard is not None else ""

    def transcribe_all(self, wavs: Sequence[np.ndarray | None], workers: int | None = None) -> list[str]:
        """Hear many wavs, in order, in parallel; what each is heard as does not depend on the others.

        Args:
            workers: processes; None takes one for each core.
        """
        workers = workers or os.cpu_count() or 1
        if len(wavs) <= FEW or workers == 1:
            return [self.transcribe(wav) for wav in wavs]
        context = multiprocessing.get_context("spawn")
        with context.Pool(min(workers, len(wavs)), _start_worker, (self.grammar,)) as pool:
            return pool.map(_hear, wavs, chunksize=4)


def _prepare(wav: np.ndarray) -> np.ndarray:
    """wav (T,) -> int16 (PAD + T + PAD,), peak 0.7, in faint noise that is the same every time."""
    noise = np.random.default_rng(0).normal(0.0, NOISE, len(wav) + 2 * PAD)
    noise[PAD : PAD + len(wav)] += wav * (PEAK / np.abs(wav).max())
    return (np.clip(noise, -1.0, 1.0) * 32767).astype(np.int16)


def _open_decoder(grammar: Path):
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise JudgeError(
            "the judge needs pocketsphinx, which is not installed. Install the evaluation extra: pip install '.[eval]'"
        ) from error
    try:
        return Decoder(jsgf=str(grammar), wip=0.65, cmn="batch", bestpath=False, loglevel="FATAL")
    except (RuntimeError, ValueError) as error:
        raise JudgeError(
            f"pocketsphinx refuses {grammar} ({error}); it takes a JSGF file with one public rule, "
            "whose words all stand in the CMU dictionary"
        ) from error


_worker: Judge  # one a process: a decoder cannot be pickled


def _start_worker(grammar: Path) -> None:
    global _worker
    _worker = Judge(grammar)


def _hear(wav: np.ndarray | None) -> str:
    return _worker.transcribe(wav)

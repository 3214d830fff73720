"""The evaluation ASR: an outside recogniser that transcribes spoken answers and never sees the model or its text.

    asr = GrammarASR("runs/toy/corpus/asr_grammar.jsgf")
    asr.transcribe(load_wav("answer.wav"))      # "that makes twelve"

GrammarASR is pocketsphinx 5.1 with its own English model. It recognises only sentences of a grammar. Each slot of the
grammar is open to its whole word class, so a wrong number is recognised as that number; a sentence outside the grammar
cannot be recognised. Its word error rates are therefore those of a closed vocabulary. Its own error on the original
recordings is the lowest rate that any model could reach, and is always reported beside the model's.

For everything but the toy, use an open vocabulary: `--asr whisper:FOLDER_OR_HUB_ID` (eval/asr/whisper.py), or
`faster-whisper:FOLDER_OR_NAME` (eval/asr/faster_whisper.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from eval.asr.whisper import ASRNotInstalled
from units.audio import SAMPLE_RATE, SILENT
from units.runtime.pool import Workers

PAD = round(0.25 * SAMPLE_RATE)  # samples of faint noise before and after the wav
NOISE = 1e-3  # standard deviation of that noise: digital silence has no log energy to normalise
PEAK = 0.7
FEW = 8  # so many wavs are transcribed before a second process has started
CHUNK = 4  # wavs of one job


@runtime_checkable
class EvaluationASR(Protocol):
    """A speech recogniser that scores a model's speech."""

    @property
    def name(self) -> str:
        """Recogniser and version. It is written into the results."""

    def transcribe(self, wav: np.ndarray | None) -> str:
        """The words of a wav (T,) at 16 kHz; "" for None, for silence, and where no words are recognised."""

    def transcribe_all(self, wavs: Sequence[np.ndarray | None]) -> list[str]:
        """As transcribe, for many wavs, in order. No result depends on the other wavs."""

    def comparable(self, texts: Sequence[str | None]) -> list[str | None]:
        """References, or transcripts, as they are to be compared: Whisper writes 12 for twelve, so it rewrites both."""


class GrammarError(ValueError):
    """The recogniser cannot read its grammar."""


def open_asr(asr: str | None, grammar: str | Path | None = None, device: str = "cpu") -> EvaluationASR | None:
    """An evaluation ASR.

    Args:
        asr: `whisper:FOLDER_OR_HUB_ID` or `faster-whisper:FOLDER_OR_NAME`, with `#LANGUAGE` behind it for one that
            knows several, or `pocketsphinx`. None takes pocketsphinx if there is a grammar.
        grammar: for pocketsphinx.
        device: where a Whisper runs.

    Returns: None without either.
    Raises: ValueError for another name; as GrammarASR, WhisperASR and FasterWhisperASR.
    """
    if asr is None:
        return None if grammar is None else GrammarASR(grammar)
    kind, _, model = asr.partition(":")
    folder, _, language = model.partition("#")
    if kind == "whisper" and folder:
        from eval.asr.whisper import WhisperASR

        return WhisperASR(folder, language or None, device)
    if kind == "faster-whisper" and folder:
        from eval.asr.faster_whisper import FasterWhisperASR

        return FasterWhisperASR(folder, language or None, device)
    if asr == "pocketsphinx" and grammar is not None:
        return GrammarASR(grammar)
    raise ValueError(
        f"asr is {asr!r}; allowed: whisper:FOLDER_OR_HUB_ID, faster-whisper:FOLDER_OR_NAME, either with #LANGUAGE, or "
        "pocketsphinx with a grammar"
    )


class GrammarASR:
    """pocketsphinx, restricted to the sentences of one grammar.

    Args:
        grammar: a JSGF file with one public rule, whose words are all in the CMU dictionary.

    Raises:
        FileNotFoundError: no such grammar.
        ASRNotInstalled: pocketsphinx is not installed.
        GrammarError: pocketsphinx refuses the grammar.
    """

    def __init__(self, grammar: str | Path) -> None:
        self.grammar = Path(grammar)
        if not self.grammar.is_file():
            raise FileNotFoundError(
                f"no ASR grammar at {self.grammar}; instruct_data.toy writes asr_grammar.jsgf into its corpus folder"
            )
        self._decoder = _open_decoder(self.grammar)

    @property
    def name(self) -> str:
        """As EvaluationASR.name."""
        return f"pocketsphinx {metadata.version('pocketsphinx')}, sentence grammar"

    def transcribe(self, wav: np.ndarray | None) -> str:
        """The sentence of the grammar that fits a wav (T,) at 16 kHz; "" for None, for silence, and where none fits."""
        if wav is None or not len(wav) or np.abs(wav).max() < SILENT:
            return ""
        self._decoder.reinit_feat()  # its acoustic front end would otherwise remember the utterance before
        self._decoder.start_utt()
        self._decoder.process_raw(_prepare(wav).tobytes(), no_search=False, full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr if hypothesis is not None else ""

    def transcribe_all(self, wavs: Sequence[np.ndarray | None], workers: int | None = None) -> list[str]:
        """As transcribe, for many wavs, in order and in parallel.

        Args:
            workers: processes; None takes one per core.
        """
        if len(wavs) <= FEW or workers == 1:
            return [self.transcribe(wav) for wav in wavs]
        chunks = [(self.grammar, start, wavs[start : start + CHUNK]) for start in range(0, len(wavs), CHUNK)]
        with Workers(workers) as pool:
            texts = dict(pool.run(_transcribe_chunk, chunks))
        return [text for start in sorted(texts) for text in texts[start]]

    def comparable(self, texts: Sequence[str | None]) -> list[str | None]:
        """The texts as they are: a grammar spells numbers as the references do."""
        return list(texts)


def _prepare(wav: np.ndarray) -> np.ndarray:
    """wav (T,) -> int16 (PAD + T + PAD,) with peak 0.7, in faint noise that is the same every time."""
    noise = np.random.default_rng(0).normal(0.0, NOISE, len(wav) + 2 * PAD)
    noise[PAD : PAD + len(wav)] += wav * (PEAK / np.abs(wav).max())
    return (np.clip(noise, -1.0, 1.0) * 32767).astype(np.int16)


def _open_decoder(grammar: Path) -> Any:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise ASRNotInstalled(
            "the evaluation ASR needs pocketsphinx, which is not installed. Install the evaluation extra: "
            "pip install '.[eval]'"
        ) from error
    try:
        return Decoder(jsgf=str(grammar), wip=0.65, cmn="batch", bestpath=False, loglevel="FATAL")
    except (RuntimeError, ValueError) as error:
        raise GrammarError(
            f"pocketsphinx refuses {grammar} ({error}); it takes a JSGF file with one public rule, "
            "whose words are all in the CMU dictionary"
        ) from error


_recogniser = functools.lru_cache(maxsize=1)(GrammarASR)  # one per worker process, since a decoder cannot be pickled


def _transcribe_chunk(chunk: tuple[Path, int, Sequence[np.ndarray | None]]) -> tuple[int, list[str]]:
    """(grammar, place of the first wav, wavs) -> (place of the first wav, texts)."""
    grammar, start, wavs = chunk
    return start, [_recogniser(grammar).transcribe(wav) for wav in wavs]

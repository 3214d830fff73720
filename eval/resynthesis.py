r"""wav -> units -> wav, transcribed by the evaluation ASR: what units and vocoder lose before an LLM is trained.

    eval-resynthesis --encoder runs/toy/unit_encoder --vocoder runs/toy/vocoder \
        --manifest runs/toy/corpus/answers_unseen.jsonl --grammar runs/toy/corpus/asr_grammar.jsgf \
        --out runs/toy/results/resynthesis.json --limit 20

    eval-resynthesis --encoder ENC --vocoder VOC --manifest open.jsonl --out r.json --asr whisper:openai/whisper-tiny.en
    eval-resynthesis ... --picture docs/resynthesis.png    # also draws spectrograms of the first sentence

The manifest holds sentences in the answer voice that are in no training set. The exit code is 1 if the word error rate
is above `--gate`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.metrics import Score, accuracy, ratio, word_error_rate, words
from eval.results import Result, save_details, save_result
from eval.test_set import spread
from units.corpus.manifest import Utterance, read_manifest
from units.runtime.command import check_range, command
from units.runtime.settings import check_types

if TYPE_CHECKING:
    import numpy as np

    from eval.asr.recogniser import EvaluationASR

VERSION = 1
CEPSTRA = 13  # mel-cepstral coefficients; the zeroth (loudness) is left out, as is usual
GATE_FAILED = 1  # exit code


class NoUtterances(ValueError):
    """A manifest has no utterance that can be measured."""


@dataclass(frozen=True)
class ResynthesisOptions:
    """What is measured, and what passes."""

    speaker: str | None = None
    """Only this speaker's utterances of the manifest."""
    limit: int | None = None
    """The most utterances, evenly spaced over the manifest."""
    gate: float = 0.05
    """The highest word error rate that passes, with true and with predicted durations."""
    voice: int | str | None = None
    """Number or name of the vocoder's speaker, if it has several."""
    picture: Path | None = None
    """Draw spectrograms of the first utterance and its resynthesis into this file."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("limit", self.limit, 1)
        check_range("gate", self.gate, 0)
        if isinstance(self.voice, int):
            check_range("voice", self.voice, 0)


@command("eval-resynthesis", positional=False, flat=True)
def main(
    encoder: Path,
    vocoder: Path,
    manifest: Path,
    out: Path,
    grammar: Path | None = None,
    asr: str | None = None,
    options: ResynthesisOptions = ResynthesisOptions(),
) -> int:
    """Measure units and vocoder. Exit code 1: the word error rate is above the gate.

    Args:
        encoder: the unit encoder's folder
        vocoder: the vocoder's folder
        manifest: utterances with text that the vocoder was not trained on
        out: the results file; details are written beside it
        grammar: JSGF grammar of the evaluation ASR, for the toy
        asr: another evaluation ASR: whisper:FOLDER_OR_HUB_ID, for any speech
        options: what is measured, and what passes
    """
    from eval.asr.recogniser import open_asr
    from units.encoder.unit_encoder import UnitEncoder
    from units.runtime.provenance import commit, content_hash, fingerprint, machine
    from units.vocoder.unit_vocoder import UnitVocoder

    recogniser = open_asr(asr, grammar)
    if recogniser is None:
        raise ValueError("there is no evaluation ASR; give --asr whisper:FOLDER_OR_HUB_ID, or --grammar")
    utterances = choose(manifest, options.speaker, options.limit)
    unit_encoder, unit_vocoder = UnitEncoder.from_pretrained(encoder), UnitVocoder.from_pretrained(vocoder)
    if options.picture:
        draw(unit_encoder, unit_vocoder, utterances[0], options.voice, options.picture)
    figures, details = resynthesise(unit_encoder, unit_vocoder, recogniser, utterances, options.voice)
    hashed = {"manifest": manifest} | ({} if grammar is None else {"grammar": grammar})
    main_figure = figures.pop("wer_predicted")  # a model's answers come without durations
    result = Result(
        task="resynthesis",
        version=VERSION,
        metric="wer",
        higher_is_better=False,
        listener=recogniser.name,
        model=f"{vocoder.name} {fingerprint(vocoder)}",
        codebook=f"{unit_encoder.codebook.name} {unit_encoder.codebook.fingerprint}",
        corpus=f"{manifest.stem} {content_hash(hashed)}",
        commit=commit(),
        machine=machine(),
        device="cpu",
        limit=options.limit,
        n=main_figure.n,
        score=main_figure.value,
        standard_error=main_figure.standard_error,
        more=figures,
    )
    save_details(out.with_suffix(".details.jsonl"), details)
    save_result(out, result)
    return report(result, options.gate)


def choose(manifest: Path, speaker: str | None, limit: int | None) -> list[Utterance]:
    """Utterances of a manifest that have a text, of one speaker if given, evenly spaced down to `limit`.

    Raises: NoUtterances.
    """
    found = [u for u in read_manifest(manifest) if words(u.text) and speaker in (None, u.speaker)]
    if not found:
        of = f" of the speaker {speaker!r}" if speaker else ""
        raise NoUtterances(f"{manifest} has no utterance{of} with a text; word error rates need a text to compare with")
    return spread(found, limit)


def resynthesise(
    encoder: Any, vocoder: Any, asr: EvaluationASR, utterances: Sequence[Utterance], voice: int | str | None = None
) -> tuple[dict[str, Score], list[dict]]:
    """Resynthesise utterances and measure every figure.

    Args:
        encoder: has encode(wav) -> Units. vocoder: has decode(units, predict_durations) -> wav.
        utterances: each with its text.
        voice: number or name of the vocoder's speaker, if it has several.

    Returns: figures by name, and one record per utterance.
    """
    from units.audio import load_wav

    texts = [utterance.text for utterance in utterances]
    wavs = [load_wav(u.audio, u.start, u.duration) for u in utterances]
    units, encode_seconds = _timed(encoder.encode, wavs, "encoding")
    decode = vocoder.decode if voice is None else partial(vocoder.decode, speaker=voice)
    decoded, decode_seconds = _timed(decode, units, "decoding")
    predicted, _ = _timed(partial(decode, predict_durations=True), units, "decoding, durations predicted")
    recognised = {
        name: asr.transcribe_all(spoken)
        for name, spoken in (("original", wavs), ("true", decoded), ("predicted", predicted))
    }
    right = asr.comparable(texts)
    heard = {name: asr.comparable(got) for name, got in recognised.items()}
    figures = {f"wer_{name}": word_error_rate(right, got) for name, got in heard.items()}
    figures |= {f"exact_{name}": accuracy(right, got) for name, got in heard.items()}
    figures |= length_figures(wavs, predicted)
    distances = [mel_cepstral_distances(wav, made) for wav, made in zip(wavs, decoded)]
    figures["mel_cepstral_distance_db"] = ratio([float(d.sum()) for d in distances], [len(d) for d in distances])
    figures["units_per_second"] = ratio([len(u.ids) for u in units], _seconds(wavs))
    figures["encode_real_time_factor"] = ratio(encode_seconds, _seconds(wavs))
    figures["decode_real_time_factor"] = ratio(decode_seconds, _seconds(decoded))
    details = [
        {
            "id": utterance.id,
            "text": utterance.text,
            **{f"heard_{name}": got[i] for name, got in recognised.items()},
            "units": len(units[i].ids),
        }
        for i, utterance in enumerate(utterances)
    ]
    return figures, details


def length_figures(wavs: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> dict[str, Score]:
    """How far the lengths of wavs (T,) with predicted durations are from the recordings'.

    The error adds absolute differences. In the bias, too long and too short sentences cancel out.
    """
    seconds = _seconds(wavs)
    differences = [made - recorded for made, recorded in zip(_seconds(predicted), seconds)]
    return {
        "length_error_predicted": ratio([abs(difference) for difference in differences], seconds),
        "length_bias_predicted": ratio(differences, seconds),
    }


def mel_cepstral_distances(recorded: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Mel-cepstral distance of each 10 ms, in dB, between a recording and a wav made with its durations.

    The two are aligned frame by frame already, so there is no time warping.

    Args:
        recorded, made: wavs (T,); the longer one is cut.

    Returns: float (F,), F = T // 160 of the shorter.
    """
    import numpy as np
    import torch

    from units.vocoder.mel import MEL_HOP, MelSpectrogram

    samples = min(len(recorded), len(made)) // MEL_HOP * MEL_HOP
    both = torch.from_numpy(np.stack([recorded[:samples], made[:samples]]))
    return cepstral_distances(*MelSpectrogram()(both).numpy())


def cepstral_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Root mean square difference of log-mels (F, M) in dB over 13 cosines, loudness left out: (F,).

    Source: Kubichek 1993, Mel-cepstral distance measure for objective speech quality assessment.
    """
    import numpy as np
    from scipy.fft import dct

    cepstra = dct(one - other, norm="ortho")[:, 1 : 1 + CEPSTRA]
    return 20 / np.log(10) * np.linalg.norm(cepstra, axis=1) / np.sqrt(one.shape[1])


def _seconds(wavs: Sequence[np.ndarray]) -> list[float]:
    from units.audio import SAMPLE_RATE

    return [len(wav) / SAMPLE_RATE for wav in wavs]


def _timed(function: Any, inputs: Sequence, name: str) -> tuple[list, list[float]]:
    """Outputs of a function and its seconds, one call per input; the first input is run twice, to warm up."""
    from units.runtime.progress import progress

    function(inputs[0])
    outputs, seconds = [], []
    for value in progress(inputs, desc=name, unit="utterances"):
        start = time.perf_counter()
        outputs.append(function(value))
        seconds.append(time.perf_counter() - start)
    return outputs, seconds


def draw(encoder: Any, vocoder: Any, utterance: Utterance, voice: int | str | None, path: Path) -> Path:
    """Draw spectrograms of an utterance and of its resynthesis, side by side."""
    from eval.report.plots import draw_exchange
    from units.audio import load_wav

    wav = load_wav(utterance.audio, utterance.start, utterance.duration)
    made = vocoder.decode(encoder.encode(wav), speaker=voice or 0)
    return draw_exchange(wav, made, (f"recorded: {utterance.text}", "from its units"), path)


def report(result: Result, gate: float) -> int:
    """Print the figures and whether they pass the gate. Returns the exit code."""
    value = {name: score.value for name, score in result.more.items()}
    print(f"word error rate on {result.n} sentences that are not in the vocoder's training set, by {result.listener}:")
    print(f"  original recordings   {value['wer_original']:.4f}")
    print(f"  true durations        {value['wer_true']:.4f}")
    print(f"  predicted durations   {result.score:.4f}")
    print(
        f"  {value['units_per_second']:.1f} units/s; predicted lengths are off by "
        f"{value['length_error_predicted']:.1%}, in total by {value['length_bias_predicted']:+.1%}"
    )
    print(f"  mel-cepstral distance with true durations: {value['mel_cepstral_distance_db']:.2f} dB")
    encode, decode = value["encode_real_time_factor"], value["decode_real_time_factor"]
    print(f"  a second of audio takes {encode:.4f} s to encode and {decode:.4f} s to decode")
    worst = max(1.0 if rate is None else rate for rate in (result.score, value["wer_true"]))
    if worst > gate:
        print(
            f"GATE FAILED: word error rate {worst:.4f} is above {gate}. A language model cannot speak better than its "
            "vocoder: train the vocoder longer, or change the units, before training the stages."
        )
        return GATE_FAILED
    print(f"gate passed: {worst:.4f} is at most {gate}")
    return 0


if __name__ == "__main__":
    main.cli()

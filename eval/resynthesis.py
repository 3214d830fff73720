r"""wav -> units -> wav, heard by the judge: what the units and the vocoder lose, before any language model is trained.

    python -m eval.resynthesis --encoder runs/toy/unit_encoder --vocoder runs/toy/vocoder \
        --manifest runs/toy/corpus/answers_unseen.jsonl --grammar runs/toy/corpus/judge.jsgf \
        --out runs/toy/results/resynthesis.json

    python -m eval.resynthesis ... --picture docs/resynthesis.png    # spectrograms of the first sentence as well

The manifest holds the answer voice saying sentences that no training heard. Beyond `--gate` the exit code is 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from eval.asr import Judge
from eval.corpus import spread
from eval.metrics import Score, accuracy, ratio, word_error_rate, words
from eval.results import Result, save_details, save_result
from units.audio import SAMPLE_RATE, load_wav
from units.corpus.manifest import Utterance, read_manifest
from units.runtime.progress import progress
from units.runtime.provenance import commit, content_hash, fingerprint, machine

VERSION = 1
CEPSTRA = 13  # mel-cepstral coefficients, the zeroth (loudness) left out, as is usual


def resynthesise(
    encoder, vocoder, judge: Judge, utterances: Sequence[Utterance], voice: int | str | None = None
) -> tuple[dict[str, Score], list[dict]]:
    """Measure every figure of a set of utterances.

    Args:
        encoder: encode(wav) -> Units. vocoder: decode(units, predict_durations) -> wav.
        utterances: each with its text.
        voice: number or name of the vocoder's speaker, where it has several.

    Returns: figures by name, and one record an utterance.
    """
    texts = [utterance.text for utterance in utterances]
    wavs = [load_wav(u.audio, u.start, u.duration) for u in utterances]
    units, encode_seconds = _timed(encoder.encode, wavs, "encoding")
    decode = vocoder.decode if voice is None else partial(vocoder.decode, speaker=voice)
    kept, decode_seconds = _timed(decode, units, "decoding")
    predicted, _ = _timed(partial(decode, predict_durations=True), units, "decoding, durations predicted")
    heard = {
        name: judge.transcribe_all(spoken)
        for name, spoken in (("original", wavs), ("true", kept), ("predicted", predicted))
    }
    seconds = [len(wav) / SAMPLE_RATE for wav in wavs]
    figures = {f"wer_{name}": word_error_rate(texts, got) for name, got in heard.items()}
    figures |= {f"exact_{name}": accuracy(texts, got) for name, got in heard.items()}
    figures["length_error_predicted"] = ratio(
        [abs(len(p) - len(w)) / SAMPLE_RATE for p, w in zip(predicted, wavs)], seconds
    )
    # signed: what is missing of one sentence and too much of another cancel out
    figures["length_bias_predicted"] = ratio(
        [(len(p) - len(w)) / SAMPLE_RATE for p, w in zip(predicted, wavs)], seconds
    )
    distances = [mel_cepstral_distances(wav, made) for wav, made in zip(wavs, kept)]
    figures["mel_cepstral_distance_db"] = ratio([float(d.sum()) for d in distances], [len(d) for d in distances])
    figures["units_per_second"] = ratio([len(u.ids) for u in units], seconds)
    figures["encode_real_time_factor"] = ratio(encode_seconds, seconds)
    figures["decode_real_time_factor"] = ratio(decode_seconds, [len(wav) / SAMPLE_RATE for wav in kept])
    details = [
        {
            "id": u.id,
            "text": u.text,
            **{f"heard_{name}": got[i] for name, got in heard.items()},
            "units": len(units[i].ids),
        }
        for i, u in enumerate(utterances)
    ]
    return figures, details


def mel_cepstral_distances(recorded: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Mel-cepstral distance of each 10 ms, in dB, of a recording and of a wav made with its durations.

    The two lie frame on frame, so nothing is warped to fit.

    Args:
        recorded, made: wavs (T,); what one has more than the other is left out.

    Returns: float (F,), F = T // 160 of the shorter.
    """
    import torch

    from units.vocoder.mel import MEL_HOP, MelSpectrogram

    samples = min(len(recorded), len(made)) // MEL_HOP * MEL_HOP
    both = torch.from_numpy(np.stack([recorded[:samples], made[:samples]]))
    return cepstral_distances(*MelSpectrogram()(both).numpy())


def cepstral_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Root mean square difference of log-mels (F, M) in dB, loudness and all beyond 13 cosines left out: (F,).

    Source: Kubichek 1993, Mel-cepstral distance measure for objective speech quality assessment.
    """
    from scipy.fft import dct

    cepstra = dct(one - other, norm="ortho")[:, 1 : 1 + CEPSTRA]
    return 20 / np.log(10) * np.linalg.norm(cepstra, axis=1) / np.sqrt(one.shape[1])


def _timed(function, inputs: Sequence, name: str) -> tuple[list, list[float]]:
    """Outputs and seconds of one call an input; the first input goes through once more beforehand, to warm up."""
    function(inputs[0])
    outputs, seconds = [], []
    for value in progress(inputs, desc=name, unit="utterances"):
        start = time.perf_counter()
        outputs.append(function(value))
        seconds.append(time.perf_counter() - start)
    return outputs, seconds


def choose(manifest: Path, speaker: str | None, limit: int | None) -> list[Utterance]:
    """Utterances of the manifest with a text, of one speaker if given, evenly spaced down to `limit`.

    Raises: ValueError if none is left.
    """
    found = [u for u in read_manifest(manifest) if words(u.text) and speaker in (None, u.speaker)]
    if not found:
        of = f" of the speaker {speaker!r}" if speaker else ""
        raise ValueError(f"{manifest} has no utterance{of} with a text; the judge needs a text to compare with")
    return spread(found, limit)


def main(
    encoder: Path,
    vocoder: Path,
    manifest: Path,
    grammar: Path,
    out: Path,
    speaker: str | None = None,
    limit: int | None = None,
    gate: float = 0.05,
    voice: int | str | None = None,
    picture: Path | None = None,
) -> int:
    """Measure units and vocoder; exit code 1 if the word error rate is above the gate.

    Args:
        encoder: the unit encoder's folder
        vocoder: the vocoder's folder
        manifest: utterances with text that the vocoder was not trained on
        grammar: the judge's JSGF grammar
        out: the results file to write; details go beside it
        speaker: only this speaker's utterances
        limit: at most so many utterances
        gate: the highest word error rate that passes, with true and with predicted durations
        voice: number or name of the vocoder's speaker, where it has several
        picture: where to draw the spectrograms of the first utterance and of its resynthesis, if anywhere
    """
    from units.encoder.unit_encoder import UnitEncoder
    from units.vocoder.unit_vocoder import UnitVocoder

    judge = Judge(grammar)
    ears, mouth = UnitEncoder.from_pretrained(encoder), UnitVocoder.from_pretrained(vocoder)
    utterances = choose(manifest, speaker, limit)
    if picture:
        draw(ears, mouth, utterances[0], voice, picture)
    figures, details = resynthesise(ears, mouth, judge, utterances, voice)
    main_figure = figures.pop("wer_predicted")  # an answer's units come without durations
    result = Result(
        task="resynthesis", version=VERSION, metric="wer", higher_is_better=False, listener=judge.name,
        model=f"{vocoder.name} {fingerprint(vocoder)}", codebook=f"{ears.codebook.name} {ears.codebook.fingerprint}",
        corpus=f"{manifest.stem} {content_hash({'manifest': manifest, 'grammar': grammar})}", commit=commit(),
        machine=machine(), device="cpu", limit=limit, n=main_figure.n, score=main_figure.value,
        standard_error=main_figure.standard_error, more=figures,
    )  # fmt: skip
    save_details(out.with_suffix(".details.jsonl"), details)
    save_result(out, result)
    return report(result, gate)


def draw(encoder, vocoder, utterance: Utterance, voice: int | str | None, path: Path) -> Path:
    """Spectrograms of an utterance and of its resynthesis, side by side."""
    from eval.report.plots import draw_exchange

    wav = load_wav(utterance.audio, utterance.start, utterance.duration)
    made = vocoder.decode(encoder.encode(wav), speaker=voice or 0)
    return draw_exchange(wav, made, (f"recorded: {utterance.text}", "from its units"), path)


def report(result: Result, gate: float) -> int:
    """Print the figures and the verdict; returns the exit code."""
    more = result.more
    print(f"word error rate on {result.n} sentences that the vocoder never heard, by {result.listener}:")
    print(f"  original recordings   {more['wer_original'].value:.4f}")
    print(f"  true durations        {more['wer_true'].value:.4f}")
    print(f"  predicted durations   {result.score:.4f}")
    value = {name: score.value for name, score in more.items()}
    print(
        f"  {value['units_per_second']:.1f} units/s; predicted lengths are off by {value['length_error_predicted']:.1%}, "
        f"in total by {value['length_bias_predicted']:+.1%}"
    )
    print(f"  mel-cepstral distance, durations kept: {value['mel_cepstral_distance_db']:.2f} dB")
    encode, decode = value["encode_real_time_factor"], value["decode_real_time_factor"]
    print(f"  a second of audio takes {encode:.4f} s to encode and {decode:.4f} s to decode")
    rates = (result.score, more["wer_true"].value)
    worst = max(1.0 if rate is None else rate for rate in rates)
    if worst > gate:
        print(
            f"GATE FAILED: word error rate {worst:.4f} is above {gate}. A language model cannot speak better than its "
            "vocoder: train the vocoder longer, or change the units, before training the stages."
        )
        return 1
    print(f"gate passed: {worst:.4f} is at most {gate}")
    return 0


if __name__ == "__main__":
    from jsonargparse import auto_cli

    sys.exit(auto_cli(main, as_positional=False))

"""How soon a model speaks, by the units that its vocoder waits for (omega), and what its decoder costs.

    python -m variants.llama_omni.latency --model runs/toy/omni --corpus runs/toy/corpus --out runs/toy/omni_results

The first sound is timed from the end of the question: encoder, adaptor, LLM, decoder, vocoder. The word error rate of
`islands` is that of chunks that are vocoded alone, as the published code does; here they are joined exactly, so their
size changes nothing but the time. The table's form is that of table 3 of the paper (arXiv 2409.06666).
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from units.runtime.command import check_range, command

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from eval.asr.recogniser import EvaluationASR
    from variants.llama_omni.inference import LlamaOmni
    from variants.llama_omni.network.ctc_decoder import CtcDecoder
    from variants.llama_omni.network.decoder import SpeechDecoder

TOKENS = 100  # of the decoding-time table
FILE = "latency.json"


@command("llama-omni-latency", positional=False)
def main(
    model: Path,
    corpus: Path,
    out: Path,
    omegas: str = "10,20,40,60,80,100",
    limit: int = 10,
    device: str = "cpu",
    grammar: Path | None = None,
    asr: str | None = None,
) -> None:
    """Measure how soon a model speaks.

    Args:
        model: a LLaMA-Omni folder that speaks
        corpus: a folder with test.jsonl, or a manifest, of questions
        out: the folder for latency.json and latency.txt
        omegas: units that the vocoder waits for, separated by commas
        limit: questions, evenly spaced
        device: where the model runs, such as cpu or cuda
        grammar: JSGF grammar of the evaluation ASR; default: the corpus folder's
        asr: the evaluation ASR, as for eval-run; default: pocketsphinx if there is a grammar
    """
    from eval.asr.recogniser import open_asr
    from eval.test_set import TestSet
    from units.runtime.files.atomic import written_whole
    from variants.llama_omni.inference import LlamaOmni

    sizes = _sizes(omegas)
    check_range("limit", limit, 1)
    test_set = TestSet(corpus, grammar, limit)
    recogniser = open_asr(asr, test_set.grammar, device)
    omni = LlamaOmni.from_pretrained(model, device)
    if not omni.speaks:
        raise ValueError(f"{model} has no speech decoder, or no vocoder")
    wavs = [item.wav() for item in test_set.test]
    found = measure(omni, wavs, sizes, recogniser)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in ((FILE, json.dumps(found, indent=1) + "\n"), ("latency.txt", table(found))):
        with written_whole(out / name) as file:
            file.write(text)
    print(table(found), end="")


def _sizes(omegas: str) -> list[int]:
    """The numbers of an option. Raises ValueError if one is no whole number of at least 1."""
    parts = [part.strip() for part in omegas.split(",")]
    if wrong := [part for part in parts if not (part.isascii() and part.isdigit())]:
        raise ValueError(f"--omegas is {omegas!r}, with {wrong[0]!r}; it is whole numbers with commas, such as 10,40")
    sizes = [int(part) for part in parts]
    for size in sizes:
        check_range("omegas", size, 1)
    return sizes


def measure(
    omni: LlamaOmni, wavs: list[np.ndarray], omegas: list[int], recogniser: EvaluationASR | None
) -> dict[str, Any]:
    """Latency by omega, and costs of the decoder.

    Args:
        wavs: questions.
    """
    _first_sound(omni, wavs[0])  # opens what is opened at first use
    rows = []
    for omega in omegas:
        omni.omega = omega
        timed = [_first_sound(omni, wav) for wav in wavs]
        spoken = [one for one in timed if one["wav"] is not None]
        row: dict[str, Any] = {"omega": omega, **_means(spoken)}
        if recogniser is not None:
            omni.join = "islands"
            islands = [_first_sound(omni, wav) for wav in wavs]
            omni.join = "exact"
            row |= {"wer": _wer(recogniser, timed), "wer_islands": _wer(recogniser, islands)}
        rows.append(row)
    whole = [_whole(omni, wav) for wav in wavs]
    offline: dict[str, Any] = {"total_ms": 1000 * statistics.mean(one["total"] for one in whole)}
    if recogniser is not None:
        offline["wer"] = _wer(recogniser, whole)
    assert omni.model.decoder is not None
    return {
        "model": omni.name,
        "questions": len(wavs),
        "asr": None if recogniser is None else recogniser.name,
        "omegas": rows,
        "offline": offline,
        "decoder": decoder_costs(omni.model.decoder),
    }


def _first_sound(omni: LlamaOmni, wav: np.ndarray) -> dict[str, Any]:
    """One answer, streamed: seconds to the first sound and its parts, and the longest time that a listener waits."""
    usual, speech = omni.open_speech, omni.open_speech()
    assert speech is not None
    omni.open_speech = lambda: speech  # type: ignore[method-assign]
    omni._states.clear()  # the question is encoded each time
    began = time.perf_counter()
    found: dict[str, Any] = {"wav": None, "text": "", "starved": 0.0}
    heard_until = 0.0
    try:
        for piece in omni.stream(wav):
            now = time.perf_counter() - began
            if piece.wav is not None and len(piece.wav):
                seconds = len(piece.wav) / omni.sample_rate
                if "total" not in found:
                    found |= {"total": now, **speech.seconds}
                    heard_until = now + seconds
                else:
                    found["starved"] = max(found["starved"], now - heard_until)
                    heard_until = max(now, heard_until) + seconds
            if piece.answer is not None:
                found |= {"wav": piece.answer.wav, "text": piece.answer.text or ""}
    finally:
        omni.open_speech = usual  # type: ignore[method-assign]
    return found


def _whole(omni: LlamaOmni, wav: np.ndarray) -> dict[str, Any]:
    """One answer, whole."""
    omni._states.clear()
    began = time.perf_counter()
    answer = omni.answer(wav)
    return {"total": time.perf_counter() - began, "wav": answer.wav, "text": answer.text or ""}


def _means(timed: list[dict[str, Any]]) -> dict[str, Any]:
    if not timed:
        return {"spoken": 0}
    mean = {name: statistics.mean(one[name] for one in timed) for name in ("total", "decoder", "vocoder", "starved")}
    words = sum(len(one["text"].split()) for one in timed)
    return {
        "spoken": len(timed),
        "llm_ms": 1000 * (mean["total"] - mean["decoder"] - mean["vocoder"]),
        "decoder_ms": 1000 * mean["decoder"],
        "vocoder_ms": 1000 * mean["vocoder"],
        "total_ms": 1000 * mean["total"],
        "starved_ms": 1000 * max(one["starved"] for one in timed),
        "words_a_second": words / (sum(len(one["wav"]) for one in timed) / 16_000),
    }


def _wer(recogniser: EvaluationASR, timed: list[dict[str, Any]]) -> float | None:
    """Word error rate of the sound against the model's own text."""
    from eval.metrics import word_error_rate

    texts = recogniser.comparable([one["text"] for one in timed])
    heard = recogniser.comparable(recogniser.transcribe_all([one["wav"] for one in timed]))
    return word_error_rate(texts, heard).value


def decoder_costs(decoder: SpeechDecoder) -> dict[str, float]:
    """What a token costs the decoder, in ms: the first, the tenth and the hundredth of an answer with its cache (of an
    autoregressive one the mean of the tokens that are read together, since the last of them costs all), and how many
    times longer 100 tokens take if a CTC decoder decodes all frames again after each token, as the published code does.
    """
    import torch

    from variants.llama_omni.network.ctc_decoder import CtcDecoder

    device = decoder.output_proj.weight.device
    states = torch.randn(TOKENS, decoder.made_for.hidden, generator=torch.manual_seed(0)).to(device)
    costs: list[list[float]] = []
    with _endless(decoder):
        for _ in range(4):  # the first warms up
            stream, row = decoder.stream(), []
            for state in states:
                began = time.perf_counter()
                stream.push(state, state)
                row.append(time.perf_counter() - began)
            costs.append(row)
    tokens = [1000 * min(one[place] for one in costs[1:]) for place in range(TOKENS)]
    together = min(decoder.shape.read, TOKENS) if decoder.shape.kind == "autoregressive" else 1
    starts = (0, max(10 - together, 0), TOKENS - together)
    first, tenth, last = (statistics.mean(tokens[start : start + together]) for start in starts)
    found = {"first_ms": first, "tenth_ms": tenth, "hundredth_ms": last, "tenth_to_first": tenth / first}
    if isinstance(decoder, CtcDecoder):
        found["recomputed_to_cached"] = _recomputed(decoder, states) / sum(tokens)
    return found


@contextlib.contextmanager
def _endless(decoder: SpeechDecoder) -> Iterator[None]:
    """Keep an autoregressive decoder from ending the answer, which to random states it would soon do."""
    import torch

    from variants.llama_omni.network.autoregressive import AutoregressiveDecoder

    if not isinstance(decoder, AutoregressiveDecoder):
        yield
        return
    ends = decoder.output_proj.bias.detach()[decoder.end :]
    kept = ends.clone()
    with torch.no_grad():
        ends.fill_(torch.finfo(ends.dtype).min)
        try:
            yield
        finally:
            ends.copy_(kept)


def _recomputed(decoder: CtcDecoder, states: Tensor) -> float:
    """Milliseconds of decoding all frames again after each token (A, H)."""
    import torch

    with torch.inference_mode():
        tokens = decoder.tokens(states, states)
        began = time.perf_counter()
        for count in range(1, len(states) + 1):
            decoder(tokens[:count], [count], [count * decoder.shape.upsample]).argmax(-1).tolist()
        return 1000 * (time.perf_counter() - began)


def table(found: dict[str, Any]) -> str:
    """The figures as lines of text."""
    names = ("llm_ms", "decoder_ms", "vocoder_ms", "total_ms", "starved_ms", "wer", "wer_islands", "words_a_second")
    titles = (
        "omega",
        "LLM ms",
        "decoder ms",
        "vocoder ms",
        "first sound ms",
        "starved ms",
        "WER",
        "islands",
        "words/s",
    )
    lines: list[tuple[str, ...]] = [titles]
    for row in found["omegas"]:
        lines.append((str(row["omega"]), *(_shown(name, row.get(name)) for name in names)))
    offline = found["offline"]
    lines.append(
        ("offline", "", "", "", _shown("total_ms", offline["total_ms"]), "", _shown("wer", offline.get("wer")), "", "")
    )
    widths = [max(len(line[place]) for line in lines) for place in range(len(titles))]
    text = "".join("  ".join(part.rjust(width) for part, width in zip(line, widths)) + "\n" for line in lines)
    costs = found["decoder"]
    text += (
        f"decoder: {costs['first_ms']:.1f} ms for the first token, {costs['tenth_ms']:.1f} for the tenth, "
        f"{costs['hundredth_ms']:.1f} for the hundredth"
    )
    if again := costs.get("recomputed_to_cached"):
        text += f"; all frames anew after each token take {again:.1f} times as long for 100 tokens"
    return text + "\n"


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if name.endswith("_ms") else f"{value:.3f}" if name.startswith("wer") else f"{value:.2f}"


if __name__ == "__main__":
    main.cli()

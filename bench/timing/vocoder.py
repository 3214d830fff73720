"""Every way of turning units into audio, timed in turns; the command is bench.vocoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bench.options import VocoderOptions
from units.audio import FRAME_RATE, SAMPLE_RATE
from units.codebook import Codebook, Units
from units.runtime.provenance import commit, machine
from units.vocoder.heads.configs import HifiGanConfig, VocosConfig
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.published import config_of
from units.vocoder.unit_vocoder import UnitVocoder

FRAMES_PER_UNIT = 2  # de-duplicated units of read speech last about 40 ms
CHUNKS = (10, 40, 100)  # units


@dataclass(frozen=True)
class Pass:
    """One way of decoding the whole set once: work until the first audio of each utterance, and in all."""

    first: list[float]  # seconds
    total: float  # seconds


def draw_set(codebook: Codebook, utterances: int, seconds: float) -> list[Units]:
    """Random utterances of half to one and a half times the mean length."""
    draw = np.random.default_rng(0)
    counts = draw.uniform(0.5, 1.5, utterances) * seconds * FRAME_RATE / FRAMES_PER_UNIT
    rows = [draw.integers(codebook.size, size=max(1, round(count))).tolist() for count in counts]
    return [Units(tuple(row), (FRAMES_PER_UNIT,) * len(row), codebook) for row in rows]


def baseline(vocoder: UnitVocoder, device: str) -> tuple[str, Callable[[Units], object]]:
    """The baseline's name, and its function from units to audio."""
    settings = vocoder.settings
    assert isinstance(vocoder.network, HifiGan) and isinstance(settings, HifiGanConfig)
    speakers = torch.zeros(1, dtype=torch.long, device=device)
    try:
        from fairseq.models.text_to_speech.codehifigan import CodeGenerator
    except ImportError:
        network = HifiGan(vocoder.codebook.size, settings)
        network.load_state_dict(vocoder.network.state_dict())
        network.normalise_weights()
        network.eval().to(device)
        return "same network, weight norm on", lambda units: network(_frames(units, device), speakers).cpu()
    theirs = CodeGenerator(config_of(vocoder.network.config, vocoder.codebook.size)).eval().to(device)
    return "fairseq CodeGenerator", lambda units: theirs(code=_frames(units, device)).cpu()


def _frames(units: Units, device: str) -> torch.Tensor:
    return torch.tensor([units.frames()], device=device)


def one_at_a_time(speak: Callable[[Units], object]) -> Callable[[Sequence[Units]], Pass]:
    def run(batch: Sequence[Units]) -> Pass:
        began, seconds = time.perf_counter(), []
        with torch.no_grad():
            for units in batch:
                start = time.perf_counter()
                speak(units)
                seconds.append(time.perf_counter() - start)
        return Pass(seconds, time.perf_counter() - began)

    return run


def batched(vocoder: UnitVocoder) -> Callable[[Sequence[Units]], Pass]:
    def run(batch: Sequence[Units]) -> Pass:
        began = time.perf_counter()
        vocoder.decode_batch(batch)
        total = time.perf_counter() - began
        return Pass([total], total)

    return run


def streamed(vocoder: UnitVocoder, chunk: int) -> Callable[[Sequence[Units]], Pass]:
    def run(batch: Sequence[Units]) -> Pass:
        began, firsts = time.perf_counter(), []
        for units in batch:
            ids, durations = units.ids, units.durations or ()
            pieces = [
                Units(ids[i : i + chunk], durations[i : i + chunk], units.codebook) for i in range(0, len(ids), chunk)
            ]
            start = time.perf_counter()
            for i, _ in enumerate(vocoder.stream(pieces)):
                firsts += [] if i else [time.perf_counter() - start]
        return Pass(firsts, time.perf_counter() - began)

    return run


def ways(codebook: Codebook, channels: int, device: str) -> dict[str, Callable[[Sequence[Units]], Pass]]:
    """Every way by name, the baseline first."""
    torch.manual_seed(0)
    ours = UnitVocoder(codebook, HifiGanConfig(upsample_initial_channel=channels)).eval().to(device)
    vocos = UnitVocoder(codebook, VocosConfig(width=channels)).eval().to(device)
    half = UnitVocoder(codebook, HifiGanConfig(upsample_initial_channel=channels)).eval().to(device)
    half.network.precision = torch.bfloat16
    name, speak = baseline(ours, device)
    found = {f"baseline: {name}, one at a time": one_at_a_time(speak)}
    for title, vocoder in (("hifigan", ours), ("hifigan in bfloat16, not exact", half), ("vocos", vocos)):
        found[f"{title}, one at a time"] = one_at_a_time(vocoder.decode)
        found[f"{title}, batched"] = batched(vocoder)
        if vocoder is not half:
            for chunk in CHUNKS:
                found[f"{title}, {chunk} units streamed (+{vocoder.delay_ms:.0f} ms of audio held back)"] = streamed(
                    vocoder, chunk
                )
    return found


def compare(options: VocoderOptions) -> dict[str, dict[str, float]]:
    """Time every way, print the table, and return its figures by name."""
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 for all of them
    codebook = Codebook("bench", "none", 0, options.units, FRAME_RATE, "none", "bench")
    batch = draw_set(codebook, options.utterances, options.seconds)
    audio = sum(sum(one.durations or ()) for one in batch) / FRAME_RATE
    runs = ways(codebook, options.channels, options.device)
    passes: dict[str, list[Pass]] = {name: [] for name in runs}
    for run in runs.values():  # the first pass prepares kernels
        run(batch)
    for _ in range(options.rounds):
        for name, run in runs.items():
            passes[name].append(run(batch))
    size = f"{options.channels} channels, {options.rounds} rounds"
    print(f"{options.utterances} utterances, {audio:.1f} s of audio at {SAMPLE_RATE} Hz, {size}")
    print(f"{machine(options.device)}, {options.device}, {options.threads} threads, commit {commit()}")
    rates = {name: audio / float(np.median([one.total for one in found])) for name, found in passes.items()}
    baseline_rate = next(iter(rates.values()))
    figures = {}
    for name, rate in rates.items():
        first = 1000 * float(np.median([value for one in passes[name] for value in one.first]))
        times = rate / baseline_rate
        figures[name] = {"times_real_time": rate, "times_baseline": times, "first_sound_ms": first}
        print(f"{name:66} {rate:8.1f} x real time  {times:6.2f} x baseline  first audio after {first:6.0f} ms")
    return figures

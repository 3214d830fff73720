"""How fast units become sound at the published vocoder's full size, against the same network as it is usually run.

    python -m bench.vocoder --channels 64 --rounds 1 --seconds 2     # a few seconds, to see that it runs
    python -m bench.vocoder                                          # about five minutes on two cores
    python -m bench.vocoder --device cuda

The baseline is fairseq's own CodeHiFiGAN where fairseq is installed, else the same network with its weight norm left
on; one utterance at a time, as every ancestor runs it. All ways speak the same units, with random weights, in turns: a
round is one pass of each, and a figure is the median over rounds. Prints seconds of sound per second of work.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from units.audio import FRAME_RATE, SAMPLE_RATE
from units.codebook import Codebook, Units
from units.runtime.atomic import written_whole
from units.runtime.provenance import commit, machine
from units.vocoder.heads.configs import HifiGanConfig, VocosConfig
from units.vocoder.heads.hifigan import HifiGan
from units.vocoder.published import config_of
from units.vocoder.unit_vocoder import UnitVocoder

FRAMES_A_UNIT = 2  # de-duplicated units of read speech last about 40 ms
CHUNKS = (10, 40, 100)  # units


@dataclass(frozen=True)
class Pass:
    """One way of speaking the whole set, once: work until the first sound of each utterance, and until the last."""

    first: list[float]  # seconds
    total: float  # seconds


def draw_set(codebook: Codebook, utterances: int, seconds: float) -> list[Units]:
    """Random utterances of half to one and a half times the mean length."""
    draw = np.random.default_rng(0)
    counts = draw.uniform(0.5, 1.5, utterances) * seconds * FRAME_RATE / FRAMES_A_UNIT
    rows = [draw.integers(codebook.size, size=max(1, round(count))).tolist() for count in counts]
    return [Units(tuple(row), (FRAMES_A_UNIT,) * len(row), codebook) for row in rows]


def baseline(vocoder: UnitVocoder, device: str) -> tuple[str, Callable[[Units], object]]:
    """Its name, and how it speaks one utterance."""
    assert isinstance(vocoder.network, HifiGan)
    speakers = torch.zeros(1, dtype=torch.long, device=device)
    try:
        from fairseq.models.text_to_speech.codehifigan import CodeGenerator
    except ImportError:
        network = HifiGan(vocoder.codebook.size, vocoder.settings)
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
    """Every way of speaking by name, the baseline first."""
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
                found[f"{title}, {chunk} units streamed (+{vocoder.delay_ms:.0f} ms of sound held back)"] = streamed(
                    vocoder, chunk
                )
    return found


def main(
    channels: int = 512, units: int = 1000, utterances: int = 8, seconds: float = 4.0, rounds: int = 5,
    device: str = "cpu", threads: int = 2, out: Path | None = None,
) -> None:  # fmt: skip
    """Time every way of speaking.

    Args:
        channels: of HiFi-GAN at 50 frames a second, and width of the Vocos-style head; 512 is the published size
        units: codebook size
        utterances: how many are spoken
        seconds: mean length of an utterance
        rounds: passes of each way
        device: cpu or cuda
        threads: CPU threads
        out: a json file for the figures, if wanted
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 for all of them
    codebook = Codebook("bench", "none", 0, units, FRAME_RATE, "none", "bench")
    batch = draw_set(codebook, utterances, seconds)
    sound = sum(sum(one.durations or ()) for one in batch) / FRAME_RATE
    runs = ways(codebook, channels, device)
    passes: dict[str, list[Pass]] = {name: [] for name in runs}
    for run in runs.values():  # the first pass prepares kernels
        run(batch)
    for _ in range(rounds):
        for name, run in runs.items():
            passes[name].append(run(batch))
    print(f"{utterances} utterances, {sound:.1f} s of sound at {SAMPLE_RATE} Hz, {channels} channels, {rounds} rounds")
    print(f"{machine(device)}, {device}, {threads} threads, commit {commit()}")
    rates = {name: sound / float(np.median([one.total for one in found])) for name, found in passes.items()}
    slowest = next(iter(rates.values()))
    figures = {}
    for name, rate in rates.items():
        first = 1000 * float(np.median([value for one in passes[name] for value in one.first]))
        figures[name] = {"times_real_time": rate, "times_baseline": rate / slowest, "first_sound_ms": first}
        print(f"{name:66} {rate:8.1f} x real time  {rate / slowest:6.2f} x baseline  first sound after {first:6.0f} ms")
    if out:
        with written_whole(out) as file:
            json.dump({"machine": machine(device), "commit": commit(), "device": device, "threads": threads,
                       "rounds": rounds, "figures": figures}, file, indent=1)  # fmt: skip


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

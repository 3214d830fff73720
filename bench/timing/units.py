"""Units by this repository and by others, on the same wavs and weights; the command is bench.units."""

from __future__ import annotations

import functools
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import torch

from bench.memory import measured
from units.audio import SAMPLE_RATE, save_wav
from units.corpus.sources import list_source
from units.dataset.shards import Share, extract
from units.encoder.hubert import HubertFeatures
from units.encoder.published.fairseq_hubert import FairseqHubert
from units.encoder.unit_encoder import UnitEncoder
from units.runtime.precision import multiplies_bfloat16

LAYER, SIZE = 9, 500
SHORTEST, LONGEST = 1.0, 16.0  # seconds of a file; lengths are spread evenly on a log scale
SYLLABLE = 3200  # samples
MEMORY_CASES = (  # name, files, seconds of each
    ("a minute in one file", 1, 60),
    ("an hour in one file", 1, 3600),
    ("1,000 files of a second", 1000, 1),
    ("10,000 files of a second", 10_000, 1),
)
DTYPES = {"cpu": (torch.bfloat16,), "cuda": (torch.float16, torch.bfloat16)}


@dataclass
class Way:
    """One way from wavs to units.

    run: returns the units of every frame. layers: how many it computes. seconds: its best time. units: of its last run.
    """

    name: str
    run: Callable[[], list[list[int]]]
    dtype: torch.dtype = torch.float32
    layers: int = LAYER
    seconds: float = float("inf")
    units: list[list[int]] = field(default_factory=list)


def make_wavs(seconds: float, seed: int = 0) -> list[np.ndarray]:
    """Wavs of mixed length, together about `seconds` long: filtered noise with a speech-like envelope."""
    draw = np.random.default_rng(seed)
    wavs: list[np.ndarray] = []
    while sum(map(len, wavs)) < seconds * SAMPLE_RATE:
        length = int(SHORTEST * (LONGEST / SHORTEST) ** draw.random() * SAMPLE_RATE)
        at = np.arange(0, length + SYLLABLE, SYLLABLE)
        syllables = np.interp(np.arange(length), at, draw.random(len(at)))
        wavs.append(
            (np.convolve(draw.normal(size=length), np.ones(4) / 4, "same") * syllables * 0.2).astype(np.float32)
        )
    return wavs


def random_hubert(layers: int = 12) -> torch.nn.Module:
    """HuBERT base with random weights."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    return HubertModel(HubertConfig(num_hidden_layers=layers)).eval()


def plain_transformers(model: torch.nn.Module, centres: np.ndarray, wavs: list[np.ndarray], device: str) -> Callable:
    """The usual way: one file at a time, every hidden state kept, scikit-learn on the CPU."""
    from sklearn.cluster import KMeans

    kmeans = KMeans(len(centres), n_init=1, max_iter=1).fit(centres.astype(np.float32))
    kmeans.cluster_centers_ = centres.astype(np.float32)
    model = model.to(device)

    def run() -> list[list[int]]:
        found = []
        with torch.inference_mode():
            for wav in wavs:
                states = model(torch.from_numpy(wav)[None].to(device), output_hidden_states=True).hidden_states
                found.append(kmeans.predict(states[LAYER][0].float().cpu().numpy()).tolist())
        return found

    return run


def ours(encoder: UnitEncoder, wavs: list[np.ndarray], batch_seconds: float) -> Callable:
    """This repository's way: batches of similar length."""
    order = sorted(range(len(wavs)), key=lambda i: -len(wavs[i]))
    batches: list[list[int]] = []
    while order:
        fits = max(1, int(batch_seconds * SAMPLE_RATE / len(wavs[order[0]])))
        batches.append(order[:fits])
        order = order[fits:]

    def run() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in wavs]
        for batch in batches:
            for i, units in zip(batch, encoder.encode_batch([wavs[i] for i in batch])):
                found[i] = units.frames()
        return found

    return run


def fairseq_way(model: torch.nn.Module, centres: np.ndarray, wavs: list[np.ndarray], device: str) -> Callable | None:
    """fairseq's HubertModel with the same weights, one file at a time, scikit-learn's arithmetic in torch."""
    try:
        from units.encoder.published.fairseq_backend import FairseqFeatures, fairseq_model

        features = FairseqFeatures(fairseq_model(as_fairseq(model)), HubertFeatures(model, LAYER, "random"), device)
    except ImportError as error:
        print(f"(b) fairseq is left out: {error}")
        return None
    encoder = UnitEncoder.from_features(features, torch.from_numpy(centres), "fairseq", "none")
    return lambda: [encoder.encode(wav).frames() for wav in wavs]


FAIRSEQ_NAMES = (  # (transformers' name, fairseq's name)
    ("masked_spec_embed", "mask_emb"),
    ("feature_projection.projection.", "post_extract_proj."),
    ("feature_projection.layer_norm.", "layer_norm."),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
    ("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"),
    ("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"),
    ("pos_conv_embed.conv.bias", "pos_conv.0.bias"),
    (".conv.weight", ".0.weight"),
)


def as_fairseq(model: torch.nn.Module) -> FairseqHubert:
    """A transformers HuBERT base under fairseq's names: the inverse of units.encoder.published.fairseq_hubert."""
    weights = {}
    for name, weight in model.state_dict().items():
        name = re.sub(r"(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", r"\1.2.", name)
        name = re.sub(r"(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm.", name)
        for here, there in FAIRSEQ_NAMES:
            name = name.replace(here, there)
        weights[name] = weight.clone()
    convolutions = [(512, 10, 5), *4 * [(512, 3, 2)], *2 * [(512, 2, 2)]]
    settings = {"encoder_layers": len(model.encoder.layers), "conv_feature_layers": str(convolutions)}
    return FairseqHubert(Path("random"), settings, {"normalize": False}, convolutions, weights)


@functools.cache
def peak(device: str, dtype: torch.dtype) -> float:
    """The measured peak of matrix products, in operations per second."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(4):
        began = _now(device)
        for _ in range(3):
            a @ b
        best = max(best, 3 * 2 * size**3 / (_now(device) - began))
    return best


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def operations(wavs: list[np.ndarray], encoder: UnitEncoder, layers: int) -> float:
    """Multiplications and additions of the encoder's matrix products on these wavs, if it computes so many layers."""
    features = encoder.features
    assert isinstance(features, HubertFeatures)
    total, share = 0.0, layers / len(features.layers)
    for wav in wavs:
        length, frames = len(wav), features.grid.num_frames(len(wav))
        for layer in features.front_end.layers:
            length = (length - layer.kernel) // layer.stride + 1
            total += 2.0 * length * layer.weight.numel()
        position = features.model.encoder.pos_conv_embed.conv.weight
        weights = sum(p.weight.numel() for one in features.layers for p in (one.qkv, one.out, one.wide, one.narrow))
        attention = 4.0 * frames * features.dim * layers
        total += frames * (2.0 * (share * weights + position.numel() + encoder.centres.numel()) + attention)
    return total


def extraction(encoder: UnitEncoder, files: Path, batch_seconds: float) -> float:
    """Seconds from a folder of audio to a unit set, decoding included."""
    device = encoder.features.device.type
    share = Share(batch_seconds=batch_seconds, workers=0 if device == "cpu" else 8)
    with tempfile.TemporaryDirectory() as out:
        began = _now(device)
        extract(list_source(files).utterances, Path(out), encoder, share)
        return _now(device) - began


def compare(device: str, seconds: float, rounds: int, batch_seconds: float) -> None:
    """Run every way on the same wavs and weights, and print the table."""
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32 for all of them
    model, wavs = random_hubert(), make_wavs(seconds)
    audio = sum(map(len, wavs)) / SAMPLE_RATE
    features = HubertFeatures(random_hubert(), LAYER, "random").to(device)
    draw = torch.Generator().manual_seed(0)
    frames = torch.cat(features(wavs[:8])).cpu()
    centres = frames[torch.randperm(len(frames), generator=draw)[:SIZE]]
    exact = UnitEncoder.from_features(features, centres, "random", "none")
    theirs = plain_transformers(model, centres.numpy(), wavs, device)
    every = len(model.encoder.layers)  # transformers computes all of them, whichever is needed
    ways = [Way("(a) plain transformers, one file at a time", theirs, layers=every)]
    theirs = fairseq_way(random_hubert(), centres.numpy(), wavs, device)
    if theirs is not None:
        ways.append(Way("(b) fairseq, one file at a time", theirs))
    ways.append(Way("ours, float32, one file at a time", ours(exact, wavs, 0.0)))
    ways.append(Way("ours, float32, batches", ours(exact, wavs, batch_seconds)))
    encoders = [exact]
    for dtype in DTYPES[device] if multiplies_bfloat16(device) else ():
        fast = HubertFeatures(random_hubert(), LAYER, "random", dtype=dtype).to(device)
        encoder = UnitEncoder.from_features(fast, centres, "random", "none")
        encoders.append(encoder)
        ways.append(
            Way(f"ours, {str(dtype).removeprefix('torch.')}, batches", ours(encoder, wavs, batch_seconds), dtype)
        )
    for _ in range(rounds):
        for way in ways:
            began = _now(device)
            way.units = way.run()
            way.seconds = min(way.seconds, _now(device) - began)
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else f", {torch.cuda.get_device_name()}"
    setting = f"HuBERT base to layer {LAYER}, K={SIZE}, {device}{threads}, best of {rounds}"
    print(f"{len(wavs)} files, {audio:.0f} s of audio, {setting}")
    base = [way.seconds for way in ways if way.name.startswith("(")]
    print(f"{'':46}{'x real time':>12}{'vs (a)':>8}{'vs (b)':>8}{'of peak':>9}{'equal units':>13}")
    for way in ways:
        ratios = "".join(f"{one / way.seconds:>8.2f}" for one in base) + ("" if len(base) > 1 else f"{'-':>8}")
        same = np.mean([a == b for one, other in zip(way.units, ways[0].units) for a, b in zip(one, other)])
        share = operations(wavs, exact, way.layers) / way.seconds / peak(device, way.dtype)
        print(f"{way.name:46}{audio / way.seconds:>12.1f}{ratios}{share:>9.0%}{same:>13.3%}")
    with tempfile.TemporaryDirectory() as folder:
        for i, wav in enumerate(wavs):
            soundfile.write(Path(folder) / f"{i}.flac", wav, SAMPLE_RATE)
        for encoder in encoders:
            took = min(extraction(encoder, Path(folder), batch_seconds) for _ in range(rounds))
            print(f"{f'units-extract of flac files, {encoder.features.manner}':46}{audio / took:>12.1f}")


def memory() -> None:
    """Print the peak memory of units-extract, each time in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for what, count, seconds in MEMORY_CASES:
            source = folder / f"{count}-{seconds}"
            wav = np.resize(make_wavs(4)[0], seconds * SAMPLE_RATE)
            for i in range(count):
                save_wav(source / f"{i:05d}.wav", wav)
            usage = measured("units.dataset.extract", source, folder / f"out-{count}-{seconds}", "--processes", 1)
            print(f"{what:28} peak resident {usage.mib:,.0f} MB")

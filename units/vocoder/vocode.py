"""The `units-vocode` command: units to wavs.

    units-extract a.wav | units-vocode - a.out.wav                        # one utterance, by the package's codec
    units-vocode units.txt out --vocoder runs/toy/vocoder                 # out/ID.wav for each line
    units-vocode runs/toy/units/train out --vocoder runs/toy/vocoder      # a whole unit set
    units-vocode units.txt out --vocoder vocoder.pt --vocoder-config config.json --speaker 2     # a published vocoder

A text file has one utterance a line: `id|12 7 7`, `12 7 7`, or `<sosp><12><7><eosp>`. A killed run resumes. A line that
cannot be vocoded is listed in `OUT/refused.jsonl`; the run goes on, and exits with code 3 at its end. An id that cannot
be the name of a file, such as `a/` or one of 300 letters, gets another one, which `OUT/file_names.jsonl` lists.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from units.audio import SAMPLE_RATE, save_wav
from units.codebook import Codebook, Units
from units.runtime.command import SOME_REFUSED, command
from units.runtime.files.atomic import check_begun, written_whole
from units.runtime.files.file_names import FileNames
from units.runtime.progress import progress
from units.runtime.provenance import content_hash, fingerprint
from units.runtime.refusals import Refusal, counted
from units.shipped import CODEC
from units.vocoder.vocode_lines import Line, read_lines, read_set

PLAN, REFUSED = "vocode.json", "refused.jsonl"
AT_ONCE = 64  # utterances passed to the vocoder, which sorts them by length


@dataclass(frozen=True)
class VocodeConfig:
    """How units are vocoded."""

    vocoder: Path | None = None
    """a vocoder folder, or a published vocoder.pt; that of the package's codec if not given"""
    vocoder_config: Path | None = None
    """JSON config of a published vocoder; config.json beside it if not given"""
    speaker: str = "0"
    """number or name of the speaker, where the vocoder has several"""
    durations: bool = True
    """--no-durations: each id of the text file is one frame of 20 ms"""
    device: str = "cpu"
    """cpu, cuda, or cuda:N"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the convolutions; float32 is exact, bfloat16 is faster and is not; the head "mel" has float32 only"""

    @property
    def folder(self) -> Path:
        """The vocoder that is used."""
        return CODEC / "vocoder" if self.vocoder is None else self.vocoder


@dataclass(frozen=True)
class Vocoded:
    """What one run wrote and refused."""

    wavs: int
    seconds: float
    refused: list[Refusal]


@command("units-vocode", flat=True)
def main(source: Path, out: Path, config: VocodeConfig) -> int | None:
    """Vocode units: write OUT/ID.wav, 16 kHz, for each utterance, or the one utterance to OUT if it ends in .wav.

    Args:
        source: a unit set, a text file with one utterance a line, or - for such lines on stdin
        out: folder for the wavs, or the name of one .wav
        config: how units are vocoded

    Returns: SOME_REFUSED if a line could not be vocoded.

    Raises: FileNotFoundError or ValueError if the source, the vocoder or the device cannot be used, or if `out` was
        begun with other options.
    """
    from units.dataset.unit_set import COMPLETION_FILE, read_unit_set
    from units.runtime.precision import check_device

    check_device(config.device)
    if str(source) == "-" or out.suffix == ".wav":
        return _vocode_text(source, out, config)
    if not source.exists():
        raise FileNotFoundError(f"no unit set or text file at {source}")
    unit_set = read_unit_set(source) if source.is_dir() else None
    if unit_set and not config.durations:
        raise ValueError(f"--no-durations is for text files; the unit set {source} has durations")
    vocoder, speaker = _opened(config, unit_set.codebook if unit_set else None)
    if unit_set:
        vocoder.codebook.check_same(unit_set.codebook, f"the vocoder {config.folder}", f"the unit set {source}")
    contents = (source / COMPLETION_FILE if unit_set else source).read_bytes()
    old = {"vocoder": lambda: old_weights_hash(vocoder.network.state_dict())}
    check_begun(out / PLAN, _plan(contents, config, speaker), old)
    if unit_set:
        lines, total = read_set(unit_set), len(unit_set)
    else:
        lines = read_lines(io.BytesIO(contents), vocoder.codebook, config.durations)
        total = sum(1 for line in contents.split(b"\n") if line.strip())
    return _report(vocode(lines, out, partial(vocoder.decode_batch, speaker=speaker), total), out)


def _opened(config: VocodeConfig, codebook: Codebook | None = None) -> tuple[Any, int | str]:
    """The UnitVocoder, and the speaker as its functions take it.

    codebook: of the units; a published vocoder does not name its own, so the user states that the two belong together.
    """
    import torch

    from units.vocoder.unit_vocoder import UnitVocoder

    dtype = getattr(torch, config.dtype)
    vocoder = UnitVocoder.from_pretrained(config.folder, config.device, config.vocoder_config, codebook, dtype)
    by_number = config.speaker.isdecimal() and config.speaker not in vocoder.speakers
    speaker = int(config.speaker) if by_number else config.speaker
    vocoder.check_speaker(speaker)
    return vocoder, speaker


def _vocode_text(source: Path, out: Path, config: VocodeConfig) -> int | None:
    """Vocode the lines of a text file or of stdin, without a plan: to OUT/ID.wav, or the only one to OUT."""
    if source.is_dir():
        raise ValueError(f"{source} is a unit set of many utterances; OUT is a folder, not {out}")
    vocoder, speaker = _opened(config)
    contents = sys.stdin.buffer if str(source) == "-" else source.open("rb")
    with contents:
        lines = list(read_lines(contents, vocoder.codebook, config.durations))
    if not lines:
        raise ValueError(f"there are no units in {'stdin' if str(source) == '-' else source}")
    decode = partial(vocoder.decode_batch, speaker=speaker)
    if out.suffix != ".wav":
        return _report(vocode(lines, out, decode, len(lines)), out)
    if len(lines) > 1:
        raise ValueError(f"there are {len(lines)} utterances, and {out} is one wav; give a folder")
    [line] = lines
    if isinstance(line, Refusal):
        raise ValueError(line.detail)
    [wav] = decode([line.units])
    print(f"{len(wav) / SAMPLE_RATE:.1f} s -> {save_wav(out, wav)}")
    return None


def _report(done: Vocoded, out: Path) -> int | None:
    """Print what a run did; returns the exit code."""
    print(f"{done.wavs} wavs, {done.seconds:.1f} s, {counted(Counter(str(r.reason) for r in done.refused))} -> {out}")
    return SOME_REFUSED if done.refused else None


def _plan(contents: bytes, config: VocodeConfig, speaker: int | str) -> dict:
    """Everything that decides the wavs: a run resumes only if its plan is the same."""
    return {
        "source": hashlib.sha256(contents).hexdigest()[:16],
        "vocoder": weights_hash(config.folder),
        "speaker": speaker,
        "durations": config.durations,
        "dtype": config.dtype,
    }


def weights_hash(vocoder: Path) -> str:
    """Hash of the weights of a vocoder folder, or of a published file."""
    if vocoder.is_dir() and any(vocoder.glob("*.safetensors")):
        return fingerprint(vocoder)
    from units.vocoder.published import PUBLISHED

    return content_hash({"weights": vocoder / PUBLISHED if vocoder.is_dir() else vocoder})


def old_weights_hash(weights: Mapping[str, Any]) -> str:
    """Hash of a vocoder's weights, tensors by name, as release 0.1.0 wrote it into the plan of a run."""
    state = hashlib.sha256()
    for weight in weights.values():
        state.update(weight.cpu().contiguous().numpy().tobytes())
    return state.hexdigest()[:16]


def vocode(
    lines: Iterable[Line | Refusal],
    out: Path,
    decode: Callable[[list[Units]], list[np.ndarray]],
    total: int | None = None,
) -> Vocoded:
    """Write `OUT/ID.wav` of each line that has none yet, then `OUT/refused.jsonl` and the list of changed names.

    Args:
        lines: utterances and refusals.
        out: the output folder.
        decode: units of several utterances -> a wav (T,) for each.
        total: number of lines, for the progress bar.
    """
    began, wavs, samples = time.monotonic(), 0, 0
    refused: list[Refusal] = []
    names = FileNames(out, [".wav"], (PLAN, REFUSED))
    with progress(total=total, desc="vocoding", unit="utterances") as bar:
        for group in _groups(lines):
            refused += [line for line in group if isinstance(line, Refusal)]
            named = [(line, names.path(line.id)) for line in group if isinstance(line, Line)]
            new = [(line, path) for line, path in named if not path.exists()]
            for (_, path), wav in zip(new, decode([line.units for line, _ in new])):
                save_wav(path, wav)
                samples += len(wav)
            wavs += len(new)
            bar.update(len(group))
            rate = samples / SAMPLE_RATE / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{rate:.1f} x real time", refresh=False)
    names.write_list()
    with written_whole(out / REFUSED) as file:
        file.writelines(refusal.line() for refusal in refused)
    return Vocoded(wavs, samples / SAMPLE_RATE, refused)


def _groups(lines: Iterable[Line | Refusal]) -> Iterator[list[Line | Refusal]]:
    rest = iter(lines)
    while group := list(itertools.islice(rest, AT_ONCE)):
        yield group


if __name__ == "__main__":
    main.cli()

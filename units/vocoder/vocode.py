"""The `units-vocode` command: units to sound.

    units-vocode units.txt out --vocoder runs/toy/vocoder                 # out/ID.wav for each line
    units-vocode runs/toy/units/train out --vocoder runs/toy/vocoder      # a whole unit set
    units-vocode units.txt out --vocoder vocoder.pt --vocoder-config config.json --speaker 2     # a published one

A text file has one utterance a line: `id|12 7 7`, `12 7 7`, or `<sosp><12><7><eosp>`. A killed run goes on where it
stopped; a line that cannot be spoken is listed in `OUT/refused.jsonl` and stops nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from units import notation
from units.audio import SAMPLE_RATE, save_wav
from units.codebook import Codebook, Units
from units.dataset.unit_set import COMPLETION_FILE, UnitSet, read_unit_set
from units.runtime.atomic import check_begun, written_whole
from units.runtime.precision import check_device
from units.runtime.progress import progress
from units.vocoder.unit_vocoder import UnitVocoder

PLAN, REFUSED = "vocode.json", "refused.jsonl"
AT_ONCE = 64  # utterances handed to the vocoder, which sorts them by length


@dataclass(frozen=True)
class Line:
    """One utterance to speak, or the reason why it cannot be."""

    id: str
    units: Units | None
    reason: str | None = None


def read_lines(path: Path, codebook: Codebook, durations: bool = True) -> Iterator[Line]:
    """Utterances of a text file, in order; a line without an id gets its number, `00001`, `00002`, ...

    Args:
        durations: the vocoder is to say how long each unit lasts; else each id stands for one frame of 20 ms.

    Raises: FileNotFoundError.
    """
    seen: set[str] = set()
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            name, bar, spoken = text.strip().rpartition("|")
            name = name.strip() if bar else f"{number:05d}"
            try:
                if name in seen:
                    raise ValueError(f"the id {name!r} stands twice; ids are unique")
                seen.add(name)
                yield Line(_file_name(name), _read_units(spoken, codebook, durations))
            except ValueError as error:
                yield Line(name, None, f"line {number}: {error}")


def _read_units(text: str, codebook: Codebook, durations: bool) -> Units:
    if text.lstrip().startswith(notation.SOSP):
        ids = notation.read(text, codebook.size)
    elif all(word.isascii() and word.isdecimal() for word in text.split()):
        ids = [int(word) for word in text.split()]
    else:
        raise ValueError(f"{text[:40]!r} are not units; the forms are `12 7 7` and {notation.spell([12, 7, 7])}")
    if not ids:
        raise ValueError("no units to speak: a wav needs at least one unit")
    return Units(tuple(ids), None, codebook) if durations else Units.from_frames(ids, codebook)


def _file_name(name: str) -> str:
    """An id as the path of a wav below OUT. Raises ValueError if it would lie elsewhere."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the id {name!r} is no name for a file below the output folder")
    return name


def read_set(unit_set: UnitSet) -> Iterator[Line]:
    """Utterances of a unit set, with the durations that were heard."""
    for record in unit_set:
        try:
            if not record.units.ids:
                raise ValueError("no units to speak: a wav needs at least one unit")
            yield Line(_file_name(record.id), record.units)
        except ValueError as error:
            yield Line(record.id, None, str(error))


def vocode(
    lines: Iterable[Line], out: Path, vocoder: UnitVocoder, speaker: int | str, total: int | None = None
) -> None:
    """Write `OUT/id.wav` of each line that is not there yet, then `OUT/refused.jsonl`, and say how it went."""
    began, spoken, samples = time.monotonic(), 0, 0
    refused: list[Line] = []
    with progress(total=total, desc="vocoding", unit="utterances") as bar:
        for group in _at_once(lines):
            refused += [line for line in group if line.units is None]
            new = [line for line in group if line.units is not None and not _wav(out, line).exists()]
            wavs = vocoder.decode_batch([line.units for line in new if line.units is not None], speaker=speaker)
            for line, wav in zip(new, wavs):
                save_wav(_wav(out, line), wav)
            spoken, samples = spoken + len(new), samples + sum(map(len, wavs))
            bar.update(len(group))
            rate = samples / SAMPLE_RATE / max(time.monotonic() - began, 1e-9)
            bar.set_postfix_str(f"{rate:.1f} x real time", refresh=False)
    with written_whole(out / REFUSED) as file:
        file.writelines(json.dumps({"id": line.id, "reason": line.reason}) + "\n" for line in refused)
    print(f"{spoken} wavs, {samples / SAMPLE_RATE:.1f} s of sound, {len(refused)} lines refused -> {out}")


def _at_once(lines: Iterable[Line]) -> Iterator[list[Line]]:
    rest = iter(lines)
    while group := list(itertools.islice(rest, AT_ONCE)):
        yield group


def _wav(out: Path, line: Line) -> Path:
    return out / f"{line.id}.wav"


def main(
    source: Path, out: Path, vocoder: Path, vocoder_config: Path | None = None, speaker: str = "0",
    durations: bool = True, device: str = "cpu", dtype: str = "float32",
) -> None:  # fmt: skip
    """Speak every utterance of a unit set or a text file.

    Raises: FileNotFoundError or ValueError, if source or vocoder cannot be read, the device is not there, or `out` was begun
    otherwise.
    """
    check_device(device)
    if not source.exists():
        raise FileNotFoundError(f"no such unit set or text file: {source}")
    unit_set = read_unit_set(source) if source.is_dir() else None
    if unit_set and not durations:
        raise ValueError(f"--no-durations is for text files; the unit set {source} knows how long each unit lasted")
    # a published vocoder does not say which units it speaks; a unit set does, and its owner brought the two together
    codebook = unit_set.codebook if unit_set else None
    voice = UnitVocoder.from_pretrained(vocoder, device, vocoder_config, codebook, getattr(torch, dtype))
    if unit_set:
        voice.codebook.check_same(unit_set.codebook, f"the vocoder {vocoder}", f"the unit set {source}")
    who = int(speaker) if speaker.isdecimal() and speaker not in voice.speakers else speaker
    voice.check_speaker(who)
    contents = (source / COMPLETION_FILE if unit_set else source).read_bytes()
    plan = {
        "source": hashlib.sha256(contents).hexdigest()[:16], "vocoder": _fingerprint(voice), "speaker": who,
        "durations": durations, "dtype": dtype,
    }  # fmt: skip
    check_begun(out / PLAN, plan)
    if unit_set:
        vocode(read_set(unit_set), out, voice, who, len(unit_set))
    else:
        total = sum(1 for line in contents.splitlines() if line.strip())
        vocode(read_lines(source, voice.codebook, durations), out, voice, who, total)


def _fingerprint(voice: UnitVocoder) -> str:
    """Of the weights: which voice it is."""
    digest = hashlib.sha256()
    for value in voice.network.state_dict().values():
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cli(args: list[str] | None = None) -> None:
    """Entry point of `units-vocode`; user errors end in one line and exit code 2."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="units-vocode", description="Speak discrete units: OUT/ID.wav, 16 kHz, for each utterance."
    )
    parser.add_argument("source", type=Path, help="a unit set, or a text file with one utterance a line")
    parser.add_argument("out", type=Path, help="folder for the wavs")
    parser.add_argument("--vocoder", type=Path, required=True, help="a vocoder folder, or a published vocoder.pt")
    parser.add_argument(
        "--vocoder-config", type=Path, help="the published vocoder's json; config.json beside it if not given"
    )
    parser.add_argument("--speaker", default="0", help="number or name of the voice, where there are several")
    parser.add_argument(
        "--no-durations", dest="durations", action="store_false", help="each id of the text file is one frame of 20 ms"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or cuda:N")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="of the convolutions; float32 is exact, bfloat16 is faster and is not; not for the head mel, which has none",
    )  # fmt: skip
    given = parser.parse_args(args)
    try:
        main(**{name: getattr(given, name) for name in (
            "source", "out", "vocoder", "vocoder_config", "speaker", "durations", "device", "dtype")})  # fmt: skip
    except (OSError, ValueError) as error:
        print(f"units-vocode: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    cli()

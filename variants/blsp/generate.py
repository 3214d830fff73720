"""Respond to a file of recordings by any instruction: one line out for each line in, in order.

    python -m variants.blsp.generate in.jsonl out.jsonl --model runs/toy/blsp --instruction "Please repeat the words."
    python -m variants.blsp.generate in.jsonl out.jsonl --model FOLDER --batch 16 --device cuda --max_new_tokens 128

A line has `audio`, `instruction`, or both; a line without `instruction` gets the option's. `audio` is a file, absolute
or relative to the input's folder, or `file.wav:start:frames` in samples, as the published code writes it. All other
fields, such as `reference`, are copied. A line out has the same fields and `response`. A killed run continues at the
first line that is missing.

Lines that cannot be responded to are listed in OUT.refused.jsonl; their `response` is null, and the exit code is 3.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechgpt.sampling import Sampling
from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.refusals import Reason

if TYPE_CHECKING:
    from units.runtime.refusals import Refusals
    from variants.blsp.inference import BLSP, Request


class LineReason(Reason):
    """Why a line has no response."""

    NOT_A_REQUEST = "not_a_request"
    """it is not JSON, or has neither audio nor an instruction"""
    UNUSABLE_AUDIO = "unusable_audio"
    """its recording cannot be read, is silent, or does not fit the context"""


@dataclass(frozen=True)
class Generation:
    """How responses are made."""

    instruction: str = ""
    """For lines that name none."""
    batch: int = 8
    """Lines at once."""
    max_new_tokens: int = 128
    """The longest response, in tokens."""
    do_sample: bool = False
    """Draw tokens at random; otherwise the most likely ones are taken."""
    temperature: float = 0.1
    """For random draws: divides the logits."""
    top_p: float = 0.75
    """For random draws: the most likely tokens whose probabilities add up to this."""
    seed: int = 0
    """For random draws."""

    def __post_init__(self) -> None:
        check_range("batch", self.batch, 1)
        check_range("max_new_tokens", self.max_new_tokens, 1)

    @property
    def sampling(self) -> Sampling:
        """As Sampling."""
        if not self.do_sample:
            return Sampling(max_new_tokens=self.max_new_tokens)
        return Sampling(self.temperature, 0, self.top_p, self.max_new_tokens, self.seed)


@command("blsp-generate", flat=True)
def main(input: Path, output: Path, model: Path, device: str = "cpu", how: Generation = Generation()) -> int | None:
    """Respond to a file of recordings by any instruction.

    Args:
        input: JSON lines with audio, instruction, or both
        output: JSON lines with response
        model: a BLSP folder
        device: cpu, cuda, or cuda:N
        how: how responses are made
    """
    from units.runtime.atomic import check_begun
    from units.runtime.progress import progress
    from units.runtime.refusals import listed_refusals
    from variants.blsp.inference import BLSP

    lines = [line for line in input.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    blsp = BLSP.from_pretrained(model, device)
    output.parent.mkdir(parents=True, exist_ok=True)
    plan = {"model": blsp.name, **vars(how), "batch": None}
    begun = output.with_name(f"{output.name}.begun.json")
    check_begun(begun, plan)
    done = drop_unfinished(output)
    if len(done) > len(lines):
        raise ValueError(f"{output} has {len(done)} lines, and {input} {len(lines)}; delete it to begin anew")
    todo = list(enumerate(lines, 1))[len(done) :]
    with listed_refusals(output.with_name(f"{output.name}.refused.jsonl")) as refusals:
        for number, record in enumerate(done, 1):  # of the run that was killed
            if "refused" in record:
                refusals.add(f"{input}:{number}", LineReason(record["refused"]), "refused by the run before this one")
        rows = iter(progress(todo, desc="responses", unit="lines"))
        with output.open("a", encoding="utf-8") as file:
            while some := list(itertools.islice(rows, how.batch)):
                responded = respond(blsp, some, input, how, refusals)
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in responded)
                file.flush()
    begun.unlink()
    print(f"{len(lines)} lines in {output}; {refusals}")
    return SOME_REFUSED if refusals.counts else None


def drop_unfinished(output: Path) -> list[dict[str, Any]]:
    """The records of a file that a run began; a last line that was not finished is cut off."""
    if not output.exists():
        return []
    lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        with output.open("rb+") as file:
            file.truncate(sum(len(line.encode()) for line in lines[:-1]))
        lines = lines[:-1]
    return [json.loads(line) for line in lines]


def respond(
    blsp: BLSP, lines: list[tuple[int, str]], source: Path, how: Generation, refusals: Refusals
) -> list[dict[str, Any]]:
    """The records of some lines, in order: their fields, and `response`; null, and `refused`, where there is none."""
    from units.runtime.refusals import RefusedError

    records: list[dict[str, Any]] = []
    prompts: dict[int, Any] = {}
    for place, (number, line) in enumerate(lines):
        record: dict[str, Any] = {}
        try:
            record = read_record(line)
            prompts[place] = blsp.prepared(read_request(record, source.parent, how.instruction))
        except ValueError as error:
            reason: Reason = LineReason.UNUSABLE_AUDIO
            if isinstance(error, RefusedError) and isinstance(error.reason, LineReason):
                reason = error.reason
            refusals.add(f"{source}:{number}", reason, str(error))
            record = {**record, "refused": reason.value}
        records.append(record)
    found = dict(zip(prompts, blsp.responses(list(prompts.values()), how.sampling)))
    return [{**record, "response": found.get(place)} for place, record in enumerate(records)]


def read_record(line: str) -> dict[str, Any]:
    """The fields of a line.

    Raises: RefusedError if it is no JSON object.
    """
    from units.runtime.refusals import RefusedError

    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedError(LineReason.NOT_A_REQUEST, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise RefusedError(LineReason.NOT_A_REQUEST, f"a {type(record).__name__}, not an object with fields")
    return record


def read_request(record: dict[str, Any], folder: Path, instruction: str) -> Request:
    """What a line asks for.

    Args:
        folder: of the file, to which paths are relative. instruction: for a line that names none.

    Raises: RefusedError if it asks for nothing; ValueError if its recording cannot be found.
    """
    from units.runtime.refusals import RefusedError
    from variants.blsp.inference import Request
    from variants.blsp.labels import published_speech

    audio, given = record.get("audio"), record.get("instruction")
    if not all(value is None or isinstance(value, str) for value in (audio, given)):
        raise RefusedError(LineReason.NOT_A_REQUEST, "audio and instruction are text")
    asked = instruction if given is None else given
    if not audio and not asked:
        raise RefusedError(LineReason.NOT_A_REQUEST, "neither audio nor an instruction, and --instruction is not given")
    return Request(published_speech(audio, folder) if audio else None, asked)


if __name__ == "__main__":
    main.cli()

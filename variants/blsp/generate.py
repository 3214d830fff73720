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

from speechgpt.sampling import Sampling
from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.settings import check_types


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
        check_types(self)
        check_range("batch", self.batch, 1)
        _ = self._random  # also where nothing is drawn: a wrong number is not passed over

    @property
    def sampling(self) -> Sampling:
        """As Sampling."""
        if not self.do_sample:
            return Sampling(max_new_tokens=self.max_new_tokens)
        return self._random

    @property
    def _random(self) -> Sampling:
        return Sampling(self.temperature, 0, self.top_p, self.max_new_tokens, self.seed)


@command("blsp-generate", flat=True)
def main(
    input: Path, output: Path, model: Path | None = None, device: str = "cpu", how: Generation = Generation()
) -> int | None:
    """Respond to a file of recordings by any instruction.

    Args:
        input: JSON lines with audio, instruction, or both
        output: JSON lines with response
        model: a BLSP folder; needed
        device: cpu, cuda, or cuda:N
        how: how responses are made
    """
    from units.runtime.files.atomic import check_begun
    from units.runtime.files.json_files import BOM
    from units.runtime.progress import progress
    from units.runtime.refusals import listed_refusals
    from variants.blsp.inference import BLSP
    from variants.blsp.responses import LineReason, respond
    from variants.speech_in.lines import drop_unfinished

    if model is None:
        raise ValueError("--model is needed: the folder of a BLSP model")
    # only a line feed ends a line: other separators may stand in an instruction
    whole = enumerate(input.read_bytes().removeprefix(BOM).split(b"\n"), 1)
    lines = [(number, line) for number, line in whole if line.strip()]
    blsp = BLSP.from_pretrained(model, device)
    output.parent.mkdir(parents=True, exist_ok=True)
    plan = {"model": blsp.name, **vars(how), "batch": None}
    begun = output.with_name(f"{output.name}.begun.json")
    check_begun(begun, plan)
    done = drop_unfinished(output)
    if len(done) > len(lines):
        raise ValueError(f"{output} has {len(done)} lines, and {input} {len(lines)}; delete it to begin anew")
    todo = lines[len(done) :]
    with listed_refusals(output.with_name(f"{output.name}.refused.jsonl")) as refusals:
        for (number, _), record in zip(lines, done):  # of the run that was killed
            if "refused" in record:
                refusals.add(f"{input}:{number}", LineReason(record["refused"]), "refused by the run before this one")
        rows = iter(progress(todo, desc="responses", unit="lines"))
        with output.open("a", encoding="utf-8") as file:
            while some := list(itertools.islice(rows, how.batch)):
                responded = respond(blsp, some, input, how.instruction, how.sampling, refusals)
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in responded)
                file.flush()
    begun.unlink()
    print(f"{len(lines)} lines in {output}; {refusals}")
    return SOME_REFUSED if refusals.counts else None


if __name__ == "__main__":
    main.cli()

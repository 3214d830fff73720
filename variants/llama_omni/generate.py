"""Answer a file of questions in text, units and sound: one line out for each question, in order.

    python -m variants.llama_omni.generate question.json answer.jsonl --model FOLDER --wavs DIR
    python -m variants.llama_omni.generate question.json answer.jsonl --model FOLDER --batch 16 --device cuda

question.json is a list in the published form, or a file with a question on each line: `id`, `speech` (a file, absolute
or relative to the input's folder), and `conversations`, whose first turn has the text (`<speech>` is where the speech
stands). A line out has the published keys `question_id`, `prediction`, `prediction_units` and `answer`, and, with
--wavs, `wav`. A killed run continues at the first line that is missing.

Questions that cannot be answered are listed in OUT.refused.jsonl; their prediction is null, and the exit code is 3.
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
    """How answers are made."""

    batch: int = 8
    """Questions at once."""
    max_new_tokens: int = 256
    """The longest answer, in tokens."""
    temperature: float = 0.0
    """Divides the logits; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Draw from the most likely tokens whose probabilities add up to this; 1 draws from all."""
    seed: int = 0
    """For random draws."""

    def __post_init__(self) -> None:
        check_types(self)
        check_range("batch", self.batch, 1)
        check_range("max_new_tokens", self.max_new_tokens, 1)

    @property
    def sampling(self) -> Sampling:
        """As Sampling."""
        return Sampling(self.temperature, 0, self.top_p, self.max_new_tokens, self.seed)


@command("llama-omni-generate", flat=True)
def main(
    input: Path,
    output: Path,
    model: Path | None = None,
    wavs: Path | None = None,
    device: str = "cpu",
    how: Generation = Generation(),
) -> int | None:
    """Answer a file of questions.

    Args:
        input: questions, a .json list or JSON lines
        output: JSON lines with predictions
        model: a LLaMA-Omni folder; needed
        wavs: a folder for the spoken answers
        device: cpu, cuda, or cuda:N
        how: how answers are made
    """
    from units.runtime.files.atomic import check_begun
    from units.runtime.progress import progress
    from units.runtime.refusals import listed_refusals
    from variants.llama_omni.data.published import QuestionReason, read_records
    from variants.llama_omni.inference import LlamaOmni
    from variants.llama_omni.replies import answer
    from variants.speech_in.lines import drop_unfinished

    if model is None:
        raise ValueError("--model is needed: the folder of a LLaMA-Omni model")
    records = read_records(input)
    omni = LlamaOmni.from_pretrained(model, device)
    if wavs is not None and not omni.speaks:
        raise ValueError(f"--wavs: {model} has no speech decoder, or no vocoder")
    output.parent.mkdir(parents=True, exist_ok=True)
    begun = output.with_name(f"{output.name}.begun.json")
    check_begun(begun, {"model": omni.name, **vars(how), "batch": None, "wavs": str(wavs)})
    done = drop_unfinished(output)
    if len(done) > len(records):
        raise ValueError(f"{output} has {len(done)} lines, and {input} {len(records)}; delete it to begin anew")
    todo = list(enumerate(records))[len(done) :]
    with listed_refusals(output.with_name(f"{output.name}.refused.jsonl")) as refusals:
        for number, record in enumerate(done, 1):  # of the run that was killed
            if "refused" in record:
                refusals.add(
                    f"{input}:{number}", QuestionReason(record["refused"]), "refused by the run before this one"
                )
        rows = iter(progress(todo, desc="answers", unit="questions"))
        with output.open("a", encoding="utf-8") as file:
            while some := list(itertools.islice(rows, how.batch)):
                answered = answer(omni, some, input, wavs, how.sampling, refusals)
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in answered)
                file.flush()
    begun.unlink()
    print(f"{len(records)} answers in {output}; {refusals}")
    return SOME_REFUSED if refusals.counts else None


if __name__ == "__main__":
    main.cli()

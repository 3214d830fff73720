"""Score every sound of a suite once, resumably: a chunk of sounds is one file, which appears whole or not at all.

A chunk always holds the same sounds, and a sound's score depends on no other sound, so a run that was killed ends
with the scores of one that was not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from eval.likelihood.pairs import NORMALISATIONS, Suite
from eval.likelihood.zerospeech import write_submission
from eval.results import load_details
from speechgpt.answers import Likelihood, NotSupported, ScoresSpeech
from units.runtime.files.atomic import written_whole
from units.runtime.progress import progress
from units.runtime.provenance import digest
from units.runtime.refusals import CommonReason, Refusal, RefusedError, refusal_of

CHUNK = 256  # sounds of one file
AT_ONCE = 32  # sounds whose audio is in memory


class NothingScored(ValueError):
    """A model refused every sound of a chunk, so the fault lies in the model and not in the sounds."""


def scored_suite(
    model: ScoresSpeech, model_name: str, suite: Suite, folder: Path
) -> tuple[dict[str, Likelihood], list[Refusal]]:
    """The likelihood of each sound of a suite, and the sounds that the model refused.

    Args:
        model: scores sounds.
        model_name: changes when the model does; scores are kept under it.
        suite: what is scored.
        folder: `scores/` and `submission/` are written there.

    Raises:
        NothingScored: the model refused every sound of a chunk.
        NotSupported: as the model.
    """
    kept = folder / "scores" / f"{suite.name}-{digest([model_name, ' ', suite.digest], 8)}"
    names = list(suite.files)
    chunks = [names[start : start + CHUNK] for start in range(0, len(names), CHUNK)]
    rows: list[dict] = []
    with progress(total=len(names), desc=f"scoring {suite.name}", unit="sounds") as bar:
        for number, chunk in enumerate(chunks):
            path = kept / f"{number:05d}.jsonl"
            if not path.exists():
                _write(path, _scored(model, suite, chunk))
            rows += load_details(path, {"name": str})
            bar.update(len(chunk))
    refused = [refusal_of(row["name"], CommonReason.OTHER, row["refused"]) for row in rows if "refused" in row]
    found = {row["name"]: Likelihood(row["log_probability"], row["tokens"]) for row in rows if "log_probability" in row}
    for normalisation in NORMALISATIONS if suite.submission else ():
        write_submission(folder / "submission" / normalisation / suite.submission, suite, found, normalisation)
    return found, refused


def _scored(model: ScoresSpeech, suite: Suite, names: Sequence[str]) -> list[dict]:
    """A row for each sound: its score, or why the model refuses it."""
    rows: list[dict] = []
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        try:
            rows += [_row(name, one) for name, one in zip(some, model.likelihoods([suite.files[n] for n in some]))]
        except NotSupported:
            raise
        except (ValueError, OSError):  # one of them; the others are still scored
            rows += [_alone(model, suite, name) for name in some]
    if all("refused" in row for row in rows):
        raise NothingScored(
            f"{suite.name}: the model refused all {len(rows)} sounds from {rows[0]['name']} on; the first one because "
            f"{rows[0]['refused']}"
        )
    return rows


def _alone(model: ScoresSpeech, suite: Suite, name: str) -> dict:
    try:
        return _row(name, model.likelihoods([suite.files[name]])[0])
    except (ValueError, OSError) as error:
        reason = error.reason.value if isinstance(error, RefusedError) else CommonReason.OTHER.value
        return {"name": name, "refused": f"{reason}: {error}"}


def _row(name: str, one: Likelihood) -> dict:
    return {"name": name, "log_probability": one.log_probability, "tokens": one.tokens}


def _write(path: Path, rows: list[dict]) -> None:
    with written_whole(path) as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)

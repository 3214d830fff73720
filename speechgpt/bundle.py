"""The `speechgpt-bundle` command: join a checkpoint, its unit encoder and its vocoder into one model folder.

    R=runs/toy; speechgpt-bundle --stage $R/stage3 --encoder $R/unit_encoder --vocoder $R/vocoder --out $R/model

A finished model gets another vocoder in place:

    M=runs/toy/model; speechgpt-bundle --stage $M --encoder $M/unit_encoder --vocoder another/vocoder --out $M

speechgpt-cli, speechgpt-server and eval open the folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from units.runtime.command import command

if TYPE_CHECKING:
    from speechgpt.checkpoint import CheckpointFacts

VOCODER_FILES = ("config.json", "model.safetensors")
ENCODER, VOCODER = "unit_encoder", "vocoder"  # folders in the model folder


@command("speechgpt-bundle", positional=False)
def main(stage: Path, encoder: Path, vocoder: Path, out: Path) -> None:
    """Copy the parts of a model into one folder, after checking that they have the same codebook.

    An existing folder is replaced as a whole: transformers would apply an adapter of an earlier model to the new
    weights. Of a stage that holds an adapter alone, the base model is copied too, unless it has only a hub id.

    Args:
        stage: checkpoint folder
        encoder: unit encoder folder
        vocoder: vocoder folder
        out: the model folder to make or replace
    """
    from speechgpt.checkpoint import CheckpointFacts
    from speechgpt.language_models.adapters import copy_model

    with replaced_model(out) as part:
        facts = CheckpointFacts.load(stage)
        check_codebooks(facts, stage, encoder, vocoder)
        copy_parts(part, encoder, vocoder)
        copy_model(stage, part, out.resolve())
        facts.save(part)  # written again, since make compares the time of this file
    print(f"{out}: {facts.stage} with units of {facts.units.name}, its unit encoder and its vocoder")


@contextmanager
def replaced_model(out: Path) -> Iterator[Path]:
    """A folder to write a model into; it takes the place of `out` when all is written.

    Raises:
        ValueError: `out` holds something that is no part of a model.
    """
    out = out.resolve()  # a link's target is replaced, and not the link
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():
        old.rename(out)  # an earlier run was killed between the two renamings below
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _check_replaceable(out)
        yield part
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def copy_parts(folder: Path, encoder: Path, vocoder: Path | None) -> None:
    """Copy a unit encoder and a vocoder into a model folder."""
    shutil.copytree(encoder, folder / ENCODER)
    if vocoder is not None:
        (folder / VOCODER).mkdir()
        for name in VOCODER_FILES:
            shutil.copy2(vocoder / name, folder / VOCODER / name)


def check_codebooks(facts: CheckpointFacts, stage: Path, encoder: Path, vocoder: Path | None) -> None:
    """Raise CodebookMismatch unless the parts of a model have the same codebook."""
    from units.encoder.unit_encoder import UnitEncoder
    from units.vocoder.unit_vocoder import UnitVocoder

    parts = [("the unit encoder", UnitEncoder.from_pretrained(encoder).codebook)]
    if vocoder is not None:
        parts.append(("the vocoder", UnitVocoder.from_pretrained(vocoder).codebook))
    for name, codebook in parts:
        facts.units.check_same(codebook, f"the checkpoint {stage}", name)


def _check_replaceable(out: Path) -> None:
    """Raise ValueError if a folder holds more than a model: it is replaced as a whole."""
    if not out.exists():
        return
    from speechgpt.language_models.adapters import ADAPTER_CONFIG, BASE, checkpoint_files

    parts = {out / ENCODER, out / VOCODER, *checkpoint_files(out)}
    if (out / ADAPTER_CONFIG).exists():
        parts.add(out / BASE)
    others = sorted(path.name for path in out.iterdir() if path not in parts)
    if others:
        names = ", ".join(others[:3]) + (" .." if others[3:] else "")
        raise ValueError(
            f"{out} is replaced as a whole, but holds {names}, which is no part of a model; name another --out, "
            "or move that elsewhere"
        )


if __name__ == "__main__":
    main.cli()

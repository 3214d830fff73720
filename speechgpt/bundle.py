"""The `speechgpt-bundle` command: join a checkpoint, its unit encoder and its vocoder into one model folder.

    R=runs/toy; speechgpt-bundle --stage $R/stage3 --encoder $R/unit_encoder --vocoder $R/vocoder --out $R/model

A finished model gets another vocoder in place:

    M=runs/toy/model; speechgpt-bundle --stage $M --encoder $M/unit_encoder --vocoder another/vocoder --out $M

speechgpt-cli, speechgpt-server and eval open the folder.
"""

from __future__ import annotations

import shutil
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
    from speechgpt.adapters import copy_model
    from speechgpt.checkpoint import CheckpointFacts

    shown, out = out, out.resolve()  # a link's target is replaced, and not the link
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():
        old.rename(out)  # an earlier run was killed between the two renamings below
    facts = CheckpointFacts.load(stage)
    _check_codebooks(facts, stage, encoder, vocoder)
    _check_replaceable(out)
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(encoder, part / ENCODER)
    (part / VOCODER).mkdir()
    for name in VOCODER_FILES:
        shutil.copy2(vocoder / name, part / VOCODER / name)
    copy_model(stage, part, out)
    facts.save(part)  # written again, since make compares the time of this file
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{shown}: {facts.stage} with units of {facts.units.name}, its unit encoder and its vocoder")


def _check_codebooks(facts: CheckpointFacts, stage: Path, encoder: Path, vocoder: Path) -> None:
    """Raise CodebookMismatch unless the three parts have the same codebook."""
    from units.encoder.unit_encoder import UnitEncoder
    from units.vocoder.unit_vocoder import UnitVocoder

    for name, codebook in (
        ("the unit encoder", UnitEncoder.from_pretrained(encoder).codebook),
        ("the vocoder", UnitVocoder.from_pretrained(vocoder).codebook),
    ):
        facts.units.check_same(codebook, f"the checkpoint {stage}", name)


def _check_replaceable(out: Path) -> None:
    """Raise ValueError if a folder holds more than a model: it is replaced as a whole."""
    if not out.exists():
        return
    from speechgpt.adapters import ADAPTER_CONFIG, BASE, checkpoint_files

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

"""Join a checkpoint, its ears and its voice into one model folder that speechgpt-cli opens.

python -m speechgpt.bundle --stage runs/toy/stage3 --encoder runs/toy/unit_encoder --vocoder runs/toy/vocoder --out runs/toy/model

A finished model gets another voice when `--stage` and `--encoder` are its own: --stage M --encoder M/unit_encoder --out M.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from speechgpt.checkpoint import CheckpointFacts
from units.encoder.unit_encoder import UnitEncoder
from units.vocoder.unit_vocoder import UnitVocoder

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
VOCODER_FILES = ("config.json", "model.safetensors")
EARS, VOICE = "unit_encoder", "vocoder"


def main(stage: Path, encoder: Path, vocoder: Path, out: Path) -> None:
    """Copy the parts of a model into one folder, after checking that they are of one codebook.

    A folder that is there is replaced as a whole: transformers would lay an adapter of an earlier model over the new weights.

    Args:
        stage: checkpoint folder
        encoder: unit encoder folder
        vocoder: vocoder folder
        out: the model folder to make, or to make anew
    """
    shown, out = out, out.resolve()  # a link's target is replaced, and not the link
    part, old = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():
        old.rename(out)  # killed between the two renamings below
    facts = CheckpointFacts.load(stage)
    for name, codebook in (
        ("the unit encoder", UnitEncoder.from_pretrained(encoder).codebook),
        ("the vocoder", UnitVocoder.from_pretrained(vocoder).codebook),
    ):
        facts.units.check_same(codebook, f"the checkpoint {stage}", name)
    _check_replaceable(out)
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(encoder, part / EARS)
    (part / VOICE).mkdir()
    for name in VOCODER_FILES:
        shutil.copy2(vocoder / name, part / VOICE / name)
    for path in _checkpoint_files(stage):
        shutil.copy2(path, part / path.name)
    facts.save(part)  # anew, for make goes by its time
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{shown}: {facts.stage} of {facts.units.name}, with ears and voice")


def _checkpoint_files(folder: Path) -> list[Path]:
    return [path for pattern in CHECKPOINT_FILES for path in sorted(folder.glob(pattern))]


def _check_replaceable(out: Path) -> None:
    """Raise ValueError if a folder holds what no bundle does, since that would be lost with it."""
    if not out.exists():
        return
    ours = {out / EARS, out / VOICE, *_checkpoint_files(out)}
    foreign = sorted(path.name for path in out.iterdir() if path not in ours)
    if foreign:
        raise ValueError(
            f"{out} is replaced as a whole, but holds {', '.join(foreign[:3])}{' ..' if foreign[3:] else ''}, which is no "
            "part of a model; name another --out, or move that elsewhere"
        )


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

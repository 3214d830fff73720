"""Join a checkpoint, its ears and its voice into one model folder that speechgpt-cli opens.

python -m speechgpt.bundle --stage runs/toy/stage3 --encoder runs/toy/unit_encoder --vocoder runs/toy/vocoder --out runs/toy/model
"""

from __future__ import annotations

import shutil
from pathlib import Path

from speechgpt.checkpoint import FILE, CheckpointFacts
from units.encoder import UnitEncoder
from units.vocoder import UnitVocoder

CHECKPOINT_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model")
VOCODER_FILES = ("config.json", "model.safetensors")


def main(stage: Path, encoder: Path, vocoder: Path, out: Path) -> None:
    """Copy the parts of a model into one folder, after checking that they are of one codebook.

    Args:
        stage: checkpoint folder
        encoder: unit encoder folder
        vocoder: vocoder folder
        out: the model folder to make
    """
    facts = CheckpointFacts.load(stage)
    for name, codebook in (
        ("the unit encoder", UnitEncoder.from_pretrained(encoder).codebook),
        ("the vocoder", UnitVocoder.from_pretrained(vocoder).codebook),
    ):
        facts.codebook.check_same(codebook, f"the checkpoint {stage}", name)
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).unlink(missing_ok=True)
    shutil.copytree(encoder, out / "unit_encoder", dirs_exist_ok=True)
    (out / "vocoder").mkdir(exist_ok=True)
    for name in VOCODER_FILES:
        shutil.copy2(vocoder / name, out / "vocoder" / name)
    for path in (path for pattern in CHECKPOINT_FILES for path in sorted(stage.glob(pattern)) if path.name != FILE):
        shutil.copy2(path, out / path.name)
    facts.save(out)
    print(f"{out}: {facts.stage} of {facts.codebook.name}, with ears and voice")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

"""The `units-train-vocoder` command: wavs and their units -> a vocoder folder.

    units-train-vocoder --config units/configs/toy_vocoder.yaml --units runs/toy/units/train \\
        --manifest runs/toy/corpus/train.jsonl --speaker flite:slt --out runs/toy/vocoder      # six minutes, one CPU
    accelerate launch -m units.vocoder.train_vocoder --config units/configs/hifigan_vocoder.yaml --units UNITS \\
        --manifest MANIFEST --out OUT --device cuda                                            # several GPUs

Writes `OUT/log.jsonl` (step, losses, seconds) and `OUT/training.pt` (the checkpoint that a killed run resumes from);
with the heads "vocos" and "hifigan" also `OUT/samples` and `OUT/tensorboard`; and last `OUT/model.safetensors` and
`OUT/config.json`. The crops of a step depend on the seed and the step alone, so a resumed run ends with the weights of
an uninterrupted one.
"""

from __future__ import annotations

from pathlib import Path

from units.runtime.command import command
from units.vocoder.errors import VocoderError, VocoderReason
from units.vocoder.training.recipe import VocoderRecipe


@command("units-train-vocoder", positional=False)
def main(
    units: Path,
    manifest: Path,
    out: Path,
    speaker: str | None = None,
    recipe: VocoderRecipe = VocoderRecipe(),
    device: str = "cpu",
    threads: int = 0,
    start: Path | None = None,
) -> None:
    """Train a unit vocoder on the wavs of a manifest and their units.

    Args:
        units: unit set of the manifest
        manifest: utterances with their wavs
        out: folder of the vocoder
        speaker: train on this speaker's utterances only; on all if not given
        recipe: the vocoder and how it is trained
        device: cpu, cuda, or cuda:N
        threads: CPU threads; 0 leaves the number to torch
        start: folder of another training to begin with, of the same head and sizes, for units that mean the same
    """
    if threads < 0:
        raise VocoderError(VocoderReason.INVALID_SETTING, f"threads is {threads}; it is 0 or more")
    import torch

    from units.corpus.manifest import read_manifest
    from units.dataset.unit_set import read_unit_set
    from units.runtime.precision import check_device
    from units.vocoder.training.crops import match
    from units.vocoder.training.loop import train

    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    train(match(read_unit_set(units), read_manifest(manifest), speaker), recipe, out, device, start)
    print(f"vocoder in {out}")


if __name__ == "__main__":
    main.cli()

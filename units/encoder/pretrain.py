"""HuBERT pre-training by masked prediction, for a language or a machine without a suitable published encoder.

    units-pretrain --manifest runs/toy/corpus/train.jsonl --out runs/toy/hubert     # minutes, one CPU
    units-pretrain --manifest big.jsonl --out runs/hubert --device cuda --recipe.width 768 ...

The recipe is HuBERT's (Hsu et al. 2021, arXiv 2106.07447): cluster MFCCs, predict the clusters of masked frames, then
cluster what was learned and continue with those targets. Here each iteration predicts several codebooks at once
(section IV-B, cluster ensembles), and unmasked frames count as well, at half weight. Every crop is changed in speed,
tilt and noise while its targets stay those of the clean wav, so that units follow the words and not the speaker.

Other departures from the paper, and from fairseq where that is more precise: a linear head for each codebook instead of
cosines to label embeddings over a temperature; one network continues through the iterations, with new heads and a new
optimiser, instead of a new network in each; masked spans of 8 frames (paper: 10); no dropout and no layerdrop; a
positional convolution 32 wide (128); the front end learns at its full gradient (fairseq: a tenth) and without a penalty
on its features; MFCCs as in `units/encoder/mfcc.py`; and features are mean-normalised per utterance before clustering.

Writes `OUT/lengths.json` (samples of each utterance, or why it is unreadable; a resumed run reads it, and tries the
unreadable ones again until there are targets), targets and a checkpoint of each iteration, `OUT/hubert` (a transformers
folder, half precision), `OUT/log.jsonl`, and last `OUT/pretrain.json`. A killed run resumes from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from units.encoder.recipes import PretrainRecipe
from units.runtime.command import command


@command("units-pretrain", positional=False)
def main(
    manifest: Path,
    out: Path,
    recipe: PretrainRecipe = PretrainRecipe(),
    device: str = "cpu",
    workers: int | None = None,
    threads: int = 0,
    start: str | None = None,
) -> None:
    """Pre-train a HuBERT.

    Args:
        manifest: utterances to learn from; text is not used
        out: folder for checkpoints and the result
        recipe: the encoder and how it is trained
        device: cpu, cuda, or cuda:N
        workers: processes that load audio; 0 loads in this one, as on a CPU if not given; beside a GPU up to 8
        threads: CPU threads, torch's own choice if 0
        start: a transformers HuBERT folder to start from, of the recipe's size; random weights if not given
    """
    for name, count in (("workers", workers or 0), ("threads", threads)):
        if count < 0:
            raise ValueError(f"{name} is {count}; it is at least 0")
    import torch

    from units.audio import SAMPLE_RATE
    from units.corpus.manifest import read_manifest
    from units.encoder.hubert import HubertFeatures
    from units.encoder.pretraining.masked_prediction import build_model, train_iterations
    from units.encoder.pretraining.pretrain_data import PretrainCorpus
    from units.encoder.unit_encoder import UnitEncoder
    from units.runtime.ahead import usual_loaders
    from units.runtime.files.atomic import written_whole
    from units.runtime.precision import check_device

    check_device(device)
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    settled = (out / "targets1.safetensors").exists()  # they label what was readable then
    lengths, readers = out / "lengths.json", torch.get_num_threads()
    corpus = PretrainCorpus(read_manifest(manifest), recipe.shortest, lengths, readers, settled)
    print(
        f"{len(corpus.utterances)} utterances, {corpus.hours:.2f} hours; left out: {len(corpus.refused)} not readable, "
        f"{len(corpus.short)} shorter than {recipe.shortest / SAMPLE_RATE:.2f} s"
    )
    model = build_model(recipe)
    if start:
        model.load_state_dict(type(model).from_pretrained(start, dtype=torch.float32).state_dict())
    centres = train_iterations(
        model, corpus, recipe, out, device, usual_loaders(device) if workers is None else workers
    )
    model.half().cpu().save_pretrained(out / "hubert")
    if centres is not None:
        features = HubertFeatures.from_pretrained(out / "hubert", recipe.layers, out.name)
        name = f"{out.name}-L{recipe.layers}-{len(centres)}"
        UnitEncoder.from_features(features, centres, name, "none").save_pretrained(out / "unit_encoder")
    result = {
        "recipe": dataclasses.asdict(recipe),
        "utterances": len(corpus.utterances),
        "hours": round(corpus.hours, 2),
        "refused": len(corpus.refused),
        "too_short": len(corpus.short),
    }
    with written_whole(out / "pretrain.json") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main.cli()

"""Fit a codebook: features of a corpus, k-means, one unit encoder folder.

    units-fit --manifest runs/toy/corpus/train.jsonl --out runs/toy/unit_encoder
    units-fit --manifest folder/of/audio --out enc --encoder facebook/hubert-base-ls960 --layer 6 --size 500
    units-fit --manifest train.jsonl --out enc --encoder hubert_large_ll60k.pt --layer 22 --size 2000

The default encoder is the small HuBERT that comes with the package. `--encoder codec --layer 3 --centring frame` fits
another codebook on the encoder of the package's codec.
"""

from __future__ import annotations

import random
from pathlib import Path

from units.encoder.recipes import FitRecipe
from units.runtime.command import command


@command("units-fit", positional=False, flat=True)
def main(manifest: Path, out: Path, device: str = "cpu", recipe: FitRecipe = FitRecipe()) -> None:
    """Fit k-means on one layer's features and write a unit encoder.

    Args:
        manifest: utterances to draw frames from: a manifest, a folder, or any source that units-extract takes
        out: folder for the unit encoder
        device: cpu, cuda, or cuda:N
        recipe: what the codebook is fitted on, and how
    """
    from units.corpus.sources import list_source
    from units.encoder import kmeans
    from units.encoder.corpus_features import corpus_features, units_per_second
    from units.encoder.unit_encoder import MFCC, UnitEncoder, open_features
    from units.runtime.precision import check_device
    from units.shipped import ENCODERS

    check_device(device)
    source = ENCODERS.get(recipe.encoder, recipe.encoder)
    features = open_features(source, recipe.layer, device)
    features.name = recipe.encoder if recipe.encoder in (*ENCODERS, MFCC) else features.name
    utterances = list_source(manifest).utterances
    random.Random(recipe.seed).shuffle(utterances)
    pieces = corpus_features(utterances[: recipe.utterances], features, recipe.centring)
    fit = kmeans.fit(kmeans.sample_frames(pieces, recipe.frames, recipe.seed), recipe.size, recipe.seed)
    name = recipe.name or f"{Path(recipe.encoder).stem}-L{features.layer}-km{recipe.size}"
    made = UnitEncoder.from_features(features, fit.centres, name, recipe.centring)
    made.save_pretrained(out)
    print(
        f"k-means: {fit.frames} frames, K={recipe.size}, inertia {fit.inertia:.4f}, dead centres {fit.dead}, "
        f"{units_per_second(made, utterances):.1f} units a second"
    )
    print(f"{made.codebook.name} ({made.codebook.fingerprint}) in {out}")


if __name__ == "__main__":
    main.cli()

"""HuBERT pre-training by masked prediction, for a language or a machine with no encoder of its own.

    python -m units.pretrain --manifest runs/toy/corpus/train.jsonl --out runs/toy/hubert   # minutes, one CPU
    python -m units.pretrain --manifest big.jsonl --out runs/hubert --device cuda --recipe.width 768 ...

The recipe is HuBERT's (Hsu et al. 2021, arXiv 2106.07447): cluster MFCCs, predict the clusters of masked frames, then
cluster what was learned and go on with those targets. Here each iteration predicts several codebooks at once
(section IV-B, cluster ensembles) and unmasked frames count as well, at half weight; and every crop is changed in
speed, tilt and noise while its targets stay those of the clean wav, so that units follow the words, not the voice.

Writes `OUT/hubert` (a transformers folder, half precision), `OUT/log.jsonl`, and last `OUT/pretrain.json`.
A killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from units.audio import SAMPLE_RATE
from units.hubert import HubertFeatures
from units.manifest import read_manifest, written_whole
from units.mfcc import MfccFeatures
from units.pretrain_data import Corpus, Iteration, PretrainRecipe, Steps, make_targets


def build_model(recipe: PretrainRecipe) -> nn.Module:
    """A HubertModel of the base layout (GroupNorm front end, post-norm) at the recipe's size, without dropout."""
    from transformers import HubertConfig, HubertModel

    return HubertModel(
        HubertConfig(
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.width,
            conv_dim=(recipe.conv_width,) * 7,
            num_conv_pos_embeddings=32,
            num_conv_pos_embedding_groups=16,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=True,
            mask_time_prob=0.05,
        )  # fmt: skip
    )


def masked_prediction_loss(
    logits: list[Tensor], targets: Tensor, mask: Tensor, unmasked_weight: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over masked frames plus `unmasked_weight` times that over the others, averaged over the heads.

    Returns: the loss, and the accuracy of the first head on masked frames.
    """
    loss = torch.zeros((), device=mask.device)
    for head, scores in enumerate(logits):
        each = nn.functional.cross_entropy(
            scores.flatten(0, 1).float(), targets[..., head].flatten().long(), reduction="none"
        )
        flat = mask.flatten()
        loss = loss + each[flat].mean() + unmasked_weight * each[~flat].mean()
    hits = (logits[0].argmax(-1) == targets[..., 0])[mask].float().mean()
    return loss / len(logits), hits


def train_iteration(
    model: nn.Module,
    steps: Steps,
    heads: nn.ModuleList,
    plan: Iteration,
    number: int,
    out: Path,
    workers: int,
    device: str,
) -> None:
    """Train one iteration in place, from its last checkpoint if there is one."""
    recipe = steps.recipe
    params = nn.ModuleDict({"model": model, "heads": heads}).to(device)
    optimizer = torch.optim.AdamW(params.parameters(), lr=plan.peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    fall = max(1, plan.steps - recipe.warmup)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / recipe.warmup, max(0.03, 1 - 0.97 * max(0, s - recipe.warmup) / fall))
    )
    saved, start = out / f"iteration{number}.pt", 0
    if saved.exists():
        state = torch.load(saved, weights_only=True, map_location=device)
        params.load_state_dict(state["params"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        start = state["step"]
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(steps, range(start, plan.steps)), batch_size=None, num_workers=workers
    )
    model.train()
    began, heard, running = time.monotonic(), 0.0, {"loss": 0.0, "accuracy": 0.0}
    with (
        (out / "log.jsonl").open("a") as log,
        tqdm(total=plan.steps, initial=start, desc=f"iteration {number}", unit=" steps", mininterval=5) as bar,
    ):
        for step, (wav, targets, mask) in enumerate(loader, start + 1):
            wav, targets, mask = wav.to(device), targets.to(device), mask.to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                hidden = model(wav, mask_time_indices=mask).last_hidden_state
                logits = [head(hidden) for head in heads]
            loss, accuracy = masked_prediction_loss(logits, targets, mask, recipe.unmasked_weight)
            loss.backward()
            nn.utils.clip_grad_norm_(params.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            heard += wav.numel() / SAMPLE_RATE
            for name, value in (("loss", loss), ("accuracy", accuracy)):
                running[name] += value.item() / 100
            bar.update()
            if step % 100 == 0:
                rate = heard / (time.monotonic() - began)
                log.write(
                    json.dumps(
                        {
                            "iteration": number,
                            "step": step,
                            **{k: round(v, 4) for k, v in running.items()},
                            "audio_s_per_s": round(rate, 1),
                        }
                    )
                    + "\n"
                )
                log.flush()
                bar.set_postfix_str(
                    f"loss {running['loss']:.3f} masked accuracy {running['accuracy']:.3f} {rate:.0f} audio-s/s"
                )
                running = dict.fromkeys(running, 0.0)
            if step % recipe.save_every == 0 or step == plan.steps:
                with written_whole(saved, "wb") as file:
                    torch.save(
                        {
                            "params": params.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(),
                            "step": step,
                        },
                        file,
                    )


def main(
    manifest: Path,
    out: Path,
    recipe: PretrainRecipe = PretrainRecipe(),
    device: str = "cpu",
    workers: int = 0,
    threads: int = 0,
) -> None:
    """Pre-train a HuBERT.

    Args:
        manifest: utterances to learn from; text is not used
        out: folder for checkpoints and the result
        recipe: the encoder and how it is trained
        device: cpu or cuda
        workers: processes that load audio; 0 loads in this one
        threads: CPU threads, torch's own choice if 0
    """
    if threads:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    corpus = Corpus(read_manifest(manifest))
    hours = corpus.lengths.sum() / SAMPLE_RATE / 3600
    print(f"{len(corpus.utterances)} utterances, {hours:.2f} hours, {len(corpus.refused)} refused")
    model = build_model(recipe)
    for number, plan in enumerate(recipe.iterations, 1):
        sizes = [size for layer in plan.clusters for size in plan.clusters[layer]]
        targets = _targets(corpus, model, plan, out / f"targets{number}.safetensors", recipe.seed, device)
        heads = nn.ModuleList(nn.Linear(recipe.width, size) for size in sizes)
        train_iteration(
            model, Steps(corpus, targets, recipe, number, plan.steps), heads, plan, number, out, workers, device
        )
    model.half().cpu().save_pretrained(out / "hubert")
    with written_whole(out / "pretrain.json") as file:
        json.dump({"recipe": dataclasses.asdict(recipe), "utterances": len(corpus.utterances), "hours": round(hours, 2),
                   "refused": len(corpus.refused)}, file, indent=1)  # fmt: skip


def _targets(corpus: Corpus, model: nn.Module, plan: Iteration, saved: Path, seed: int, device: str) -> Tensor:
    """Labels of every frame for one iteration, from `saved` if a run that was killed had made them."""
    from safetensors.torch import load_file, save_file

    if saved.exists():
        targets = load_file(saved)["targets"]
        if len(targets) != corpus.first_frame[-1]:
            raise ValueError(
                f"{saved} labels {len(targets)} frames, the corpus has {corpus.first_frame[-1]}: it changed; give another --out"
            )
        return targets
    labels = [make_targets(corpus, _extractor(model, layer, device), k, seed) for layer, k in plan.clusters.items()]
    targets = torch.cat(labels, dim=1)
    part = saved.with_suffix(".part")
    save_file({"targets": targets}, str(part))
    part.replace(saved)
    return targets


def _extractor(model: nn.Module, layer: int, device: str) -> HubertFeatures | MfccFeatures:
    """Features for targets: MFCC for layer 0, else the model as it stands."""
    if layer == 0:
        return MfccFeatures()
    return HubertFeatures(copy.deepcopy(model), layer, f"layer {layer}").to(device)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)

"""Whether the written folder holds the model that was trained: both score the same few documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from stages.evaluating import evaluating
from stages.held_out import sample_documents
from stages.packing.blocks import PackedBlocks
from stages.system import Block, Opened
from stages.trainer import StageTrainer

DOCUMENTS = 4  # that are scored
LEAST = 1e-3  # difference of a loss that rounding in full precision may cause
ROUNDINGS = 4  # of the coarsest type among training and the file, that a document's mean loss may differ by
QUANTIZED = {4: 0.25, 8: 0.05}  # by bits of the frozen weights in training; the merged weights are not quantized
ROOM = 1.2  # times the size of its files: memory that a model needs beside the trained one


class WrittenModelError(ValueError):
    """The written folder does not score as the trained model did."""


def documents_to_score(held_out: PackedBlocks, train: PackedBlocks) -> list[Block]:
    """A few held-out documents, each as a block; training documents if none are held out."""
    packed = held_out if len(held_out) else train
    chosen = [(packed.sources[source], document) for _, source, document in sample_documents(packed, DOCUMENTS)]
    return [
        PackedBlocks([(tokenised, np.array([document]), 1.0)], int(tokenised.lengths[document]), None, packed.pad, 0)[0]
        for tokenised, document in chosen
    ]


@torch.no_grad()
def scores(opened: Opened, model: Any, blocks: list[Block]) -> list[float]:
    """The loss of each block, per item that the loss counts; blocks without any are left out."""
    with evaluating(model):
        collate = opened.collator()
        found = []
        for block in blocks:
            batch = {name: _to(part, model.device) for name, part in collate([block]).items()}
            items = opened.items(batch)
            if items > 0:
                found.append(float(opened.loss(model, batch, items)))
    return found


def _to(part: Any, device: torch.device) -> Any:
    return part.to(device) if isinstance(part, Tensor) else part


def check_written(
    trainer: StageTrainer, opened: Opened, blocks: list[Block], trained: list[float], folder: Path
) -> None:
    """Open the written folder as a user does, and compare its scores with those of the trained model.

    Args:
        trained: the trained model's scores of the blocks.

    Raises: WrittenModelError if they differ by more than rounding, or if its tokenizer has other words.
    """
    words = AutoTokenizer.from_pretrained(folder).get_vocab()
    if words != opened.tokenizer.get_vocab():
        raise WrittenModelError(
            f"the tokenizer in {folder} has {len(words)} words after it was written, and the one in training has "
            f"{len(opened.tokenizer.get_vocab())}, or their ids differ; the folder is not moved to its place"
        )
    model = opened.load(folder)
    with trainer.accelerator.autocast():  # as the trained model: half precision can cost a deep one a tenth of a nat
        written = scores(opened, _placed(model, trainer.args.device, folder), blocks)
    allowed = tolerance(opened, trainer, model)
    worst = max(
        (abs(one - two) / max(1.0, abs(two)) for one, two in zip(written, trained, strict=True)),
        key=lambda difference: np.inf if np.isnan(difference) else difference,
        default=0.0,
    )
    means = [sum(losses) / max(1, len(losses)) for losses in (written, trained)]
    report = f"{len(trained)} documents: loss {means[0]:.4f} by the written folder, {means[1]:.4f} by the trained model"
    if not worst <= allowed:
        raise WrittenModelError(
            f"the written model is not the trained one. {report}; one of them differs by {worst:.2g}, and rounding "
            f"explains {allowed:.2g}. The folder stays in {folder}, and is not moved to its place"
        )
    print(report, flush=True)


def _placed(model: Any, device: torch.device, folder: Path) -> Any:
    """The model on the GPU if there is room beside the trained one; otherwise where it was loaded."""
    if device.type != "cuda":
        return model
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    torch.cuda.empty_cache()
    return model.to(device) if torch.cuda.mem_get_info(device)[0] > ROOM * size else model


def tolerance(opened: Opened, trainer: StageTrainer, written: Any) -> float:
    """How far the losses of a document may lie apart, relative to the larger of 1 and the loss."""
    lora = opened.config.lora
    if lora and lora.bits in QUANTIZED:
        return QUANTIZED[lora.bits]
    types = {part.dtype for model in (written, opened.model) for part in model.parameters() if part.is_floating_point()}
    types |= {torch.bfloat16} if trainer.args.bf16 else {torch.float16} if trainer.args.fp16 else set()
    return max(LEAST, *(ROUNDINGS * torch.finfo(one).eps for one in types))

"""What the speech decoder says of held-out answers, in figures: why it learns, or why it does not.

| figure | what it tells |
|---|---|
| `dev_unit_loss` | CTC loss a unit |
| `dev_blank_share` | frames that are most likely blank: near 1, the decoder says nothing; near 0, it stutters |
| `dev_unit_error` | wrong, missing and added units after collapse, for each unit of the target |
| `dev_frames_a_unit` | room for the alignment; 1.5 to 2 is enough, below 1 targets do not fit |
| `dev_refused_targets` | answers whose units need more frames than they have in use; in training they get more |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.evaluating import evaluating
from stages.packing.blocks import PackedBlocks
from units.dataset.measures.information import edit_distance
from variants.llama_omni.network.ctc import collapse, ctc_loss, frames_needed


@torch.no_grad()
def units_report(
    model: Any,
    held_out: PackedBlocks,
    blocks: int,
    logits_of: Callable[[Any], tuple[Tensor, dict[str, Any]]],
    upsample: int,
) -> dict[str, float]:
    """Figures on the first so many held-out blocks.

    Args:
        logits_of: of a block: logits (S, U, K + 1), and the batch with the answers.
        upsample: frames of a token in use.
    """
    with evaluating(model):
        loss = 0.0
        answers = blanks = frames = wrong = units = refused = 0
        for index in range(min(blocks, len(held_out))):
            logits, batch = logits_of(held_out[index])
            counts, lengths = batch["unit_counts"].tolist(), batch["said_lengths"].tolist()
            loss += float(ctc_loss(logits, batch["said_frames"], batch["units"], batch["unit_counts"]))
            blank = logits.shape[-1] - 1
            targets = [row.tolist() for row in batch["units"].split(counts)]
            for said, frame_count, target, tokens in zip(
                logits.argmax(-1), batch["said_frames"].tolist(), targets, lengths, strict=True
            ):
                symbols = said[:frame_count].tolist()
                answers += 1
                frames += frame_count
                blanks += symbols.count(blank)
                wrong += edit_distance(target, collapse(symbols, blank))
                units += len(target)
                refused += frames_needed(target) > tokens * upsample
    return {
        "dev_unit_loss": round(loss / units, 4),
        "dev_blank_share": round(blanks / frames, 4),
        "dev_unit_error": round(wrong / units, 4),
        "dev_frames_a_unit": round(frames / units, 3),
        "dev_refused_targets": round(refused / answers, 4),
    }

"""Training steps of BLSP's packed blocks beside upstream's batches of three padded parts; the command is
bench.listening.

B examples of a batch, H width of the LLM.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.options import WARM_UP
from stages.packing.blocks import IGNORED, PackedBlocks, load_blocks, on_device
from stages.trainable import choose_trainable
from units.runtime.provenance import commit, machine
from variants.blsp.config import BlspConfig
from variants.blsp.stages.opened import BlspOpened
from variants.blsp.stages.system import BLSP_SYSTEM
from variants.listening import padded

Step = Callable[[], tuple[Tensor, int]]  # a loss, and how many tokens and places that are not padding it is of


def opened_stage(config: BlspConfig, device: str) -> BlspOpened:
    """A stage at its start, with the attention that it trains with."""
    attention = "by_document" if device == "cpu" else "sdpa"
    opened = BLSP_SYSTEM.open(config, attn_implementation=attention)
    assert isinstance(opened, BlspOpened)
    opened.model.to(device)
    choose_trainable(opened.model, config, opened.parts)
    opened.model.train()
    return opened


def seconds(device: str) -> float:
    """A clock: of this process's CPU, or of the wall where a GPU works."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def tokens_a_second(opened: BlspOpened, steps: Iterator[Step], device: str) -> float:
    """Tokens and places that are not padding, trained on in a second, after the warm-up."""
    weights = [weight for weight in opened.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4)
    tokens, began = 0, 0.0
    for number, step in enumerate(steps):
        if number == WARM_UP:
            began, tokens = seconds(device), 0
        loss, count = step()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += count
    return tokens / (seconds(device) - began)


def packed_steps(opened: BlspOpened, blocks: PackedBlocks, each: int, device: str) -> Iterator[Step]:
    """Steps of `each` packed blocks."""
    collate = opened.collator()
    for start in range(0, len(blocks) - each + 1, each):
        lengths = [
            int(blocks.sources[source].lengths[document])
            for index in range(start, start + each)
            for source, document in blocks.documents_of(index)
        ]

        def step(start: int = start, count: int = sum(lengths)) -> tuple[Tensor, int]:
            batch = on_device(collate([blocks[index] for index in range(start, start + each)]), torch.device(device))
            return opened.loss(opened.model, batch, opened.items(batch)), count

        yield step


def padded_steps(opened: BlspOpened, blocks: PackedBlocks, each: int, steps: int, device: str) -> Iterator[Step]:
    """Steps of `each` examples in upstream's way, drawn from the same documents."""
    documents = sorted({one for index in range(len(blocks)) for one in blocks.documents_of(index)})
    draw = np.random.default_rng(0)
    for _ in range(steps):
        chosen = [documents[i] for i in draw.integers(0, len(documents), each)]

        def step(chosen: list[tuple[int, int]] = chosen) -> tuple[Tensor, int]:
            batch = three_parts(opened, blocks, chosen, device)
            logits = opened.model.llm(**batch["inputs"], use_cache=False).logits
            loss = functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED
            )
            return loss, batch["count"]

        yield step


def three_parts(opened: BlspOpened, blocks: PackedBlocks, chosen: list[tuple[int, int]], device: str) -> dict[str, Any]:
    """A batch in upstream's way: input embeddings, mask and labels of prefix, speech and suffix, each padded."""
    befores, afters, labels, sounds = [], [], [], []
    for source, document in chosen:
        tokenised = blocks.sources[source]
        ids, train = (torch.from_numpy(np.array(part)).to(device) for part in tokenised.document(document))
        places = tokenised.column("places", document)
        befores.append(ids[: places[0]].long())
        afters.append(ids[places[-1] + 1 :].long())
        labels.append(torch.where(train, ids, IGNORED)[places[-1] + 1 :].long())
        sounds.append(states_of(opened, tokenised, document).to(device))
    states, frames = padded(sounds)
    counts = [opened.config.adapter.embeddings(int(count)) for count in frames]
    speech = nn.utils.rnn.pad_sequence(list(opened.model.adapter(states, frames).split(counts)), batch_first=True)
    embed = opened.model.get_input_embeddings()
    before, after, said = (nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (befores, afters, labels))
    said = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
    lengths = ([len(one) for one in befores], counts, [len(one) for one in afters])
    mask = torch.cat([inside(one, part.shape[1], device) for one, part in zip(lengths, (before, speech, after))], 1)
    rows = torch.cat([embed(before), speech.to(embed.weight.dtype), embed(after)], 1)
    unlabelled = torch.full((len(chosen), before.shape[1] + speech.shape[1]), IGNORED, device=device)
    return {
        "inputs": {"inputs_embeds": rows, "attention_mask": mask},
        "labels": torch.cat([unlabelled, said], 1),
        "count": int(mask.sum()),
    }


def states_of(opened: BlspOpened, tokenised: Any, document: int) -> Tensor:
    """The encoder's states of a document's recording, float32 (N, D)."""
    if opened.feature_set is None:
        return torch.from_numpy(tokenised.column("states", document).astype(np.float32))
    from units.dataset.feature_set import Span

    (shard, start), (frames,) = tokenised.column("rows", document)[0], tokenised.column("frames", document)
    return torch.from_numpy(opened.feature_set.states(Span(int(shard), int(start), int(frames))).astype(np.float32))


def inside(lengths: list[int], longest: int, device: str) -> Tensor:
    """A mask (B, longest) of what is not padding."""
    return (torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]).long()


def config_of(path: Path, run: Path) -> BlspConfig:
    """The config of a stage's file."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(BlspConfig)
    fields = dict(parser.instantiate_classes(parser.parse_args(["--config", str(path), "--run", str(run)])))
    return BlspConfig(**{name: value for name, value in fields.items() if name != "config"})


def compare(path: Path, run: Path, steps: int, live: bool, device: str) -> dict[str, Any]:
    """The figures of both ways; those of a checkpoint are bytes of weights in single precision."""
    config = config_of(path, run)
    each = config.training.get("per_device_train_batch_size", 8)
    opened = opened_stage(config, device)
    blocks, _ = load_blocks(opened, steps * each, quiet=True)
    examples = round(sum(len(blocks.documents_of(i)) for i in range(len(blocks))) / steps)
    found: dict[str, Any] = {"commit": commit(), "machine": machine(device), "examples a step": examples}
    ours = tokens_a_second(opened, packed_steps(opened, blocks, each, device), device)
    again = opened_stage(dataclasses.replace(config), device)
    upstream = tokens_a_second(again, padded_steps(again, blocks, examples, steps, device), device)
    found |= {
        "tokens a second, ours": ours,
        "tokens a second, upstream's way": upstream,
        "times": ours / upstream,
        "fill of blocks": blocks.fill,
    }
    if live:
        lively = opened_stage(dataclasses.replace(config, features="live"), device)
        wavs, _ = load_blocks(lively, steps * each, quiet=True)
        found["tokens a second, recordings encoded live"] = tokens_a_second(
            lively, packed_steps(lively, wavs, each, device), device
        )
    learning = sum(weight.numel() for weight in opened.model.parameters() if weight.requires_grad)
    heard: nn.Module = getattr(opened.encoder, "model")  # noqa: B009  # of a transformers encoder
    whole = opened.model.num_parameters() + sum(weight.numel() for weight in heard.parameters())
    return found | {
        "checkpoint, MB": learning * 4 / 1e6,
        "upstream's checkpoint, MB": whole * 4 / 1e6,
        "share": learning / whole,
    }

"""Errors of each implementation of attention against float64; the command is bench.attention_exact."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from bench.timing.attention import implementations
from bench.timing.train import conversations
from stages.packing.attention import takes_bounds
from stages.packing.blocks import PackedBlocks, flattened
from units.runtime.precision import autocast
from units.runtime.provenance import commit, machine

HEAD = 64


def compare(width: int, layers: int, block: int, window: int, seed: int, most: float) -> list[str]:
    """Print each implementation's errors; return the names of those that are `most` times worse than eager's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    documents = conversations(100, block, seed)
    blocks = PackedBlocks([(documents, np.arange(len(documents)), 1.0)], block, 2, 0, seed)
    items = [{name: row.to(device) for name, row in blocks[i].items()} for i in range(2)]
    torch.manual_seed(seed)
    config = MistralConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(2, width // HEAD),
        num_key_value_heads=max(2, width // HEAD) // 2,
        head_dim=HEAD,
        vocab_size=1024,
        max_position_embeddings=4096,
        sliding_window=window or None,
        initializer_range=0.05,
    )
    model = MistralForCausalLM(config).to(device)
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    logits, gradients = scores(exact, items, half=False)
    print(
        f"{layers} layers of {width}, 2 blocks of {block}, window {window}, {machine(device.type)}, commit {commit()}"
    )
    print(f"{'relative error against float64':32}{'logits':>12}{'gradients':>12}{'worst weight':>14}")
    errors: dict[str, tuple[float, float, float]] = {}
    names = ["eager", *(name for name in implementations() if name != "eager")]
    for name in names:
        model.set_attn_implementation(name)
        found, slopes = scores(model, items, half=True)
        apart = {key: relative(slopes[key], gradients[key]) for key in gradients}
        whole = relative(
            torch.cat([s.flatten() for s in slopes.values()]), torch.cat([s.flatten() for s in gradients.values()])
        )
        errors[name] = relative(found, logits), whole, max(apart.values())
        print(f"{name:32}" + "".join(f"{error:>12.2e}" for error in errors[name]))
    return [name for name in names if any(a > most * b for a, b in zip(errors[name], errors["eager"]))]


def scores(model: PreTrainedModel, items: list[dict[str, Tensor]], half: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits of all tokens (2 L, V), and the gradients of the mean loss by the weight's name, in float64."""
    batch = flattened(items) if takes_bounds(model) else {k: torch.stack([item[k] for item in items]) for k in items[0]}
    model.zero_grad()
    if half:
        with autocast(model.device):
            output = model(**batch, use_cache=False)
    else:
        output = model(**batch, use_cache=False)
    output.loss.backward()
    gradients = {name: weight.grad.double() for name, weight in model.named_parameters() if weight.grad is not None}
    return output.logits.detach().double().flatten(0, 1), gradients


def relative(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||."""
    return ((found - exact).norm() / exact.norm()).item()

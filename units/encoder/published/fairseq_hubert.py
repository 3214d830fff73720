"""Read published encoders: fairseq's HuBERT checkpoints and k-means files. Neither needs fairseq or runs a pickle.

    model, normalise = read_fairseq_hubert("mhubert_base_vp_en_es_fr_it3.pt", layer=11)
    centres = read_centres("mhubert_base_vp_en_es_fr_it3_L11_km1000.bin")

What to know of a fairseq checkpoint (.pt):

* It is a file of torch.save with a dict: `model` holds the weights, `cfg` the settings (`cfg.model`, `cfg.task`) as
  omegaconf nodes; before 2021 `args` held all settings in one argparse namespace.
* `encoder_layers`, `encoder_embed_dim` and others give sizes. `conv_feature_layers` is a Python expression such as
  "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2": channels, kernel and stride of each convolution.
* Base models: `extractor_mode: default` (GroupNorm in the first convolution), norms after each block. Large models:
  `extractor_mode: layer_norm`, `layer_norm_first: true`, and `task.normalize: true` (each wav to mean 0, variance 1).
* The positional convolution has weight norm, `pos_conv.0`. With `conv_pos_batch_norm: true`, as in mhubert_base_25hz
  (fairseq since commit 4db2649), a batch norm `pos_conv.0` comes before a plain convolution `pos_conv.1`.
* Layers are counted from 1, as `output_layer` of fairseq's feature readers and `hidden_states[layer]` of transformers.
* `final_proj`, `label_embs_concat` and `mask_emb` are used in pre-training only.

A published k-means is scikit-learn's KMeans or MiniBatchKMeans in a joblib file (`.bin`, `.km`). It does not state the
encoder or the layer that it was fitted on; `PUBLISHED` has those of the known pairs.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from units.encoder.published.checkpoint_files import UnreadableFile, read_joblib, read_torch
from units.encoder.published.pickles import Inert, plain


@dataclass(frozen=True)
class Published:
    """A published encoder with its k-means.

    files: how names of the encoder's file begin. layer: of the k-means. sizes: numbers of centres. source: of the rest.
    """

    files: tuple[str, ...]
    layer: int
    sizes: tuple[int, ...]
    source: str


PUBLISHED = (
    Published(("hubert_base_ls960", "hubert-base-ls960"), 6, (50, 100, 200), "fairseq examples/textless_nlp/gslm"),
    Published(("hubert_base_ls960", "hubert-base-ls960"), 9, (500,), "fairseq examples/hubert"),
    Published(("mhubert_base_vp_en_es_fr_it3", "mhubert-base-vp"), 11, (1000,), "SpeechGPT, LLaMA-Omni"),
    Published(("mhubert-base-25hz", "mhubert_base_25hz"), 11, (500,), "slamkit"),
)


def published_layer(encoder: str, size: int) -> int | None:
    """The layer that a published k-means of `size` centres was fitted on, if the encoder's file name is a known one."""
    name = Path(encoder).name
    for known in PUBLISHED:
        if name.startswith(known.files) and size in known.sizes:
            return known.layer
    return None


def read_centres(path: str | Path) -> Tensor:
    """Centres of a k-means: .safetensors, .npy, or a joblib file (.bin, .km, .joblib) of scikit-learn's KMeans.

    Returns: float32 (K, D).

    Raises: FileNotFoundError; UnreadableFile if the file holds no k-means.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no k-means file at {path}")
    if path.suffix == ".safetensors":
        centres = _of_safetensors(path)
    elif path.suffix == ".npy":
        try:
            centres = np.load(path, allow_pickle=False)
        except Exception as error:  # its header is a Python literal, and fails in any way that parsing can fail
            raise UnreadableFile(f"{path} cannot be read as an array: {str(error)[:300]}") from error
    else:
        held = read_joblib(path)
        centres = (
            held.state.get("cluster_centers_") if isinstance(held, Inert) and isinstance(held.state, dict) else held
        )
    if not (isinstance(centres, np.ndarray) and centres.ndim == 2 and centres.dtype.kind == "f" and centres.size):
        what = centres.shape if isinstance(centres, np.ndarray) else type(centres).__name__
        raise UnreadableFile(f"{path} holds {what}; centres are an array of floats (K, D)")
    with np.errstate(over="ignore"):
        centres = np.array(centres, dtype=np.float32, order="C")
    if not np.isfinite(centres).all():
        raise UnreadableFile(f"{path} holds centres that are NaN or infinite, as float32")
    return torch.from_numpy(centres)


def _of_safetensors(path: Path) -> Any:
    from safetensors.numpy import load_file

    try:
        held = load_file(path)
    except Exception as error:  # SafetensorError, and numpy's errors for dtypes that it does not have
        raise UnreadableFile(f"{path} cannot be read as safetensors: {str(error)[:300]}") from error
    return held.get("centres", next(iter(held.values()), None) if len(held) == 1 else None)


@dataclass(frozen=True)
class FairseqHubert:
    """A fairseq HuBERT checkpoint under fairseq's names.

    model, task: settings. convolutions: (channels, kernel, stride) of each. weights: by name.
    """

    path: Path
    model: dict[str, Any]
    task: dict[str, Any]
    convolutions: list[tuple[int, int, int]]
    weights: dict[str, Tensor]


def read_fairseq_checkpoint(path: str | Path) -> FairseqHubert:
    """Read a fairseq HuBERT checkpoint (.pt).

    Raises: FileNotFoundError; UnreadableFile if it is no HuBERT of fairseq.
    """
    held = read_torch(path)
    weights = held.get("model") if isinstance(held, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise UnreadableFile(f"{path} is no fairseq checkpoint: it has no 'model' full of tensors")
    config = plain(held.get("cfg"))
    if isinstance(config, dict) and isinstance(config.get("model"), dict):
        model, task = config["model"], config.get("task") or {}
    else:  # before hydra (2021) both were in one argparse namespace
        model = task = plain(held.get("args"))
    if not isinstance(model, dict) or not model.keys() >= NEEDED:
        raise UnreadableFile(f"{path} does not state what model it holds (no cfg.model, no args of a HuBERT)")
    kind = model.get("_name") or model.get("arch") or "hubert"
    if not str(kind).startswith("hubert"):
        raise UnreadableFile(f"{path} holds a {kind!r}, not a HuBERT")
    for name, only in (
        ("layer_type", "transformer"),
        ("attn_type", ""),
        ("pos_enc_type", "abs"),
        ("pos_conv_depth", 1),
    ):
        if model.get(name, only) not in (only, None):
            raise UnreadableFile(f"{path} has {name} {model[name]!r}; only {only or 'the default'!r} is read")
    try:
        convolutions = [(int(c), int(k), int(s)) for c, k, s in _literal(model["conv_feature_layers"])]
    except Exception as error:  # the parser fails in any way that a text can be wrong
        raise UnreadableFile(f"{path}: conv_feature_layers is {str(model['conv_feature_layers'])[:300]!r}") from error
    return FairseqHubert(Path(path), model, task, convolutions, weights)


def read_fairseq_hubert(path: str | Path, layer: int | None = None) -> tuple[nn.Module, bool]:
    """A fairseq HuBERT checkpoint as a transformers HubertModel.

    The checkpoint's settings decide the layout (which norm, where, biases, input normalisation), not the shapes. Names
    follow transformers' conversion (convert_hubert_original_pytorch_checkpoint_to_pytorch.py).

    Args:
        layer: layers above it are left out; None keeps all.

    Returns: the model, and whether its input is normalised to mean 0 and variance 1.

    Raises: FileNotFoundError; ValueError for a layer that it does not have; UnreadableFile if it is no fairseq HuBERT.
    """
    from transformers import HubertModel

    found = read_fairseq_checkpoint(path)
    depth = int(found.model["encoder_layers"])
    if layer is not None and not 1 <= layer <= depth:
        raise ValueError(f"layer is {layer}; {path} has layers 1 to {depth}")
    config = _config(found, layer or depth)
    weights = _renamed(found.weights, config)
    if "feature_projection.projection.weight" not in weights:  # fairseq has none if the widths are equal
        weights["feature_projection.projection.weight"] = torch.eye(config.hidden_size)
        weights["feature_projection.projection.bias"] = torch.zeros(config.hidden_size)
    with torch.device("meta"):
        model = HubertModel(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UnreadableFile(
            f"the weights of {path} do not fit its settings: {' '.join(str(error).split())[:500]}"
        ) from error
    return model.eval(), bool(found.task.get("normalize", False))


def _config(found: FairseqHubert, layers: int) -> Any:
    from transformers import HubertConfig

    settings = found.model
    dims, kernels, strides = zip(*found.convolutions)
    return HubertConfig(
        hidden_size=settings["encoder_embed_dim"],
        num_hidden_layers=layers,
        num_attention_heads=settings["encoder_attention_heads"],
        intermediate_size=settings["encoder_ffn_embed_dim"],
        hidden_act=settings.get("activation_fn", "gelu"),
        do_stable_layer_norm=settings.get("layer_norm_first", False),
        feat_extract_norm="layer" if settings.get("extractor_mode", "default") == "layer_norm" else "group",
        conv_dim=dims,
        conv_kernel=kernels,
        conv_stride=strides,
        conv_bias=settings.get("conv_bias", False),
        num_conv_pos_embeddings=settings.get("conv_pos", 128),
        num_conv_pos_embedding_groups=settings.get("conv_pos_groups", 16),
        conv_pos_batch_norm=bool(settings.get("conv_pos_batch_norm", False)),
    )


def _literal(text: Any) -> list:
    """A list written with +, * and numbers, such as "[(512,10,5)] + [(512,3,2)] * 4", without running it."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            found = value(node.left), value(node.right)
            if sum(isinstance(one, list) for one in found) != 1 or not all(
                isinstance(n, list) or 0 < n < 100 for n in found
            ):
                raise ValueError(text)
            return found[0] * found[1]
        return ast.literal_eval(node)

    return value(ast.parse(text, mode="eval").body) if isinstance(text, str) else text


# fairseq's name -> transformers' name, in this order
RENAMED = (
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.2(\.1)?\.", r"\1.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
)
WEIGHT_NORM = (  # the positional convolution
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
)
BATCH_NORM = (  # the same with conv_pos_batch_norm
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.batch_norm."),
    (r"^encoder\.pos_conv\.1\.", "encoder.pos_conv_embed.conv."),
)
PRETRAINING_ONLY = ("final_proj.", "label_embs_concat", "target_glu")
NEEDED = {
    "conv_feature_layers",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
}


def _renamed(state: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """Weights under transformers' names, float32, without layers above and parts that only pre-training uses."""
    renamed = (*RENAMED, *(BATCH_NORM if config.conv_pos_batch_norm else WEIGHT_NORM))
    found = {}
    for name, weight in state.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if name.startswith(PRETRAINING_ONLY) or (layer and int(layer[1]) >= config.num_hidden_layers):
            continue
        for fairseq, transformers in renamed:
            name = re.sub(fairseq, transformers, name)
        # a batch norm also counts its batches, in int64
        found[name] = (weight.float() if weight.is_floating_point() else weight).contiguous()
    return found

"""What users already have: fairseq's HuBERT checkpoints and k-means files of any origin, read without fairseq and
without running a pickle.

    model, normalise = read_fairseq_hubert("mhubert_base_vp_en_es_fr_it3.pt", layer=11)
    centres = read_centres("mhubert_base_vp_en_es_fr_it3_L11_km1000.bin")
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

from units.encoder.checkpoint_files import UnreadableFile, read_joblib, read_torch
from units.encoder.pickles import Inert, plain


@dataclass(frozen=True)
class Published:
    """An encoder and its k-means as people have them on disk: how their file names begin, the layer, the sizes."""

    files: tuple[str, ...]
    layer: int
    sizes: tuple[int, ...]
    said_by: str


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

    Raises: FileNotFoundError; units.inert.UnreadableFile if the file holds no k-means.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no k-means file at {path}")
    if path.suffix == ".safetensors":
        centres = _of_safetensors(path)
    elif path.suffix == ".npy":
        try:
            centres = np.load(path, allow_pickle=False)
        except Exception as error:  # its header is python's text, and fails in any way that text can fail
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
    except Exception as error:  # SafetensorError, and whatever numpy says of kinds of numbers that it has not
        raise UnreadableFile(f"{path} cannot be read as safetensors: {str(error)[:300]}") from error
    return held.get("centres", next(iter(held.values()), None) if len(held) == 1 else None)


@dataclass(frozen=True)
class FairseqHubert:
    """A fairseq HuBERT checkpoint, as it stands in the file.

    model, task: settings by fairseq's names. convolutions: (channels, kernel, stride) of each. weights: by fairseq's names.
    """

    path: Path
    model: dict[str, Any]
    task: dict[str, Any]
    convolutions: list[tuple[int, int, int]]
    weights: dict[str, Tensor]


def read_fairseq_checkpoint(path: str | Path) -> FairseqHubert:
    """Read a fairseq HuBERT checkpoint (.pt).

    Raises: FileNotFoundError; units.inert.UnreadableFile if it is no HuBERT of fairseq.
    """
    held = read_torch(path)
    weights = held.get("model") if isinstance(held, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise UnreadableFile(f"{path} is no fairseq checkpoint: it has no 'model' full of tensors")
    config = plain(held.get("cfg"))
    if isinstance(config, dict) and isinstance(config.get("model"), dict):
        model, task = config["model"], config.get("task") or {}
    else:  # before hydra (2021) both stood in one argparse namespace
        model = task = plain(held.get("args"))
    if not isinstance(model, dict) or not model.keys() >= NEEDED:
        raise UnreadableFile(f"{path} does not say what model it holds (no cfg.model, no args of a HuBERT)")
    kind = model.get("_name") or model.get("arch") or "hubert"
    if not str(kind).startswith("hubert"):
        raise UnreadableFile(f"{path} holds a {kind!r}, not a HuBERT")
    for name, only in (("layer_type", "transformer"), ("attn_type", ""), ("pos_enc_type", "abs")):
        if model.get(name, only) not in (only, None):
            raise UnreadableFile(f"{path} has {name} {model[name]!r}; only {only or 'the default'!r} is read")
    try:
        convolutions = [(int(c), int(k), int(s)) for c, k, s in _literal(model["conv_feature_layers"])]
    except Exception as error:  # python's parser fails in any way that a text can be wrong
        raise UnreadableFile(f"{path}: conv_feature_layers is {str(model['conv_feature_layers'])[:300]!r}") from error
    return FairseqHubert(Path(path), model, task, convolutions, weights)


def read_fairseq_hubert(path: str | Path, layer: int | None = None) -> tuple[nn.Module, bool]:
    """A fairseq HuBERT checkpoint as a transformers HubertModel.

    The layout (which norm, where, biases, input normalisation) is what the checkpoint's config says, not what the
    shapes suggest. Names follow transformers' own conversion (convert_hubert_original_pytorch_checkpoint_to_pytorch.py).

    Args:
        layer: layers above it are left out; None keeps all.

    Returns: the model, and whether it wants its input normalised to mean 0 and variance 1.

    Raises: FileNotFoundError; ValueError for a layer it has not; units.inert.UnreadableFile if it is no HuBERT of fairseq.
    """
    from transformers import HubertModel

    found = read_fairseq_checkpoint(path)
    depth = int(found.model["encoder_layers"])
    if layer is not None and not 1 <= layer <= depth:
        raise ValueError(f"layer {layer} asked of {path}, which has layers 1 to {depth}")
    config = _config(found, layer or depth)
    weights = _renamed(found.weights, config.num_hidden_layers)
    if "feature_projection.projection.weight" not in weights:  # fairseq leaves it out where the widths agree
        weights["feature_projection.projection.weight"] = torch.eye(config.hidden_size)
        weights["feature_projection.projection.bias"] = torch.zeros(config.hidden_size)
    with torch.device("meta"):
        model = HubertModel(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UnreadableFile(f"the weights of {path} are not those of its own config: {error}") from error
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
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"^(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"^(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"^(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
)
PRETRAINING_ONLY = ("final_proj.", "label_embs_concat", "target_glu")
NEEDED = {
    "conv_feature_layers",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
}


def _renamed(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """fairseq's weights under transformers' names, as float32, without those above the layer and those of pre-training."""
    found = {}
    for name, weight in state.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        if name.startswith(PRETRAINING_ONLY) or (layer and int(layer[1]) >= layers):
            continue
        for theirs, ours in RENAMED:
            name = re.sub(theirs, ours, name)
        found[name] = weight.float().contiguous()
    return found

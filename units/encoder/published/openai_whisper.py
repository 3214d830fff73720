"""Whisper as openai-whisper publishes it, one .pt of `dims` and `model_state_dict`, to a transformers folder and back.

to_transformers(Path("large-v3.pt"), Path("whisper"))
from_transformers(Path("whisper"), Path("large-v3.pt"))     # with equal tensors
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from units.encoder.published.checkpoint_files import UnreadableFile, read_torch
from units.runtime.files.json_files import read_json

if TYPE_CHECKING:
    from torch import Tensor

DIMS = {
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
NAMES = (  # openai-whisper's, and transformers'
    (r"\.blocks\.(\d+)\.", r".layers.\1."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.cross_attn_ln\.", ".encoder_attn_layer_norm."),
    (r"\.attn\.", ".self_attn."),
    (r"\.attn_ln\.", ".self_attn_layer_norm."),
    (r"_attn\.query\.", "_attn.q_proj."),
    (r"_attn\.key\.", "_attn.k_proj."),
    (r"_attn\.value\.", "_attn.v_proj."),
    (r"_attn\.out\.", "_attn.out_proj."),
    (r"\.mlp\.0\.", ".fc1."),
    (r"\.mlp\.2\.", ".fc2."),
    (r"\.mlp_ln\.", ".final_layer_norm."),
    (r"^encoder\.ln_post\.", "encoder.layer_norm."),
    (r"^decoder\.ln\.", "decoder.layer_norm."),
    (r"\.positional_embedding$", ".embed_positions.weight"),
    (r"\.token_embedding\.", ".embed_tokens."),
)
END_OF_TEXT = 50256  # the first special word that transformers takes for granted
BUFFER = "decoder.mask"  # a constant that some files hold


def transformers_name(name: str) -> str:
    """The name that a tensor of openai-whisper has in transformers, below `model.`."""
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def read_whisper(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A transformers config, and tensors under transformers' names. No code of the pickle runs.

    Raises: FileNotFoundError; UnreadableFile if it is not a Whisper of openai-whisper.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    found = read_torch(path)
    dims, weights = found.get("dims"), found.get("model_state_dict")
    if not isinstance(dims, dict) or not isinstance(weights, dict) or (missing := sorted(DIMS.keys() - dims.keys())):
        what = f"its dims lack {', '.join(missing)}" if isinstance(dims, dict) and missing else "it has no dims"
        raise UnreadableFile(f"{path} is no Whisper as openai-whisper writes it: {what}")
    config: dict[str, Any] = {ours: int(dims[theirs]) for theirs, ours in DIMS.items()}
    config |= {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "encoder_ffn_dim": 4 * config["d_model"],
        "decoder_ffn_dim": 4 * config["d_model"],
        "tie_word_embeddings": True,
    }
    if config["vocab_size"] <= END_OF_TEXT + 1:  # not the published words, so not their special ones either
        config |= dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")) | {"decoder_start_token_id": 0}
    return config, {transformers_name(name): weight for name, weight in weights.items() if name != BUFFER}


def to_transformers(path: Path, folder: Path) -> Path:
    """Write the transformers folder of a Whisper. Raises: as read_whisper."""
    from safetensors.torch import save_file

    config, weights = read_whisper(path)
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"model.{name}": weight.contiguous() for name, weight in weights.items()}
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def from_transformers(folder: Path, path: Path) -> Path:
    """Write a Whisper as openai-whisper does; inverse of to_transformers.

    A folder of an encoder alone gives a file of an encoder alone, which openai-whisper does not open and LLaMA-Omni
    does not need more of.

    Raises: FileNotFoundError if the folder has no config.json or no weights.
    """
    import torch
    from safetensors.torch import load_file

    config = read_json(folder / "config.json", dict.fromkeys((*DIMS.values(), "d_model"), int))
    dims = {theirs: int(config[ours]) for theirs, ours in DIMS.items()} | {"n_text_state": int(config["d_model"])}
    weights: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    if not weights:
        raise FileNotFoundError(f"{folder} has no .safetensors")
    named = {
        openai_name(name.removeprefix("model.")): weight for name, weight in weights.items() if "proj_out" not in name
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"dims": dims, "model_state_dict": named}, path)
    return path


def openai_name(name: str) -> str:
    """Inverse of transformers_name."""
    for theirs, ours in (
        (".blocks.", ".layers."),
        (".cross_attn.", ".encoder_attn."),
        (".cross_attn_ln.", ".encoder_attn_layer_norm."),
        (".attn.", ".self_attn."),
        (".attn_ln.", ".self_attn_layer_norm."),
        ("attn.query.", "attn.q_proj."),
        ("attn.key.", "attn.k_proj."),
        ("attn.value.", "attn.v_proj."),
        ("attn.out.", "attn.out_proj."),
        (".mlp.0.", ".fc1."),
        (".mlp.2.", ".fc2."),
        (".mlp_ln.", ".final_layer_norm."),
        (".positional_embedding", ".embed_positions.weight"),
        (".token_embedding.", ".embed_tokens."),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("encoder.layer_norm."):
        return name.replace("encoder.layer_norm.", "encoder.ln_post.")
    return name.replace("decoder.layer_norm.", "decoder.ln.")

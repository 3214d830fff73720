"""Published BLSP folders: adopt one, so that every command opens it; or export a folder for the published code.

    python -m variants.blsp.upstream adopt DIR OUT      # config.json and pytorch_model.bin -> adapter, llm/, encoder/
    python -m variants.blsp.upstream export DIR OUT     # and back, with equal tensors

A published folder (github.com/cwang621/blsp) holds all weights in one file: `whisper_model.*`, `llama_model.*`,
`subsampler.conv_layers.N.*`, `adapter.fc1`, `adapter.fc2` and `speech_ln`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from units.runtime.command import command
from units.runtime.files.json_files import checked
from variants.published_files import (
    BUFFER,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    check_shapes,
    copy_some,
    copy_tokenizer,
    described,
    folder_weights,
    read_object,
    read_weights,
    write_object,
)

if TYPE_CHECKING:
    from torch import Tensor

LLM, WHISPER = "llama_model.", "whisper_model."
ADAPTER = {
    "conv_layers.": "subsampler.conv_layers.",
    "fc1.": "adapter.fc1.",
    "fc2.": "adapter.fc2.",
    "norm.": "speech_ln.",
}
PREPROCESSOR = "preprocessor_config.json"


@command("blsp-upstream")
def main(way: Literal["adopt", "export"], source: Path, out: Path) -> None:
    """Turn a published BLSP folder into one of this package, or back.

    Args:
        way: adopt reads a published folder, export writes one
        source: the folder to read
        out: the folder to write
    """
    if (out / CONFIG).exists():
        raise ValueError(f"{out} holds a model already; give another folder, or delete it")
    adopt(source, out) if way == "adopt" else export(source, out)
    print(f"{source} -> {out}")


def adopt(source: Path, out: Path) -> Path:
    """Write the folder of this package for a published one.

    Raises: FileNotFoundError if a file is missing; ValueError if a file is damaged, or a weight is missing or unknown.
    """
    from safetensors.torch import save_file

    from speechgpt.checkpoint import CheckpointFacts
    from speechgpt.language_models.whole import folder_config, open_tokenizer
    from variants.blsp.adapter_shape import AdapterShape
    from variants.blsp.config import INSTRUCTIONS
    from variants.blsp.records import ADAPTER_FILE, SYSTEM, BlspFacts
    from variants.references import Reference

    config = _config(source)
    with described(source / CONFIG):
        kernels = [int(kernel) for kernel in str(config["conv_kernel_sizes"]).split(",")]
        shape = AdapterShape(kernels, [2] * len(kernels), config["adapter_inner_dim"])
    groups = _grouped(read_weights(source), source)
    with described(source / CONFIG):
        _check_adapter(groups["adapter"], shape, config, source)
    encoder, llm = dict(config["whisper_config"]), dict(config["llama_config"])
    llm |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    encoder |= {"architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper"}
    for folder, settings, weights in (("llm", llm, groups["llm"]), ("encoder", encoder, groups["encoder"])):
        (out / folder).mkdir(parents=True, exist_ok=True)
        write_object(out / folder / CONFIG, settings)
        folder_config(out / folder)
        prefix = "model.encoder." if folder == "encoder" else ""
        named = {prefix + name: weight.contiguous() for name, weight in weights.items()}
        save_file(named, out / folder / "model.safetensors", {"format": "pt"})
    if (source / PREPROCESSOR).exists():
        shutil.copy(source / PREPROCESSOR, out / "encoder" / PREPROCESSOR)
    copy_tokenizer(source, out, out / "llm")
    open_tokenizer(out)  # fails here, and not at the first question
    adapter = {f"adapter.{name}": weight.contiguous() for name, weight in groups["adapter"].items()}
    save_file(adapter, out / ADAPTER_FILE, {"format": "pt"})
    write_object(out / CONFIG, {"model_type": "speech_llm", "llm": llm, "published": config})
    facts = BlspFacts(
        llm=Reference.of(out / "llm", out),
        encoder=Reference.of(out / "encoder", out),
        layer=encoder["encoder_layers"],
        width=encoder["d_model"],
        shape=shape,
        template="blsp",
        instructions=INSTRUCTIONS,
    )
    CheckpointFacts(None, "published", config={"kind": "speech"}, system=SYSTEM, extra=facts.json()).save(out)
    return out


def export(source: Path, out: Path) -> Path:
    """Write the folder that the published code opens.

    Raises: FileNotFoundError if a part is missing; ValueError if the folder is of another form than the published ones.
    """
    import torch

    from variants.blsp.records import BlspFacts

    facts = BlspFacts.load(source)
    llm, encoder = facts.llm.find(source), facts.encoder.find(source)
    settings, listening = read_object(llm / CONFIG), read_object(encoder / CONFIG)
    wrong = [
        f"{what} is {found}, not {needed}"
        for what, found, needed in (
            ("the template", facts.template, "blsp"),
            ("the LLM", settings.get("model_type"), "llama"),
            ("the encoder", listening.get("model_type"), "whisper"),
            ("the encoder's layer", facts.layer, listening.get("encoder_layers", facts.layer)),
            ("the list of strides", facts.shape.strides, [2] * len(facts.shape.strides)),
        )
        if found != needed
    ]
    if wrong:
        raise ValueError(f"the published code cannot open {source}: {'; '.join(wrong)}")
    weights = {_published(name): weight for name, weight in _adapter_weights(source).items()}
    weights |= {LLM + name: weight for name, weight in folder_weights(llm).items()}
    for name, weight in folder_weights(encoder).items():
        inside = name.removeprefix("model.")
        if inside.startswith("encoder."):
            weights[WHISPER + inside.removeprefix("encoder.")] = weight
    published = read_object(source / CONFIG).get("published") or {
        "architectures": ["BlspModel"],
        "torch_dtype": "float32",
        "whisper_config": listening,
        "llama_config": settings,
    }
    published |= {"conv_kernel_sizes": ",".join(map(str, facts.shape.kernels)), "adapter_inner_dim": facts.shape.inner}
    out.mkdir(parents=True, exist_ok=True)
    for folder, names in ((llm, TOKENIZER), (encoder, (PREPROCESSOR,))):
        copy_some(folder, names, out)
    torch.save(weights, out / WEIGHTS)
    write_object(out / CONFIG, published)
    return out


def _config(source: Path) -> dict[str, Any]:
    config = read_object(source / CONFIG)
    needed = ("whisper_config", "llama_config", "conv_kernel_sizes", "adapter_inner_dim")
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"{source / CONFIG} is not of a published BLSP: it lacks {', '.join(missing)}")
    checked(config, str(source / CONFIG), {"whisper_config": dict, "llama_config": dict, "adapter_inner_dim": int})
    checked(config["whisper_config"], f"{source / CONFIG}, whisper_config", {"encoder_layers": int, "d_model": int})
    checked(config["llama_config"], f"{source / CONFIG}, llama_config", {"hidden_size": int})
    return config


def _grouped(weights: dict[str, Tensor], source: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part, under the names that they have there.

    Raises: ValueError for a tensor that belongs to no part.
    """
    groups: dict[str, dict[str, Tensor]] = {"llm": {}, "encoder": {}, "adapter": {}}
    for name, weight in weights.items():
        ours = next((mine for mine, theirs in ADAPTER.items() if name.startswith(theirs)), None)
        if name.endswith(BUFFER):
            continue
        if name.startswith(LLM):
            groups["llm"][name.removeprefix(LLM)] = weight
        elif name.startswith(WHISPER):
            groups["encoder"][name.removeprefix(WHISPER)] = weight
        elif ours is not None:
            groups["adapter"][ours + name.removeprefix(ADAPTER[ours])] = weight
        else:
            raise ValueError(f"{source} holds {name}, which a published BLSP does not have")
    return groups


def _check_adapter(weights: dict[str, Tensor], shape: Any, config: dict[str, Any], source: Path) -> None:
    """Raise ValueError if a weight of the adapter is missing or of another shape than the config's."""
    import torch

    from variants.blsp.adapter import SpeechAdapter

    with torch.device("meta"):
        adapter = SpeechAdapter(config["whisper_config"]["d_model"], config["llama_config"]["hidden_size"], shape)
    check_shapes(adapter.state_dict(), weights, source, _published)


def _published(name: str) -> str:
    ours = next(mine for mine in ADAPTER if name.startswith(mine))
    return ADAPTER[ours] + name.removeprefix(ours)


def _adapter_weights(source: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    from variants.blsp.records import ADAPTER_FILE

    return {name.removeprefix("adapter."): weight for name, weight in load_file(source / ADAPTER_FILE).items()}


if __name__ == "__main__":
    main.cli()

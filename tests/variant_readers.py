"""Readers of the files of BLSP and LLaMA-Omni, and of the published folders that commands adopt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from blsp_oracles import FOLDER as BLSP
from damaged_files import Reader
from omni_oracles import FOLDER as OMNI
from omni_oracles import MODEL
from tiny_parts import tones

from units.audio import save_wav
from variants.blsp import upstream as blsp_upstream
from variants.blsp.data.examples import read_examples, transcripts_of, utterances_of
from variants.blsp.data.labels import read_labels
from variants.blsp.records import BlspFacts, read_adapter
from variants.llama_omni import upstream as omni_upstream
from variants.llama_omni.data.published import published_conversations, read_records
from variants.llama_omni.records import ADAPTOR_FILE, OmniFacts
from variants.speech_in.facts import read_part
from variants.speech_in.hearing.transcripts import examples_of
from variants.speech_in.lines import drop_unfinished

LABELS = (
    '{"id": "q1", "audio": "q.wav", "start": 0.25, "duration": 0.5, "transcript": "the dog", "behaviour": "repeat", '
    '"instruction": "say", "response": "the dog"}\n{"id": "q2", "audio": "q.wav", "response": "red\u2028blue"}\n'
)
PUBLISHED = '{"audio": "q.wav:800:4000", "text": "the dog"}\n{"audio": "q.wav", "text": "a cat"}\n'
TURNS = [{"from": "human", "value": "<speech>\nred?"}, {"from": "gpt", "value": "blue", "units": "1 2 7"}]
QUESTIONS = [{"id": "q1", "speech": "q.wav", "conversations": TURNS}, {"id": 2, "conversation": TURNS}]


def written(name: str, content: str) -> Callable[[Path], None]:
    """Writes a file of this content, and a recording."""

    def write(folder: Path) -> None:
        save_wav(folder / "q.wav", tones(1.0))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return write


def write_shards(folder: Path) -> None:
    written("shard-00000.jsonl", LABELS)(folder)
    (folder / "labels.json").write_text("{}")


def adopted(published: Path, adopt: Callable[[Path, Path], object]) -> Callable[[Path], None]:
    """Writes the folder that a published one becomes."""

    def write(folder: Path) -> None:
        adopt(published, folder)

    return write


def copied(published: Path) -> Callable[[Path], None]:
    """Writes a copy of a published folder."""

    def write(folder: Path) -> None:
        shutil.copytree(published, folder, dirs_exist_ok=True)

    return write


def copy_omni(folder: Path) -> None:
    copied(OMNI / "variant" / MODEL)(folder)
    shutil.copy(OMNI / "variant/models/speech_encoder/tiny-random.pt", folder / omni_upstream.ENCODER_FILE)


def fresh(adopt: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    """Adopts a folder into one beside it, which is deleted first."""

    def read(folder: Path) -> object:
        out = folder.with_name("adopted")
        shutil.rmtree(out, ignore_errors=True)
        return adopt(folder, out)

    return read


adopt_blsp, adopt_omni = fresh(blsp_upstream.adopt), fresh(omni_upstream.adopt)
blsp_folder = adopted(BLSP / "variant/checkpoint", blsp_upstream.adopt)
omni_folder = adopted(OMNI / "variant" / MODEL, omni_upstream.adopt)

VARIANT_READERS = {
    "labels": Reader("a.jsonl", written("a.jsonl", LABELS), lambda f: list(read_labels(f / "a.jsonl"))),
    "labels of the published code": Reader(
        "a.jsonl", written("a.jsonl", PUBLISHED), lambda f: list(read_labels(f / "a.jsonl"))
    ),
    "shard of labels": Reader("shard-00000.jsonl", write_shards, lambda f: list(read_examples(f, "say"))),
    "examples": Reader("a.jsonl", written("a.jsonl", LABELS), lambda f: list(read_examples(f / "a.jsonl", "say"))),
    "transcripts": Reader(
        "a.jsonl", written("a.jsonl", LABELS), lambda f: list(examples_of(transcripts_of(f / "a.jsonl")))
    ),
    "utterances": Reader("a.jsonl", written("a.jsonl", PUBLISHED), lambda f: utterances_of(f / "a.jsonl")),
    "list of questions": Reader(
        "a.json", written("a.json", json.dumps(QUESTIONS)), lambda f: read_records(f / "a.json")
    ),
    "lines of questions": Reader(
        "a.jsonl",
        written("a.jsonl", "".join(json.dumps(one) + "\n" for one in QUESTIONS)),
        lambda f: read_records(f / "a.jsonl"),
    ),
    "conversations of several turns": Reader(
        "turns.json",
        written("turns.json", json.dumps(QUESTIONS)),
        lambda f: list(published_conversations(f / "turns.json")),
    ),
    "responses of a killed run": Reader(
        "a.jsonl",
        written("a.jsonl", '{"response": "a"}\n{"response": null, "refused": "x"}\n{"resp'),
        lambda f: drop_unfinished(f / "a.jsonl"),
    ),
    "facts of BLSP": Reader("speechgpt.json", blsp_folder, BlspFacts.load),
    "adapter of BLSP": Reader("adapter.safetensors", blsp_folder, read_adapter),
    "facts of LLaMA-Omni": Reader("speechgpt.json", omni_folder, OmniFacts.load),
    "adaptor of LLaMA-Omni": Reader(ADAPTOR_FILE, omni_folder, lambda f: read_part(f, ADAPTOR_FILE, "adapter.")),
    "config of a published BLSP": Reader("config.json", copied(BLSP / "variant/checkpoint"), adopt_blsp),
    "weights of a published BLSP": Reader("pytorch_model.bin", copied(BLSP / "variant/checkpoint"), adopt_blsp),
    "tokenizer of a published BLSP": Reader("tokenizer.model", copied(BLSP / "variant/checkpoint"), adopt_blsp),
    "config of a published LLaMA-Omni": Reader("config.json", copy_omni, adopt_omni),
    "weights of a published LLaMA-Omni": Reader("model.safetensors", copy_omni, adopt_omni),
    "encoder of a published LLaMA-Omni": Reader(omni_upstream.ENCODER_FILE, copy_omni, adopt_omni),
    "tokenizer of a published LLaMA-Omni": Reader("tokenizer.json", copy_omni, adopt_omni),
}

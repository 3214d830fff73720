"""Checkpoints open without this package; the vocabulary is in order; parts of two codebooks are not joined."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_parts import K, tiny_vocoder
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from speechgpt import bundle
from speechgpt.checkpoint import FILE, CheckpointError, CheckpointFacts
from speechgpt.dialogue import Dialogue, Message
from speechgpt.inference import SpeechGPT
from speechgpt.language_models.adapters import open_language_model, set_base
from speechgpt.vocab import new_words
from speechgpt.widen import ROW_MULTIPLE, widen
from stages.start_models.text_llm import train_tokenizer
from units.codebook import CodebookMismatch
from units.encoder.unit_encoder import UnitEncoder

PLAIN = """
import sys, json, importlib.util
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(importlib.util.find_spec(name) for name in ("speechgpt", "units", "stages", "instruct_data"))
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
ids = tokenizer("[Human]: <sosp><3><7><eosp><eoh> [SpeechGPT]:", return_tensors="pt")
out = model.generate(**ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
print(json.dumps({"words": tokenizer.convert_ids_to_tokens(ids.input_ids[0].tolist()), "out": out[0].tolist(),
                  "rows": model.get_input_embeddings().num_embeddings, "missing": sorted(info["missing_keys"])}))
"""


def test_transformers_alone_opens_a_checkpoint(widened: Path, tmp_path: Path) -> None:
    packages = str(Path(transformers.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": packages}
    command = [
        sys.executable,
        "-S",
        "-c",
        PLAIN,
        str(widened),
    ]  # -S: an editable install of this repository is not seen
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [word for word in found["words"] if word.startswith(("<", "[")) and word != "<s>"] == [
        "[Human]",
        "<sosp>",
        "<3>",
        "<7>",
        "<eosp>",
        "<eoh>",
        "[SpeechGPT]",
    ]
    assert found["rows"] % ROW_MULTIPLE == 0
    assert not found["missing"]
    model = AutoModelForCausalLM.from_pretrained(widened)
    tokenizer = AutoTokenizer.from_pretrained(widened)
    ids = tokenizer("[Human]: <sosp><3><7><eosp><eoh> [SpeechGPT]:", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)[0].tolist() == found["out"]


def test_the_order_of_the_vocabulary(widened: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(widened), AutoModelForCausalLM.from_pretrained(widened)
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    added = [f"<{i}>" for i in range(K)] + "<sosp> <eosp> [Human] [SpeechGPT] <eoh> <eoa> [tq] [ta] [ua]".split()
    assert words[-len(added) :] == added == new_words(K)
    assert list(range(len(words))) == sorted(tokenizer.get_vocab().values())
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert embedding.weight.shape[0] % 64 == 0
        assert len(words) <= embedding.weight.shape[0] < len(words) + 64
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("init", ["random", "mean", "centres"])
def test_widening_keeps_the_old_rows(widened: Path, init: str, tied: bool) -> None:
    tokenizer = text_tokenizer(widened)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    old = model.get_input_embeddings().weight.detach().clone()
    centres = torch.randn(K, 5, generator=torch.Generator().manual_seed(1))
    vocab = widen(tokenizer, model, K, init, centres if init == "centres" else None)
    rows = model.get_input_embeddings().weight.detach()
    assert torch.equal(rows[: len(old)], old)
    assert (vocab.first_unit_id, vocab.size) == (len(old), K)
    assert torch.isfinite(rows).all()
    if init == "centres":
        placed = rows[vocab.first_unit_id : vocab.first_unit_id + K]
        near, far = torch.cdist(centres, centres).flatten(), torch.cdist(placed, placed).flatten()
        assert torch.corrcoef(torch.stack([near, far]))[0, 1] > 0.5  # units that sound alike have embeddings alike
    with pytest.raises(ValueError, match="<0> already; widen a text LLM"):
        widen(tokenizer, model, K)


def text_tokenizer(widened: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the tiny text LLM, before widening."""
    return train_tokenizer(widened.parent / "text.txt", 360)


def test_init_centres_needs_centres(widened: Path) -> None:
    with pytest.raises(ValueError, match=f"needs the {K} centres"):
        widen(
            text_tokenizer(widened), AutoModelForCausalLM.from_pretrained(widened), K, "centres", torch.zeros(K - 1, 4)
        )


# --- speechgpt.json


def test_loading_facts_is_the_inverse_of_saving(widened: Path, tmp_path: Path) -> None:
    facts = CheckpointFacts.load(widened)
    facts.save(tmp_path)
    assert CheckpointFacts.load(tmp_path) == facts


def test_facts_that_do_not_fit_are_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no folder"):
        CheckpointFacts.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=f"has no {FILE}"):
        CheckpointFacts.load(tmp_path)
    record = json.loads((model_folder / FILE).read_text())
    for changed, reason in (
        ({**record, "mood": "good"}, r"unknown fields \['mood'\]"),
        ({k: v for k, v in record.items() if k != "stage"}, "lacks stage"),
        ([], "is not the JSON"),
        ({}, "lacks codebook, first_unit_id, stage"),
        (3, "is not the JSON"),
    ):
        (tmp_path / FILE).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=reason):
            CheckpointFacts.load(tmp_path)
    (tmp_path / FILE).write_text('{"stage": ')
    with pytest.raises(ValueError, match=f"{FILE} is not"):
        CheckpointFacts.load(tmp_path)
    copy = shutil.copytree(model_folder, tmp_path / "model")
    (copy / FILE).write_text(json.dumps({**record, "first_unit_id": record["first_unit_id"] + 1}))
    with pytest.raises(ValueError, match="not of one checkpoint"):
        SpeechGPT.from_pretrained(copy)


@pytest.mark.parametrize(
    "field, value",
    [
        ("codebook", "mfcc"),
        ("codebook", []),
        ("stage", 3),
        ("stage", ["stage3"]),
        ("first_unit_id", "300"),
        ("first_unit_id", -1),
        ("first_unit_id", True),
        ("first_unit_id", 1.5),
        ("prefix", None),
        ("prefix", "\ud800"),
        ("config", None),
        ("config", []),
        ("versions", 3),
        ("system", {}),
        ("extra", "none"),
        ("config", {"kind": ["units"]}),
    ],
)
def test_a_field_of_another_type_is_named(model_folder: Path, tmp_path: Path, field: str, value: object) -> None:
    record = json.loads((model_folder / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**record, field: value}))
    with pytest.raises(CheckpointError, match=rf"{FILE}: {field}") as error:
        CheckpointFacts.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [None, [], {}, True, "a", float("nan"), float("inf"), -1])
@pytest.mark.parametrize("field", ["layer", "size", "frame_rate"])
def test_a_number_of_the_codebook_is_checked(model_folder: Path, tmp_path: Path, field: str, value: object) -> None:
    record = json.loads((model_folder / FILE).read_text())
    (tmp_path / FILE).write_text(json.dumps({**record, "codebook": {**record["codebook"], field: value}}))
    with pytest.raises(CheckpointError, match=rf"{FILE}: codebook.{field}"):
        CheckpointFacts.load(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def check_read_or_refused(folder: Path, content: bytes) -> None:
    """A file is read, or one line names it."""
    (folder / FILE).write_bytes(content)
    try:
        facts = CheckpointFacts.load(folder)
    except CheckpointError as error:
        assert str(folder / FILE) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert isinstance(facts.kind, str) and facts.units.size > 0


@anywhere
@given(data=st.data())
def test_cut_and_flipped_bytes_are_refused(model_folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((model_folder / FILE).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    check_read_or_refused(tmp_path, bytes(content[: data.draw(st.integers(0, len(content)))]))
    check_read_or_refused(tmp_path, bytes(content))


@anywhere
@given(data=st.data())
def test_foreign_json_is_refused(model_folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    record = json.loads((model_folder / FILE).read_text())
    check_read_or_refused(tmp_path, json.dumps(data.draw(JSON_VALUES)).encode())
    record[data.draw(st.sampled_from(sorted(record)))] = data.draw(JSON_VALUES)
    check_read_or_refused(tmp_path, json.dumps(record).encode())


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", "{}".encode("utf-16"), b"[" * 100_000, b'{"stage": 1e999}', b"1" * 5000]
)
def test_other_files_under_its_name_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=FILE):
        CheckpointFacts.load(tmp_path)


def test_a_byte_order_mark_is_allowed(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xef\xbb\xbf" + (model_folder / FILE).read_bytes())
    assert CheckpointFacts.load(tmp_path) == CheckpointFacts.load(model_folder)


# --- one model folder


def test_a_bundle_is_whole(model_folder: Path, mfcc_encoder: UnitEncoder, dialogue: Dialogue) -> None:
    gpt = SpeechGPT.from_pretrained(model_folder)
    assert gpt.codebook == gpt.encoder.codebook == gpt.vocoder.codebook == mfcc_encoder.codebook
    prompt = [Message("human", ("hi", (1,)))]
    assert gpt.dialogue.prompt(prompt) == dialogue.prompt(prompt)


@pytest.mark.parametrize("foreign", ["encoder", "vocoder", "both"])
def test_a_bundle_refuses_a_foreign_codebook(make_bundle, mfcc_encoder, hubert_encoder, foreign: str) -> None:
    encoder = hubert_encoder if foreign in ("encoder", "both") else mfcc_encoder
    spoken = hubert_encoder if foreign in ("vocoder", "both") else mfcc_encoder
    with pytest.raises(CodebookMismatch, match="vocoder" if foreign == "vocoder" else "unit encoder"):
        make_bundle(encoder, spoken)


def test_parts_swapped_later_are_refused(model_folder: Path, hubert_encoder: UnitEncoder, tmp_path: Path) -> None:
    copy = shutil.copytree(model_folder, tmp_path / "model")
    tiny_vocoder(hubert_encoder).save_pretrained(copy / "vocoder")
    shutil.rmtree(copy / "unit_encoder")
    hubert_encoder.save_pretrained(copy / "unit_encoder")
    gpt = SpeechGPT.from_pretrained(copy)
    for part in ("encoder", "vocoder"):
        with pytest.raises(CodebookMismatch, match="Use parts made with one unit encoder"):
            getattr(gpt, part)


def parts_of(model: Path) -> dict[str, Path]:
    return {"encoder": model / "unit_encoder", "vocoder": model / "vocoder"}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_adapter(base: Path, folder: Path, widened: Path, seed: int = 0) -> Path:
    """A stage that holds an adapter alone, of random weights."""
    torch.manual_seed(seed)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(widened),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(folder)
    set_base(folder, str(base), folder)
    AutoTokenizer.from_pretrained(widened).save_pretrained(folder)
    CheckpointFacts.load(widened).save(folder)
    return folder


@pytest.mark.parametrize("place", ["beside the adapter", "in its folder", "another adapter"])
def test_a_bundle_of_an_adapter_holds_its_base(widened, model_folder, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    base = shutil.copytree(widened, run / ("stage3/base" if place == "in its folder" else "stage2"))
    if place == "another adapter":
        base = write_adapter(base, run / "between", widened, seed=1)
    stage = write_adapter(base, run / "stage3", widened)
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        expected = open_language_model(stage)(tokens).logits
        assert not torch.equal(expected, AutoModelForCausalLM.from_pretrained(widened)(tokens).logits)
    bundle.main(stage, **parts_of(model_folder), out=tmp_path / "model")
    shutil.rmtree(run)
    moved = tmp_path / "elsewhere" / "model"
    moved.parent.mkdir()
    with torch.no_grad():
        assert torch.equal(SpeechGPT.from_pretrained(tmp_path / "model").model(tokens).logits, expected)
        (tmp_path / "model").rename(moved)
        assert torch.equal(SpeechGPT.from_pretrained(moved).model(tokens).logits, expected)
    bundle.main(moved, **parts_of(model_folder), out=moved)  # it gets another vocoder in place
    with torch.no_grad():
        assert torch.equal(open_language_model(moved)(tokens).logits, expected)
        if place != "another adapter":
            assert torch.equal(AutoModelForCausalLM.from_pretrained(moved)(tokens).logits, expected)


@pytest.mark.parametrize("order", ["adapter first", "adapter last"])
def test_a_replaced_bundle_holds_nothing_of_the_one_before(widened, model_folder, tmp_path: Path, order: str) -> None:
    model, parts = tmp_path / "model", parts_of(model_folder)
    base = shutil.copytree(widened, tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter", widened)
    stages = [adapter, widened] if order == "adapter first" else [widened, adapter]
    for stage in stages:
        bundle.main(stage, **parts, out=model)
    alone = tmp_path / "alone"
    bundle.main(stages[-1], **parts, out=alone)
    here, there = files(model), files(alone)
    differing = {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)}
    assert differing == ({"adapter_config.json"} if order == "adapter last" else set())  # it names the base by its path
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        said, expected = (AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in (model, stages[-1]))
    assert torch.equal(said, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "alone", "base", "model"]


def test_a_finished_model_gets_another_vocoder(model_folder, mfcc_encoder, tmp_path: Path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    before, other = files(model), tiny_vocoder(mfcc_encoder)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    other.save_pretrained(tmp_path / "vocoder")
    link = tmp_path / "link"
    link.symlink_to(model)
    bundle.main(link, link / "unit_encoder", tmp_path / "vocoder", link)
    after = files(model)
    assert link.is_symlink()
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {
        "vocoder/model.safetensors"
    }
    assert SpeechGPT.from_pretrained(model).vocoder


def test_a_folder_with_other_things_in_it_is_not_replaced(widened, model_folder, tmp_path: Path) -> None:
    (tmp_path / "run/stage3").mkdir(parents=True)
    (tmp_path / "run/notes.md").write_text("mine")
    with pytest.raises(ValueError, match="holds notes.md, stage3, which is no part of a model; name another --out"):
        bundle.main(widened, **parts_of(model_folder), out=tmp_path / "run")
    assert (tmp_path / "run/notes.md").read_text() == "mine"


def test_a_killed_bundle_leaves_the_model_as_it_was(widened, model_folder, tmp_path: Path, monkeypatch) -> None:
    model, parts = shutil.copytree(model_folder, tmp_path / "model"), parts_of(model_folder)

    def stop(*_) -> None:
        raise KeyboardInterrupt

    for thing, name in ((bundle.shutil, "copy2"), (CheckpointFacts, "save"), (Path, "rename")):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(thing, name, stop)
            bundle.main(widened, **parts, out=model)
        assert files(model) == files(model_folder)
    model.rename(tmp_path / ".model.old")  # killed while there was no model: the next run restores it
    with pytest.raises(FileNotFoundError):
        bundle.main(tmp_path / "no stage", **parts, out=model)
    assert files(model) == files(model_folder)


def test_a_bundle_is_newer_than_its_parts(widened, model_folder) -> None:
    assert (model_folder / FILE).stat().st_mtime_ns > (widened / FILE).stat().st_mtime_ns  # make compares these times

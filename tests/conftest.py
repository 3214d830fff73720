"""Tiny parts that many tests share: unit encoders, a widened Llama, a vocoder, and the model they make together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # hermetic: nothing may be looked up

import pytest
import torch
from hypothesis import settings
from tiny_parts import TEXT, K, fit_encoder, tiny_hubert, tiny_vocoder
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from speechgpt import bundle
from speechgpt.checkpoint import CheckpointFacts
from speechgpt.dialogue import Dialogue
from speechgpt.widen import widen
from stages.start_models.text_llm import train_tokenizer
from units.encoder.hubert import HubertFeatures
from units.encoder.mfcc import MfccFeatures
from units.encoder.unit_encoder import UnitEncoder

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bfloat16",
        choices=("as-is", "yes", "no"),
        default="as-is",
        help="let the processor claim to have, or not to have, bfloat16 instructions",
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def processor(request: pytest.FixtureRequest) -> Iterator[None]:
    """Training takes bfloat16 where the processor multiplies it: both answers can be tested on any machine."""
    claimed, capabilities = request.config.getoption("bfloat16"), torch.cpu.get_capabilities()
    with pytest.MonkeyPatch.context() as patch:
        if claimed != "as-is":
            instructions = {name: has for name, has in capabilities.items() if "bf16" not in name}
            patch.setattr(torch.cpu, "get_capabilities", lambda: {**instructions, "avx512_bf16": claimed == "yes"})
        yield


@pytest.fixture(scope="session")
def mfcc_encoder() -> UnitEncoder:
    return fit_encoder(MfccFeatures())


@pytest.fixture(scope="session")
def hubert_encoder() -> UnitEncoder:
    return fit_encoder(HubertFeatures(tiny_hubert(), 2, "tiny"))


@pytest.fixture(scope="session")
def widened(tmp_path_factory: pytest.TempPathFactory, mfcc_encoder: UnitEncoder) -> Path:
    """A checkpoint folder: a random Llama of 300 words, widened by the units of mfcc_encoder."""
    folder = tmp_path_factory.mktemp("widened")
    text = folder / "text.txt"
    text.write_text(TEXT * 20, encoding="utf-8")
    tokenizer = train_tokenizer(text, 360)
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    vocab = widen(tokenizer, model, K)
    checkpoint = folder / "stage3"
    tokenizer.save_pretrained(checkpoint)
    model.save_pretrained(checkpoint)
    CheckpointFacts(mfcc_encoder.codebook, "stage3", vocab.first_unit_id).save(checkpoint)
    return checkpoint


@pytest.fixture(scope="session")
def dialogue(widened: Path) -> Dialogue:
    return Dialogue(AutoTokenizer.from_pretrained(widened))


@pytest.fixture(scope="session")
def make_bundle(widened: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[UnitEncoder, UnitEncoder], Path]:
    """Join the checkpoint with a unit encoder and a vocoder for the units of `spoken`."""

    def make(encoder: UnitEncoder, spoken: UnitEncoder) -> Path:
        folder = tmp_path_factory.mktemp("bundle")
        encoder.save_pretrained(folder / "encoder")
        tiny_vocoder(spoken).save_pretrained(folder / "vocoder")
        bundle.main(widened, folder / "encoder", folder / "vocoder", folder / "model")
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def model_folder(make_bundle: Callable[[UnitEncoder, UnitEncoder], Path], mfcc_encoder: UnitEncoder) -> Path:
    """A whole model folder, as speechgpt-cli opens it. Tests that change it copy it first."""
    return make_bundle(mfcc_encoder, mfcc_encoder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The order of the tests is random: say how to repeat it."""
    seed = config.getoption("randomly_seed", None)
    if seed is not None:
        terminalreporter.write_line(f"random order; the same order again: pytest --randomly-seed={seed}")

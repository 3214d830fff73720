"""Whisper as evaluation ASR: windows of long wavs, refusals, what is compared, and the real one on real speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference import DATA
from spoken_test_set import ANSWERS, QUESTIONS, Speak
from transformers import GenerationConfig, LlamaConfig, WhisperConfig, WhisperForConditionalGeneration

from eval.asr.recogniser import EvaluationASR, open_asr
from eval.asr.whisper import QUIET, WhisperASR, windows
from eval.metrics import word_error_rate
from units.audio import SAMPLE_RATE, load_wav

REAL = Path(__file__).parents[2] / "runs" / "real" / "whisper-tiny.en"


def test_a_long_wav_is_cut_where_it_is_quiet_and_nothing_is_lost() -> None:
    draw = np.random.default_rng(0)
    wav = draw.normal(0, 0.1, 75 * SAMPLE_RATE).astype(np.float32)
    pauses = [27 * SAMPLE_RATE, 53 * SAMPLE_RATE]
    for at in pauses:
        wav[at - QUIET : at + QUIET] *= 0.01
    pieces = windows(wav)
    assert np.array_equal(np.concatenate(pieces), wav)
    assert all(len(piece) <= 30 * SAMPLE_RATE for piece in pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    assert all(abs(end - at) <= QUIET for end, at in zip(ends, pauses)) and len(pieces) == 3
    assert [len(piece) for piece in windows(wav[: 30 * SAMPLE_RATE])] == [30 * SAMPLE_RATE]


def test_wrong_names_and_models_are_refused(tmp_path: Path) -> None:
    for wrong in ("whisper", "whisper:", "whisper:#en", "faster-whisper:", "vosk:model", "pocketsphinx"):
        with pytest.raises(ValueError, match=r"allowed: whisper:FOLDER_OR_HUB_ID"):
            open_asr(wrong)
    with pytest.raises(FileNotFoundError, match="there is no Whisper in .*none"):
        open_asr(f"whisper:{tmp_path / 'none'}")
    LlamaConfig().save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="is a llama; .* needs a Whisper"):
        open_asr(f"whisper:{tmp_path / 'llama'}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, trained_words) -> Path:
    """A tiny Whisper of random weights, English, with a tokenizer of one word for each id."""
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 2}
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_target_positions": 300}
    config = WhisperConfig(vocab_size=len(trained_words), **sizes, **heads, **special)
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(**special, is_multilingual=False, no_timestamps_token_id=3)
    model.save_pretrained(folder)
    trained_words.save_pretrained(folder)
    from transformers import WhisperFeatureExtractor

    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained_words():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<|end|>", "<|start|>", "<|notimestamps|>", *(f"w{number}" for number in range(20))]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="<unk>")


@pytest.mark.slow
def test_a_transcript_depends_on_its_wav_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.asr.whisper.MOST_TOKENS", 8)  # random weights never end
    asr = open_asr(f"whisper:{folder}")
    assert isinstance(asr, EvaluationASR) and asr.name == "whisper " + folder.name + " (0 M, en)"
    wavs = [load_wav(path) for path in sorted((DATA / "wav").glob("*.wav"))[:2]]
    alone = [asr.transcribe(wav) for wav in wavs]
    assert asr.transcribe_all(wavs[::-1]) == alone[::-1]
    assert asr.transcribe(None) == "" == asr.transcribe(np.zeros(16000, np.float32))
    with pytest.raises(ValueError, match="is an English Whisper; it cannot transcribe 'de'"):
        open_asr(f"whisper:{folder}#de")


def test_numbers_are_compared_as_whisper_writes_them(folder: Path) -> None:
    asr = WhisperASR(folder)
    said, heard = asr.comparable(["that makes twenty-one", None]), asr.comparable(["That makes 21.", ""])
    assert word_error_rate(said[:1], heard[:1]).value == 0
    assert said[1] is None and heard[1] == ""


@pytest.mark.real
def test_the_real_whisper_transcribes_speech(speak: Speak) -> None:
    if not REAL.exists():
        pytest.fail("run make real-models first")
    asr = open_asr(f"whisper:{REAL}")
    texts = asr.comparable(ANSWERS + QUESTIONS)
    rate = word_error_rate(texts, asr.comparable(asr.transcribe_all([speak(text) for text in ANSWERS + QUESTIONS])))
    assert rate.value < 0.6  # espeak is hard for it; one that understood nothing would have 1

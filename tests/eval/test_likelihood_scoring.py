"""Scoring: a batch equals one at a time, killed and resumed equals undisturbed, and any unit LM is scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_suites import write_suite
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eval import run
from eval.likelihood import scoring
from eval.likelihood.scoring import NothingScored, scored_suite
from eval.likelihood.zerospeech import lexical
from eval.metrics import Score
from eval.model import open_measured_model
from eval.models.spelling import Speaking
from eval.models.unit_lm import SpellingError, UnitLM, open_unit_lm
from eval.results import load_details, load_results
from speechgpt.answers import Likelihood, ScoresSpeech
from speechgpt.generation.likelihood import Row, TooLong, log_likelihoods, text_row
from speechgpt.inference import SpeechGPT
from units.encoder.unit_encoder import UnitEncoder


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=200, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def rows(count: int) -> list[Row]:
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 60, count)
    return [Row([3] * (i % 3), draw.integers(4, 90, length + 1).tolist()) for i, length in enumerate(lengths)]


def test_a_batch_equals_one_at_a_time_and_plain_log_softmax(model: LlamaForCausalLM) -> None:
    some = rows(40)
    alone = log_likelihoods(model, some, 1)
    for size in (64, 300, 4096):
        batched = log_likelihoods(model, some, size)
        assert [one.tokens for one in batched] == [one.tokens for one in alone]
        assert max(abs(a.log_probability - b.log_probability) for a, b in zip(alone, batched)) < 1e-4
    for row, one in zip(some, alone):
        ids = torch.tensor([row.context + row.scored])
        with torch.inference_mode():
            each = model(ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        first = max(len(row.context) - 1, 0)
        assert one.tokens == len(each) - first
        assert one.log_probability == pytest.approx(float(each[first:].sum()), abs=1e-4)


def test_large_vocabularies_are_scored_in_slices(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = log_likelihoods(model, rows(5))
    monkeypatch.setattr("speechgpt.generation.likelihood.SCORES", 200)
    sliced = log_likelihoods(model, rows(5))
    assert [a.log_probability for a in sliced] == pytest.approx([b.log_probability for b in whole], abs=1e-4)


def test_a_space_before_a_text_is_the_texts() -> None:
    def pieces(text: str) -> list[int]:  # a word and the space before it are one token, as in byte-level BPE
        return [len(piece) for piece in text.replace(" ", "| ").split("|") if piece]

    assert text_row(pieces, [1], "what is ", "five six") == Row([1, 4, 3], [5, 4])
    assert text_row(pieces, [], "", "five six") == Row([], [4, 4])


def test_too_long_is_refused(model: LlamaForCausalLM) -> None:
    with pytest.raises(TooLong, match="201 tokens .* context of 200"):
        log_likelihoods(model, [Row([3], [4] * 200)])


def test_speechgpt_scores_its_units(model_folder: Path, tmp_path: Path) -> None:
    gpt = SpeechGPT.from_pretrained(model_folder)
    suite = lexical(write_suite(tmp_path / "lexical" / "dev"))
    assert isinstance(gpt, ScoresSpeech)
    paths = list(suite.files.values())
    together = gpt.likelihoods(paths)
    for path, one in zip(paths, together):
        alone = gpt.likelihoods([path])[0]
        assert alone.tokens == one.tokens == len(gpt.encoder.encode(_wav(path)).ids)
        assert alone.log_probability == pytest.approx(one.log_probability, abs=1e-4)


def _wav(path: Path) -> np.ndarray:
    from units.audio import load_wav

    return load_wav(path)


class Loudness:
    """Scores a sound by its name; fails where the test asks for it."""

    name = "loudness"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fails_after = 10**9

    def likelihoods(self, sounds):
        for sound in sounds:
            if len(self.seen) >= self.fails_after:
                raise KeyboardInterrupt
            if "bad" in sound.name:
                raise ValueError("too odd")
            self.seen.append(sound.name)
        return [Likelihood(-float(len(sound.name)) - sum(sound.name.encode()) / 7, 3) for sound in sounds]


def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK", 4)
    monkeypatch.setattr(scoring, "AT_ONCE", 3)
    suite = lexical(write_suite(tmp_path / "lexical" / "dev", ids=5))
    whole, _ = scored_suite(Loudness(), "loudness", suite, tmp_path / "whole")
    killed = Loudness()
    killed.fails_after = 9
    with pytest.raises(KeyboardInterrupt):
        scored_suite(killed, "loudness", suite, tmp_path / "resumed")
    resumed = Loudness()
    again, refused = scored_suite(resumed, "loudness", suite, tmp_path / "resumed")
    assert again == whole and not refused and len(resumed.seen) == len(suite.files) - 8
    for name in ("mean", "sum"):
        files = [tmp_path / run / "submission" / name / "lexical" / "dev.txt" for run in ("whole", "resumed")]
        assert files[0].read_bytes() == files[1].read_bytes()
    other = Loudness()
    scored_suite(other, "another", suite, tmp_path / "resumed")
    assert len(other.seen) == len(suite.files)  # another model's scores are not taken


def test_a_refused_sound_is_listed_and_a_whole_chunk_ends_the_run(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "lexical" / "dev", odd="bad")
    found, refused = scored_suite(Loudness(), "loudness", lexical(folder), tmp_path / "out")
    assert [one.id for one in refused] == ["bad"] and "too odd" in refused[0].detail and "bad" not in found
    suite = lexical(folder)
    suite = type(suite)("swuggy", {"bad": suite.files["bad"]}, [])
    with pytest.raises(NothingScored, match="refused all 1 sounds from bad on"):
        scored_suite(Loudness(), "loudness", suite, tmp_path / "none")
    assert not list((tmp_path / "none").rglob("*.jsonl"))


def unit_lm_folder(folder: Path, encoder: UnitEncoder, spelling: str, extra: tuple[str, ...] = ()) -> Path:
    """A plain causal LM whose words are units."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = ["<s>", *extra, *(spelling.replace("{}", str(unit)) for unit in range(encoder.codebook.size))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=256, initializer_range=0.3, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_any_unit_lm_is_scored(tmp_path: Path, mfcc_encoder: UnitEncoder) -> None:
    mfcc_encoder.save_pretrained(tmp_path / "encoder")
    folder = unit_lm_folder(tmp_path / "lm", mfcc_encoder, "[Hu{}]", ("[Speech]",))
    path = next(iter(lexical(write_suite(tmp_path / "lexical" / "dev")).files.values()))
    units = mfcc_encoder.encode(_wav(path))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    for before, repeats in (("", False), ("[Speech]", True)):
        speaking = Speaking(str(tmp_path / "encoder"), "[Hu{}]", before, repeats)
        lm = open_unit_lm(str(folder), speaking, "cpu")
        ids = [unit for unit, n in zip(units.ids, units.durations) for _ in range(n if repeats else 1)]
        words = ["<s>", *before.split(), *(f"[Hu{unit}]" for unit in ids)]
        (expected,) = log_likelihoods(
            model,
            [
                Row(
                    tokenizer.convert_tokens_to_ids(words[: -len(ids)]),
                    tokenizer.convert_tokens_to_ids(words[-len(ids) :]),
                )
            ],
        )
        assert lm.likelihoods([path])[0].log_probability == pytest.approx(expected.log_probability, abs=1e-5)
    with pytest.raises(SpellingError, match="lacks .* such as <Un0>"):
        open_unit_lm(str(folder), Speaking(str(tmp_path / "encoder"), "<Un{}>"), "cpu")
    with pytest.raises(ValueError, match="--units.encoder"):
        open_unit_lm(str(folder), Speaking(), "cpu")
    with pytest.raises(ValueError, match="has {} once"):
        Speaking(spelling="<Un>")
    with pytest.raises(FileNotFoundError, match="no language model"):
        open_unit_lm(str(tmp_path / "none"), Speaking(str(tmp_path / "encoder")), "cpu")
    assert isinstance(open_measured_model(f"lm:{folder}", "cpu", None, speaking).model, UnitLM)


def test_eval_run_measures_suites(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture) -> None:
    write_suite(tmp_path / "suites" / "lexical" / "dev", ids=4)
    run.main(str(model_folder), tmp_path / "suites", tmp_path / "results", tasks="swuggy,sblimp")
    result = load_results(tmp_path / "results")["swuggy"]
    assert isinstance(result.main, Score) and result.n == 4
    assert {"sum", "frequency/oov", "length/3"} <= result.more.keys()
    assert "sblimp         skipped" in capsys.readouterr().out
    details = load_details(tmp_path / "results" / "swuggy.details.jsonl")
    assert {"right", "wrong", "bands", "mean", "sum"} == details[0].keys()
    submission = tmp_path / "results" / "submission" / "sum"
    run.main(f"scores:{submission}", tmp_path / "suites", tmp_path / "submitted", tasks="swuggy")
    assert load_results(tmp_path / "submitted")["swuggy"].score == result.more["sum"].value
    run.main(str(model_folder), tmp_path / "suites", tmp_path / "results", tasks="swuggy")
    assert "(was done)" in capsys.readouterr().out

"""One wav passes through every room: toy world, units, vocoder, text LLM, three stages, model, answer, report.

Everything is a hundred times smaller than in `make demo`, so nothing is learned; what is tested is that each room
reads what the one before it wrote. What is learned is measured by the demo itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import eval.report.card
import eval.resynthesis
import eval.run
import instruct_data.build.sets
import instruct_data.toy.world
import speechgpt.bundle
import stages.start_models.text_llm
import stages.train
import units.dataset.extract
import units.encoder.fit
import units.vocoder.train_vocoder
from eval.resynthesis import ResynthesisOptions
from instruct_data.speech.voices import VoiceError, open_voice
from instruct_data.toy.world import ToyConfig
from speechgpt.inference import SpeechGPT
from units.audio import HOP, load_wav, save_wav
from units.corpus.manifest import read_manifest
from units.dataset.extract_config import EncoderConfig, WorkConfig
from units.encoder.recipes import FitRecipe

TOY = Path(stages.train.__file__).parent / "configs" / "toy"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run folder."""
    try:
        open_voice("flite:slt").speak("ready")
    except VoiceError as error:
        pytest.skip(str(error))
    run = tmp_path_factory.mktemp("run")
    corpus = run / "corpus"
    instruct_data.toy.world.main(
        corpus, ToyConfig(facts=8, say_questions=12, spoken_statements=10, answer_voice_statements=10)
    )
    recipe = FitRecipe(encoder="mfcc", size=20, utterances=30)
    units.encoder.fit.main(corpus / "train.jsonl", run / "unit_encoder", recipe=recipe)
    units.dataset.extract.main(
        corpus / "train.jsonl",
        run / "units" / "train",
        EncoderConfig(str(run / "unit_encoder")),
        WorkConfig(processes=1),
    )
    recipe = units.vocoder.train_vocoder.VocoderRecipe(steps=4, batch_size=2)
    manifest = corpus / "train.jsonl"
    units.vocoder.train_vocoder.main(run / "units" / "train", manifest, run / "vocoder", "flite:slt", recipe, threads=1)
    instruct_data.build.sets.main(run / "units" / "train", corpus / "chats.jsonl", "flite:slt", run / "data")
    stages.start_models.text_llm.main(corpus / "text.txt", run / "text_llm_untrained")
    for stage in ("text", "stage1", "stage2", "stage3"):
        steps = ["--training.max_steps", "3", "--training.warmup_steps", "1", "--training.eval_steps", "3"]
        stages.train.main([str(TOY / f"{stage}.yaml"), "--run", str(run), *steps])
    speechgpt.bundle.main(run / "stage3", run / "unit_encoder", run / "vocoder", run / "model")
    return run


def test_a_question_is_heard_and_answered(run: Path, tmp_path: Path) -> None:
    gpt = SpeechGPT.from_pretrained(run / "model")
    answer = gpt.answer(read_manifest(run / "corpus" / "test.jsonl")[0].audio)
    assert answer.transcript is not None
    (said,) = gpt.say_batch(["the small red tiger jumps"])
    assert said.wav is not None and len(said.wav) % HOP == 0
    assert len(load_wav(save_wav(tmp_path / "a.wav", said.wav))) == len(said.wav)


def test_the_gate_is_shut_on_a_vocoder_that_learned_nothing(run: Path) -> None:
    out = run / "results" / "resynthesis.json"
    corpus = run / "corpus"
    code = eval.resynthesis.main(
        run / "unit_encoder",
        run / "vocoder",
        corpus / "answers_unseen.jsonl",
        out,
        corpus / "asr_grammar.jsgf",
        options=ResynthesisOptions(limit=4),
    )
    assert code == 1
    assert json.loads(out.read_text())["score"] > 0.05


def test_figures_and_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eval.run.main(str(run / "model"), run / "corpus", run / "results", limit=3)
    eval.report.card.main(run, run / "report", name="toy")
    assert "toy: asr_wer=" in capsys.readouterr().out
    assert "<audio" in (run / "report" / "report.html").read_text()

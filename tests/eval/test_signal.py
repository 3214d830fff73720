"""The sound of answers: equality with the packages whose weights are used, files that are refused, and the tasks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from eval.evaluation import evaluate
from eval.measurement import Measurement
from eval.metrics import Score
from eval.model import as_speech_model
from eval.signal import mos, utmos
from eval.signal.settings import SignalModels
from eval.signal.speaker import SpeakerEncoder, parts
from eval.tasks.signal import opinion, pace, speaker_similarity
from eval.test_set import NotMeasured, TestSet
from units.audio import SAMPLE_RATE, save_wav
from units.corpus.manifest import Utterance, write_manifest

needs_speechmos = pytest.mark.skipif(
    importlib.util.find_spec("speechmos") is None or importlib.util.find_spec("onnxruntime") is None,
    reason="pip install '.[signal]'",
)
needs_resemblyzer = pytest.mark.skipif(
    importlib.util.find_spec("resemblyzer") is None, reason="pip install --no-deps Resemblyzer"
)


def tone(seconds: float, frequency: float = 150.0, level: float = 0.2) -> np.ndarray:
    """A tone with harmonics, and a little noise."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = sum(np.sin(2 * np.pi * frequency * k * time) / k for k in range(1, 8))
    noise = np.random.default_rng(0).normal(0, 0.01, len(time))
    return (level * sound / np.abs(sound).max() + noise * level).astype(np.float32)


def test_a_short_wav_is_doubled_and_a_long_one_heard_once_a_second() -> None:
    lengths = {seconds: [len(one) for one in mos.segments(tone(seconds))] for seconds in (3.0, 9.01, 11.5)}
    assert lengths == {3.0: [144160] * 3, 9.01: [144160], 11.5: [144160] * 2}  # 12 s, 9.01 s, 11 s
    wav = tone(11.5)
    assert np.array_equal(mos.segments(wav)[1], wav[SAMPLE_RATE : SAMPLE_RATE + 144160])


@needs_speechmos
def test_plcmos_hears_what_the_package_hears_and_repeats_itself() -> None:
    from speechmos.plcmos import PLCMOS

    wav = tone(1.03)
    wav[2000:4000] = 0.0  # bins without energy
    theirs = np.float32(PLCMOS().stft_transform(wav))
    assert np.allclose(mos.log_spectrum(wav), theirs, atol=1e-5)
    network = mos.Plcmos()
    assert network.score(wav) == network.score(wav) and 1 <= network.score(wav) <= 5


@pytest.mark.slow
@needs_speechmos
def test_dnsmos_equals_the_package() -> None:
    from speechmos import dnsmos

    wav = tone(10.5)
    theirs, ours = dnsmos.run(wav, SAMPLE_RATE), mos.Dnsmos().scores(wav)
    names = {"overall": "ovrl_mos", "signal": "sig_mos", "background": "bak_mos", "p808": "p808_mos"}
    assert {name: pytest.approx(theirs[their], abs=1e-4) for name, their in names.items()} == ours


def test_without_the_package_the_installation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotMeasured, match=r"speechmos and onnxruntime not installed: pip install '.\[signal\]'"):
        mos.version()
    with pytest.raises(NotMeasured, match="--no-deps Resemblyzer"):
        SpeakerEncoder()


def test_a_wav_is_heard_in_parts_of_which_the_last_is_three_quarters_sound() -> None:
    assert parts(1000) == [0]
    assert parts(160 * HOP) == [0]  # the part from frame 77 on would have 83 frames of 160
    assert parts(197 * HOP) == [0, 77] and parts(196 * HOP) == [0]  # 120 frames are three quarters


HOP = 160


@pytest.mark.slow
@needs_resemblyzer
def test_voices_equal_resemblyzers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("webrtcvad", {}), ("scipy.ndimage.morphology", {"binary_dilation": None})):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)  # it imports both, for the pauses that we do not cut
    from resemblyzer import VoiceEncoder
    from resemblyzer.audio import normalize_volume

    theirs, ours = VoiceEncoder("cpu", verbose=False), SpeakerEncoder()
    for wav in (tone(1.0), tone(4.3, 220.0), tone(3.0, level=0.01)):
        raised = normalize_volume(wav, -30, increase_only=True)
        assert np.allclose(ours.embed(wav), theirs.embed_utterance(raised), atol=1e-5)


def weights(path: Path) -> Path:
    """The speaker encoder with random weights."""
    torch.manual_seed(0)
    both = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(40, 256, 3), "linear": torch.nn.Linear(256, 256)})
    torch.save({"step": 1, "model_state": {**both.state_dict(), "similarity_weight": torch.ones(1)}}, path)
    return path


def test_a_file_that_is_no_speaker_encoder_is_one_line_and_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model_state": Bomb()}, tmp_path / "bomb.pt")
    torch.save({"model_state": {"lstm.weight_ih_l0": torch.ones(2)}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    for name in ("bomb", "other", "text"):
        with pytest.raises(ValueError, match=f"{name}.pt does not hold the weights of Resemblyzer") as error:
            SpeakerEncoder(tmp_path / f"{name}.pt")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match="none.pt"):
        SpeakerEncoder(tmp_path / "none.pt")


def test_utmos_is_any_function_or_an_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType("made_utmos")
    made.mean = lambda device: lambda wav: torch.tensor([[abs(wav).mean()]])
    made.two = lambda: lambda wav: [1.0, 2.0]
    monkeypatch.setitem(sys.modules, "made_utmos", made)
    assert utmos.open_utmos("made_utmos:mean", "cpu")(np.full(4, -0.5, np.float32)) == 0.5
    with pytest.raises(ValueError, match="gives one number"):
        utmos.open_utmos("made_utmos:two", "cpu")(np.zeros(4, np.float32))
    for missing in ("made_utmos:none", "no_such_module:f", "made_utmos", str(tmp_path / "none.onnx")):
        with pytest.raises(FileNotFoundError, match="--signal.utmos"):
            utmos.open_utmos(missing, "cpu")
    with pytest.raises(NotMeasured, match="--signal.utmos"):
        utmos.name_of(None)


@needs_speechmos
def test_an_onnx_file_is_opened_or_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ValueError, match="text.onnx does not open as an ONNX network") as error:
        utmos.open_utmos(str(tmp_path / "text.onnx"), "cpu")
    assert "\n" not in str(error.value)
    spec = importlib.util.find_spec("speechmos")
    network = Path(spec.origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    assert utmos.name_of(str(network)).startswith("sig_bak_ovr ")
    with pytest.raises(ValueError, match="gives one number"):  # this one gives three
        utmos.open_utmos(str(network), "cpu")(tone(9.01))


ANSWERS = {0: ("one two three", 1.0), 1: ("one two", 2.0), 2: (None, 0.0), 3: ("five", 1.0)}


@pytest.fixture
def made(tmp_path: Path) -> Measurement:
    """Four questions; three are answered by sound; two recordings of the answer voice, one with an answer's words."""
    rows = [Utterance(f"q{i}", save_wav(tmp_path / f"q{i}.wav", tone(0.5 + 0.1 * i)), text="q") for i in range(4)]
    write_manifest(tmp_path / "test.jsonl", rows)
    said = [("One, two.", 1.6), ("six seven eight", 1.4)]
    known = [
        Utterance(f"a{i}", save_wav(tmp_path / f"a{i}.wav", tone(seconds)), text=text)
        for i, (text, seconds) in enumerate(said)
    ]
    write_manifest(tmp_path / "answers_unseen.jsonl", known)

    def answer(wav: np.ndarray) -> SimpleNamespace:
        text, seconds = ANSWERS[round((len(wav) / SAMPLE_RATE - 0.5) * 10)]
        return SimpleNamespace(text=text, wav=tone(seconds) if text else None)

    signal = SignalModels("made_utmos:longer", weights(tmp_path / "speaker.pt"))
    model = as_speech_model(SimpleNamespace(name="made", answer=answer))
    return Measurement(model, TestSet(tmp_path), None, tmp_path / "out" / "answers", signal=signal)


def test_words_a_second_and_errors_of_length(made: Measurement) -> None:
    outcome = pace.run(made)
    assert (outcome.score.value, outcome.score.n) == (pytest.approx(6 / 4), 3)
    assert outcome.more["recordings/words_a_second"].value == pytest.approx(5 / 3)
    assert outcome.more["length_error"].value == outcome.more["length_bias"].value == pytest.approx(0.4 / 1.6)
    assert outcome.more["length_error"].n == 1 and outcome.more["no_sound"] == Score(0.25, None, 4)
    assert [row["words"] for row in outcome.details] == [3, 2, 1]


def test_opinions_stand_beside_those_of_the_voice(made: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("made_utmos")
    module.longer = lambda: lambda wav: len(wav) / SAMPLE_RATE
    monkeypatch.setitem(sys.modules, "made_utmos", module)
    found = opinion.naturalness(made)
    assert found.score.value == pytest.approx(4 / 3) and found.more["recordings/utmos"].value == pytest.approx(1.5)
    assert found.listener == "UTMOS, made_utmos:longer" and [row["id"] for row in found.details] == ["q0", "q1", "q3"]
    out = made.out
    assert evaluate(made, out, ["utmos"])["utmos"].more["no_sound"].value == 0.25
    module.longer = None  # finished: not opened again
    assert evaluate(made, out, ["utmos"])["utmos"].n == 3
    other = Measurement(made.model, made.test_set, None, made.keep, signal=SignalModels("made_utmos:other"))
    with pytest.raises(FileNotFoundError):  # another one measures again
        evaluate(other, out, ["utmos"])


@pytest.mark.slow
@needs_speechmos
def test_dnsmos_and_plcmos_are_tasks(made: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mos, "_mels", lambda wav: np.zeros((900, 120), np.float32))  # librosa takes seconds to start
    dns, plc = opinion.dnsmos(made), opinion.plcmos(made)
    assert {"signal", "background", "p808", "recordings/overall", "no_sound"} <= dns.more.keys()
    assert dns.listener.startswith("DNSMOS, speechmos ") and all(1 <= row["overall"] <= 5 for row in dns.details)
    assert plc.score.n == 3 and plc.more["recordings/plcmos"].n == 2


def test_voices_are_compared_with_the_answer_voice(made: Measurement) -> None:
    outcome = speaker_similarity.run(made)
    encoder = SpeakerEncoder(made.signal.speaker)
    known = [encoder.embed(tone(seconds)) for seconds in (1.6, 1.4)]
    voice = (known[0] + known[1]) / np.linalg.norm(known[0] + known[1])
    assert outcome.details[1]["similarity"] == pytest.approx(float(encoder.embed(tone(2.0)) @ voice), abs=1e-4)
    assert outcome.more["recordings"].value == pytest.approx(float(known[0] @ known[1]), abs=1e-4)
    assert (outcome.score.n, outcome.more["questions"].n) == (3, 4) and outcome.listener.startswith("Resemblyzer ")
    (made.test_set.path / "answers_unseen.jsonl").unlink()
    with pytest.raises(NotMeasured, match="answers_unseen.jsonl"):
        speaker_similarity.run(
            Measurement(made.model, TestSet(made.test_set.path), None, made.keep, signal=made.signal)
        )

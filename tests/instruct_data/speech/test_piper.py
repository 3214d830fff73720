"""TTS voices of Piper."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest

from instruct_data.speech.voices import VoiceError, open_voice
from units.runtime.files.json_files import FileError


class Session:
    """A voice of Piper that speaks a tone of 100 samples for each id, and keeps what it was given."""

    def __init__(self, *_: object, **__: object) -> None:
        self.given: dict[str, np.ndarray] = {}

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.given = inputs
        return [np.sin(np.arange(100 * inputs["input"].size, dtype=np.float32) / 10).reshape(1, 1, 1, -1) / 2]


def piper_folder(path: Path, **facts: object) -> Path:
    """A folder in the layout of a voice of Piper whose ids are numbers of letters, and of which `d` is not known."""
    ids = {name: [number] for number, name in enumerate("_^$ .,ɹɛðəˈ")}
    known = {"audio": {"sample_rate": 16000}, "espeak": {"voice": "en-us"}, "num_speakers": 1, "phoneme_id_map": ids}
    path.mkdir()
    (path / "voice.onnx").write_bytes(b"")
    (path / "voice.onnx.json").write_text(json.dumps(known | facts))
    return path


@pytest.fixture
def piper_session(monkeypatch: pytest.MonkeyPatch) -> Session:
    session = Session()
    runtime = types.SimpleNamespace(SessionOptions=types.SimpleNamespace, InferenceSession=lambda *_, **__: session)
    monkeypatch.setattr("instruct_data.speech.piper.required", lambda *_: runtime)
    return session


def test_a_voice_of_piper_reads_phonemes_with_pads_and_marks(tmp_path: Path, piper_session: Session) -> None:
    voice = open_voice(f"piper:{piper_folder(tmp_path / 'voice')}", stretch=1.2)
    wav = voice.speak("red, the red.")
    names = "_^$ .,ɹɛðəˈ"
    # ɹˈɛd, ðə ɹˈɛd. without the d that the voice has not learned
    assert [names[i] for i in piper_session.given["input"][0]] == [*"^_", *"_".join("ɹˈɛ, ðə ɹˈɛ."), *"_$"]
    assert piper_session.given["input_lengths"] == piper_session.given["input"].shape[1]
    np.testing.assert_allclose(piper_session.given["scales"], [0, 1.2, 0], rtol=1e-6)
    assert len(wav) == 100 * piper_session.given["input"].size and "sid" not in piper_session.given


def test_a_speaker_of_piper_is_one_that_the_voice_has(tmp_path: Path, piper_session: Session) -> None:
    folder = piper_folder(tmp_path / "voice", num_speakers=3)
    open_voice(f"piper:{folder}#2").speak("red")
    assert piper_session.given["sid"] == [2]
    with pytest.raises(VoiceError, match="speakers 0 to 2"):
        open_voice(f"piper:{folder}#3").speak("red")


def test_a_folder_without_a_voice_of_piper_is_refused(tmp_path: Path, piper_session: Session) -> None:
    with pytest.raises(VoiceError, match="no .onnx file"):
        open_voice(f"piper:{tmp_path}").speak("red")
    folder = piper_folder(tmp_path / "voice", phoneme_id_map={"_": [0]})
    with pytest.raises(FileError, match="phoneme_id_map"):
        open_voice(f"piper:{folder}").speak("red")
    (folder / "voice.onnx.json").unlink()
    with pytest.raises(VoiceError, match="voice.onnx.json"):
        open_voice(f"piper:{folder}").speak("red")


def test_a_file_that_is_no_model_of_piper_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(VoiceError, match="onnxruntime reads"):
        open_voice(f"piper:{piper_folder(tmp_path / 'voice')}").speak("red")

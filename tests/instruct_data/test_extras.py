"""Libraries of extras: the package is imported without them, and the error where one is used names the extra."""

from __future__ import annotations

import subprocess
import sys

import pytest

from instruct_data.speech import espeak
from instruct_data.speech.voices import open_voice
from instruct_data.text.completion import EndpointModel
from instruct_data.text.spoken.form import speakable
from units.runtime.extras import required

LIBRARIES = ("num2words", "py3langid", "py3langid.langid", "openai", "espeakng_loader", "pocketsphinx", "torch")
MODULES = ("text.sources", "text.rewrite", "speech.speak", "speech.unit_voice", "toy.world", "toy.starter_corpus")


def test_commands_are_imported_without_the_libraries() -> None:
    lines = ["import sys", f"sys.modules.update(dict.fromkeys({LIBRARIES!r}))"]
    lines += [f"import instruct_data.{module}" for module in MODULES]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "library, extra", [("num2words", "data"), ("py3langid.langid", "data"), ("pocketsphinx", "eval")]
)
def test_a_missing_library_is_an_error_of_one_line(library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError) as raised:
        required(library, extra)
    message = str(raised.value)
    assert library in message and f"speechgpt-trainer[{extra}]" in message and "\n" not in message


def test_the_error_is_raised_where_a_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("num2words", "openai", "espeakng_loader"):
        monkeypatch.setitem(sys.modules, library, None)
    espeak._open.cache_clear()
    with pytest.raises(ImportError, match="num2words"):
        speakable("it is 42")
    with pytest.raises(ImportError, match="openai"):
        list(EndpointModel("http://127.0.0.1:9/v1", "tiny").completions(["a"]))
    with pytest.raises(ImportError, match="espeakng_loader"):
        open_voice("espeak:en-us").speak("a")

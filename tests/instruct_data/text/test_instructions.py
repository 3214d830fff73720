"""The task descriptions: many, distinct, fit for the template, and without anything that looks like a unit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from refused import refused

from instruct_data.build.cross_modal import read_instructions
from speechgpt.prompts import ASR_TASK, TTS_TASK
from units.runtime.files.json_files import FileReason

FOLDER = Path(__file__).parents[3] / "instruct_data" / "instructions"
FILES = sorted(FOLDER.glob("*.txt"))
SPECIAL = re.compile(r"<[^>]*>|\[[^\]]*\]|this is input", re.IGNORECASE)


def normalised(line: str) -> str:
    """Lower case letters and single spaces, so that two lines that differ in punctuation only count as one."""
    return " ".join(re.findall(r"[a-z]+", line.lower()))


def test_both_tasks_have_descriptions() -> None:
    assert {"asr.txt", "tts.txt"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_distinct_lines_and_at_least_a_hundred_for_speech(path: Path) -> None:
    lines = path.read_text(encoding="ascii").splitlines()
    assert len({normalised(line) for line in lines}) == len(lines) >= (100 if path.stem in ("asr", "tts") else 20)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_line_fits_the_template(path: Path) -> None:
    for line in path.read_text(encoding="ascii").splitlines():
        assert line == line.strip() and "  " not in line, f"stray spaces: {line!r}"
        assert line[0].isupper() and line[-1] in ".?", (
            f"a sentence begins with a capital and ends with . or ?: {line!r}"
        )
        assert not SPECIAL.search(line), f"looks like a unit, a special token or the words of the template: {line!r}"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("asr.txt")) + sorted(FOLDER.rglob("tts.txt")), ids=str)
def test_the_prompts_of_inference_are_trained(path: Path) -> None:
    assert {"asr": ASR_TASK, "tts": TTS_TASK}[path.stem] in path.read_text(encoding="ascii").splitlines()


def test_no_description_serves_two_tasks() -> None:
    seen = [normalised(line) for path in FILES for line in path.read_text(encoding="ascii").splitlines()]
    assert len(seen) == len(set(seen))


def test_descriptions_of_another_encoding_or_none_at_all_are_named(tmp_path: Path) -> None:
    (tmp_path / "asr.txt").write_bytes("schreib es für mich\n".encode("latin-1"))
    (tmp_path / "tts.txt").write_text("\n \n")
    for task, reason in (("asr", FileReason.NOT_UTF8), ("tts", FileReason.MISSING_FIELD)):
        with refused(reason, tmp_path / f"{task}.txt"):
            read_instructions(task, tmp_path)
    (tmp_path / "asr.txt").write_bytes("\ufeffone\r\ntwo\u2028half\n\n".encode())
    assert read_instructions("asr", tmp_path) == ("one", "two\u2028half")

"""Every command: a complete --help without heavy imports, one line for a wrong call, and an entry in setup.py."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch",
    "transformers",
    "sklearn",
    "scipy",
    "pyarrow",
    "librosa",
    "soundfile",
    "matplotlib",
    "pocketsphinx",
    "deepspeed",
    "faster_whisper",
    "onnxruntime",
    "sacrebleu",
)
# Each command in a process of its own, forked from one that has imported what all of them need.
PROGRAM = f"""
import contextlib, importlib, io, json, os, sys
import units.runtime.command, jsonargparse

def call(module, args):
    read, write = os.pipe()
    if os.fork() == 0:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                importlib.import_module(module).main.cli(args)
            except SystemExit as ended:
                code = ended.code or 0
        heavy = sorted(set({HEAVY!r}) & set(sys.modules))
        with os.fdopen(write, "w") as pipe:
            json.dump({{"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}}, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    os.wait()
    return json.loads(told) if told else {{"code": "crashed", "out": "", "err": "", "heavy": []}}

args = json.loads(sys.argv[1])
print(json.dumps({{module: call(module, args) for module in json.loads(sys.argv[2])}}))
"""


def commands() -> dict[str, str]:
    """Console command -> module, as setup.py lists them."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no COMMANDS")


COMMANDS = commands()


def programs() -> list[str]:
    """Modules with a command that setup.py does not list, such as those of bench."""
    found = []
    for path in sorted(ROOT.glob("[a-z]*/**/*.py")):
        if '\n@command("python -m ' in path.read_text(encoding="utf-8"):
            found.append(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return found


PROGRAMS = programs()


def called(*args: str, modules: Iterable[str] = COMMANDS.values()) -> dict[str, dict]:
    """What each module's command gives for some arguments."""
    line = [sys.executable, "-c", PROGRAM, json.dumps(args), json.dumps(sorted(modules))]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_program_without_an_entry_in_setup_py_has_help_too() -> None:
    assert "bench.listening" in PROGRAMS
    wrong = {}
    for module, found in called("--help", modules=PROGRAMS).items():
        if found["code"] != 0 or not found["out"].startswith(f"usage: python -m {module} "):
            wrong[module] = found
    assert wrong == {}


@pytest.fixture(scope="module")
def helped() -> dict[str, dict]:
    return called("--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete_and_light(helped: dict[str, dict], command: str) -> None:
    found = helped[COMMANDS[command]]
    assert found["code"] == 0, found["err"]
    assert found["out"].startswith(f"usage: {command}") or f"-m {COMMANDS[command]}" in found["out"].splitlines()[0]
    assert "\n\n" in found["out"]
    assert found["heavy"] == []


def test_a_wrong_option_is_one_line_and_exit_code_2() -> None:
    wrong = {}
    for module, found in called("--no-such-option", "7").items():
        if found["code"] != 2 or found["err"].count("\n") != 1:
            wrong[module] = found
    assert wrong == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_python_m_runs_what_the_command_runs(command: str) -> None:
    source = Path(importlib.util.find_spec(COMMANDS[command]).origin).read_text(encoding="utf-8")
    package = COMMANDS[command].rpartition(".")[0].replace(".", "/")
    assert "main.cli()" in source or "main.cli()" in (ROOT / package / "__main__.py").read_text(encoding="utf-8")

"""The laws of the house that can be read off its source: who may import whom, and how long a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ("units", "speechgpt", "instruct_data", "stages", "eval")
# package -> what it may import of the house; "a.b" allows that module only
FLOORS = {
    "units": (),
    "speechgpt": ("units",),
    "instruct_data": ("units", "speechgpt"),
    "stages": ("units", "speechgpt", "instruct_data.records"),
    "eval": ("units", "speechgpt"),
}
FILE_LINES = 300
FUNCTION_LINES = 60
HEAVY = ("transformers.trainer", "deepspeed", "gradio", "fairseq")

SOURCES = [path for package in HOUSE for path in sorted((ROOT / package).rglob("*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in SOURCES]
each_source = pytest.mark.parametrize("path", SOURCES, ids=NAMES)


def imported_modules(tree: ast.AST, package: str) -> set[str]:
    """Dotted names of all that a file imports, function-local imports included; relative ones are made absolute."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            found.update(arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
    return found


def forbidden_imports(source: str, package: str) -> list[str]:
    """What a file of `package` (dotted) imports from floors that it may not see."""
    room = package.split(".")[0]
    allowed = (room, *FLOORS[room])
    house = [name for name in imported_modules(ast.parse(source), package) if name.split(".")[0] in HOUSE]
    return sorted(name for name in house if not any(name == ok or name.startswith(ok + ".") for ok in allowed))


@each_source
def test_imports_go_down_only(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    assert forbidden_imports(path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("units", "import numpy\nfrom units.audio import HOP", []),
        ("units", "def f():\n    from speechgpt.vocab import UnitVocab", ["speechgpt.vocab.UnitVocab"]),
        ("units", "import importlib\nimportlib.import_module('stages.train')", ["stages.train"]),
        ("stages", "from instruct_data.records import read_records", []),
        ("stages", "from instruct_data import records", []),
        ("stages", "from instruct_data.toy import main", ["instruct_data.toy.main"]),
        ("speechgpt", "from .vocab import UnitVocab", []),
        ("eval", "import stages", ["stages"]),
    ],
)
def test_the_walk_sees_every_kind_of_import(package: str, source: str, found: list[str]) -> None:
    assert forbidden_imports(source, package) == found


def test_units_alone_stays_light() -> None:
    modules = ["units", *(f"units.{path.stem}" for path in (ROOT / "units").glob("*.py") if path.stem != "__init__")]
    program = (
        f"import importlib, sys\n[importlib.import_module(name) for name in {modules}]\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]"), done.stdout


@each_source
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES, f"over {FILE_LINES} lines; is this still one noun?"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES} == {}


def test_a_file_is_named_after_its_noun() -> None:
    assert [name for name in NAMES if Path(name).stem in ("utils", "util", "common", "helpers", "helper", "misc")] == []


def test_every_room_is_a_package_that_setup_lists() -> None:
    setup = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    listed = next(
        ast.literal_eval(keyword.value)
        for node in ast.walk(setup)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "packages"
    )
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in SOURCES}
    assert set(listed) == on_disk
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in listed)

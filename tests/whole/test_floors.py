"""The laws of the house that can be read off its source: who may import whom, and how long a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSE = ("units", "speechgpt", "instruct_data", "stages", "eval", "variants")
# package -> what it may import of the house; "a.b" allows that module only
FLOORS = {
    "units": (),
    "speechgpt": ("units",),
    "instruct_data": ("units", "speechgpt", "eval.asr", "eval.judge", "eval.metrics", "eval.signal"),
    "stages": ("units", "speechgpt", "instruct_data.build.records", "instruct_data.build.preference_sets"),
    "eval": ("units", "speechgpt", "instruct_data.text", "instruct_data.speech"),
    "variants": ("units", "speechgpt", "instruct_data", "stages", "eval"),
}
# Inside a package, from the ground up. A room may import those on the lines above its own.
ROOMS = {
    "units": ("runtime", "containers", "audio codebook notation", "corpus", "encoder", "dataset", "vocoder"),
    "speechgpt": ("vocab", "dialogue", "generation", "inference", "serve"),
    "instruct_data": ("text", "speech", "build", "describe toy released preferences"),
    "stages": ("config", "planning system packing", "unit_system", "train"),
    "variants": ("references published_files", "encoders", "listening", "speech_in", "blsp llama_omni"),
    "eval": (
        "metrics results asr test_set",
        "likelihood",
        "models judge",
        "model",
        "measurement",
        "tasks",
        "evaluation report",
        "run resynthesis compare qa_sets",
    ),
}
FILE_LINES = 500
FUNCTION_LINES = 80
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
        ("stages", "from instruct_data.build.records import read_records", []),
        ("stages", "from instruct_data.build import records", []),
        ("stages", "from instruct_data.toy import main", ["instruct_data.toy.main"]),
        ("speechgpt", "from .vocab import UnitVocab", []),
        ("eval", "import stages", ["stages"]),
    ],
)
def test_the_walk_sees_every_kind_of_import(package: str, source: str, found: list[str]) -> None:
    assert forbidden_imports(source, package) == found


def test_units_alone_stays_light() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.parts[len(ROOT.parts)] == "units"
    ]
    program = (
        f"import importlib, sys\n[importlib.import_module(name) for name in {modules}]\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]"), done.stdout


def house_arrows() -> dict[str, set[str]]:
    """Module -> the modules of the house that it imports."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES
    }
    arrows: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = ".".join(path.parent.relative_to(ROOT).parts)
        found = imported_modules(ast.parse(path.read_text(encoding="utf-8")), package)
        targets = (name if name in modules else name.rpartition(".")[0] for name in found)
        arrows[module] = {target for target in targets if target in modules and target != module}
    return arrows


@pytest.mark.parametrize("package", ROOMS)
def test_the_rooms_named_here_exist(package: str) -> None:
    rooms = [room for line in ROOMS[package] for room in line.split()]
    missing = [room for room in rooms if not any((ROOT / package / name).exists() for name in (room, f"{room}.py"))]
    assert missing == [] and len(rooms) == len(set(rooms))


def room_of(module: str) -> str:
    """A folder within a package, or a file that lies in the package itself."""
    return ".".join(module.split(".")[:2])


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that can reach each other."""
    reached: dict[str, set[str]] = {}
    for start in arrows:
        todo, seen = [start], set()
        while todo:
            for target in arrows.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        reached[start] = seen
    return sorted({tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in arrows if a in reached[a]})


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [("b", "c")]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_files_import_each_other() -> None:
    assert circles(house_arrows()) == []


def test_no_rooms_import_each_other() -> None:
    rooms: dict[str, set[str]] = {}
    for module, targets in house_arrows().items():
        rooms.setdefault(room_of(module), set()).update(room_of(t) for t in targets if room_of(t) != room_of(module))
    assert circles(rooms) == []


@pytest.mark.parametrize("package", HOUSE)
def test_rooms_of_a_package_import_downward_only(package: str) -> None:
    floor = {f"{package}.{name}": i for i, names in enumerate(ROOMS[package]) for name in names.split()}
    wrong = [
        f"{module} -> {target}"
        for module, targets in house_arrows().items()
        for target in targets
        if floor.get(room_of(module), 99) < floor.get(room_of(target), -1)
    ]
    assert wrong == []


@each_source
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES, f"over {FILE_LINES} lines; is this still one noun?"
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: (f.end_lineno or 0) - f.lineno + 1 for f in functions}
    assert {name: lines for name, lines in long.items() if lines > FUNCTION_LINES} == {}


def test_no_system_imports_another() -> None:
    shared = {"speech_in"}  # what systems share that listen; it is none itself
    systems = {path.parent.name for path in (ROOT / "variants").glob("*/__init__.py")} - shared
    wrong = [
        f"{module} -> {target}"
        for module, targets in house_arrows().items()
        for target in targets
        if room_of(module) != room_of(target)
        and {room_of(one).partition(".")[2] for one in (module, target)} <= systems
    ]
    assert wrong == []


def test_a_file_is_named_after_its_noun() -> None:
    assert [name for name in NAMES if Path(name).stem in ("utils", "util", "common", "helpers", "helper", "misc")] == []


def test_every_room_is_a_package() -> None:
    assert [path for path in {path.parent for path in SOURCES} if not (path / "__init__.py").is_file()] == []

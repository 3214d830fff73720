"""The README is true: its tree, its make targets, its commands and its links exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
TEXTS = README + CONTRIBUTING


def tree_paths(text: str) -> list[str]:
    """Paths of the README's tree: the fenced block after the heading "The tree", two spaces a level."""
    block = text.split("## The tree", 1)[1].split("```", 2)[1]
    folders: list[str] = []
    found = []
    for line in block.splitlines()[1:]:
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[0].split():
            found.append("/".join([*folders[:depth], name.rstrip("/")]))
            if name.endswith("/"):
                folders[depth:] = [name.rstrip("/")]
    return found


def test_the_tree_lists_what_exists() -> None:
    assert [path for path in tree_paths(README) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("package", ["units", "speechgpt", "instruct_data", "stages", "eval", "bench"])
def test_the_tree_lists_every_file_of_a_package(package: str) -> None:
    on_disk = {f"{package}/{path.name}" for path in (ROOT / package).glob("*.py") if path.name != "__init__.py"}
    assert on_disk - set(tree_paths(README)) == set()


def make_targets(text: str) -> set[str]:
    """Targets of every `make a b X=y` in backticks or at the start of a line of a code block."""
    commands = re.findall(r"(?:`|^ *)make ([^`\n#]+)", text, re.M)
    return {word for command in commands for word in command.split() if re.fullmatch(r"[a-z][a-z0-9-]*", word)}


def test_make_targets_exist() -> None:
    declared = set(MAKEFILE.split(".PHONY:", 1)[1].split("\n\n", 1)[0].replace("\\", " ").split())
    assert {"demo", "install", "test"} <= make_targets(README) <= declared
    assert make_targets(CONTRIBUTING) <= declared


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([a-z_.0-9]+)", TEXTS + MAKEFILE))))
def test_modules_to_run_exist(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("command", ["units-extract", "units-export", "units-vocode", "speechgpt-cli"])
def test_console_scripts_are_installed_by_setup(command: str) -> None:
    entry = re.search(rf'"{command}=([a-z_.]+):([a-z_]+)"', SETUP)
    assert entry and command in README
    spec = importlib.util.find_spec(entry[1])
    assert spec and spec.origin
    assert re.search(rf"^def {entry[2]}\(", Path(spec.origin).read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXTS))))
def test_relative_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_the_makefile_keeps_its_promises() -> None:
    targets = (
        "help install demo data units stage1 stage2 stage3 vocoder eval chat test test-all check bench clean".split()
    )
    declared = MAKEFILE.split(".PHONY:", 1)[1].split("\n\n", 1)[0].split()
    assert set(targets) <= set(declared)
    assert ".DEFAULT_GOAL := help" in MAKEFILE
    assert "PRESET ?= toy" in MAKEFILE

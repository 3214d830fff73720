"""README and docs are true: their tree, make targets, commands, options, modules and links exist."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
PACKAGES = ("units", "speechgpt", "instruct_data", "stages", "eval", "variants", "bench")
ANY = "|".join(PACKAGES)
each_page = pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150


def test_the_layout_lists_what_exists() -> None:
    block = README.split("## Layout", 1)[1].split("```", 2)[1]
    listed = {line.split()[0] for line in block.splitlines()[1:] if line and not line.startswith(" ")}
    assert {name for name in listed if not (ROOT / name).exists()} == set()
    assert {f"{name}/" for name in PACKAGES} <= listed


def make_targets(text: str) -> set[str]:
    """Targets of every `make a b X=y` in backticks or at the start of a line of a code block."""
    commands = re.findall(r"(?:`|^ *)make ([^`\n#]+)", text, re.M)
    return {word for command in commands for word in command.split() if re.fullmatch(r"[a-z][a-z0-9-]*", word)}


def test_make_targets_exist() -> None:
    declared = set(MAKEFILE.split(".PHONY:", 1)[1].split("\n\n", 1)[0].replace("\\", " ").split())
    assert {"demo", "test"} <= make_targets(README)
    assert make_targets(TEXTS) <= declared


@pytest.mark.parametrize("module", sorted(set(re.findall(rf"-m ((?:{ANY})[a-z_.0-9]*)", TEXTS + MAKEFILE))))
def test_modules_to_run_exist(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def console_commands() -> set[str]:
    for node in ast.parse(SETUP).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMANDS":
            return set(ast.literal_eval(node.value))
    return set()


def test_commands_in_the_texts_are_installed() -> None:
    named = set(re.findall(r"(?:^|`|[/|] ?)((?:units|instruct|stages|eval|speechgpt|blsp)-[a-z0-9-]+)\b", TEXTS, re.M))
    assert named - console_commands() - {"speechgpt-trainer"} == set()
    assert {"units-extract", "speechgpt-cli", "speechgpt-server", "units-fit"} <= named


@pytest.mark.parametrize("command", sorted(console_commands()))
def test_every_command_is_in_the_texts(command: str) -> None:
    assert command in TEXTS


@pytest.mark.parametrize("path", sorted(set(re.findall(rf"`((?:{ANY}|docs|tests)/[a-z0-9_./-]+\.[a-z]+)`", TEXTS))))
def test_files_that_the_texts_name_exist(path: str) -> None:
    assert (ROOT / path).exists()


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", text))
    on_disk = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named <= on_disk
    assert on_disk - named == set()
    assert yaml.safe_load(text)["strict"] is True


def test_decisions_are_listed() -> None:
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    pages = {path.name for path in (ROOT / "docs" / "decisions").glob("*.md")} - {"index.md"}
    assert {page for page in pages if f"({page})" not in index} == set()

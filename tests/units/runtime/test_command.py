"""The one manner of all commands: options, one-line errors, exit codes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from units.runtime.command import INTERRUPTED, SOME_REFUSED, WRONG_CALL, check_range, command, one_line


@dataclass(frozen=True)
class Settings:
    """Settings of a made command."""

    size: int = 3
    """how many"""
    durations: bool = True
    """whether there are any"""
    dry_run: bool = False
    """say what would be done"""


calls: list[tuple] = []


@command("try-it", optional=("out",), flat=True)
def try_it(source: str, out: Path | None = None, settings: Settings = Settings()) -> int | None:
    """Try a command.

    Args:
        source: what to read
        out: where to write
        settings: how
    """
    calls.append((source, out, settings))
    match source:
        case "missing":
            raise FileNotFoundError("no such file:\n  missing")
        case "wrong":
            raise ValueError("wrong")
        case "fault":
            raise KeyError("a fault of the program")
        case "stop":
            raise KeyboardInterrupt
        case "some":
            return SOME_REFUSED
    return None


def called(*args: str) -> tuple:
    calls.clear()
    try_it.cli(args)
    return calls[0]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("a", ("a", None, Settings())),
        ("-", ("-", None, Settings())),
        ("a b", ("a", Path("b"), Settings())),
        ("a --out b", ("a", Path("b"), Settings())),
        ("a b --size 7", ("a", Path("b"), Settings(7))),
        ("--size=7 a", ("a", None, Settings(7))),
        ("a --dry-run", ("a", None, Settings(dry_run=True))),
        ("a --dry_run --size 4", ("a", None, Settings(4, dry_run=True))),
        ("a --dry-run false", ("a", None, Settings())),
        ("a --no-durations", ("a", None, Settings(durations=False))),
        ("a --durations=false", ("a", None, Settings(durations=False))),
    ],
)
def test_options_are_spelled_as_people_type_them(args: str, expected: tuple) -> None:
    assert called(*args.split()) == expected


def test_a_yaml_file_gives_options(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("size: 9\n")
    assert called("a", "--config", str(tmp_path / "c.yaml"), "--no-durations") == ("a", None, Settings(9, False))


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ("missing", WRONG_CALL, "try-it: no such file: missing"),
        ("wrong", WRONG_CALL, "try-it: wrong"),
        ("a --size seven", WRONG_CALL, "seven"),
        ("a --sizes 7", WRONG_CALL, "--sizes"),
        ("", WRONG_CALL, "source"),
        ("a b c", WRONG_CALL, "unrecognized arguments: c"),
        ("some", SOME_REFUSED, ""),
        ("stop", INTERRUPTED, ""),
    ],
)
def test_errors_are_one_line_with_an_exit_code(
    args: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        try_it.cli(args.split())
    assert ended.value.code == code
    told = capsys.readouterr().err
    assert says in told and told.count("\n") == bool(says)
    assert not says or told.startswith("try-it: ")


def test_errors_of_the_operating_system_are_words(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for work, message in (
        (lambda: file.mkdir(exist_ok=True), f"{file} is there already and is no folder; name another place"),
        (lambda: (file / "in").mkdir(), f"{file / 'in'} cannot be: a part of that path is a file"),
        (tmp_path.read_bytes, f"{tmp_path} is a folder, where a file is needed"),
        ((tmp_path / "none").read_bytes, f"{tmp_path / 'none'} is not there"),
    ):
        with pytest.raises(OSError) as raised:
            work()
        assert one_line(raised.value).startswith(message)
    assert one_line(FileNotFoundError("no units in x; run units-extract")) == "no units in x; run units-extract"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        try_it.cli(["fault"])


def test_a_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHGPT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        try_it.cli(["wrong"])


def test_the_help_tells_all_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        try_it.cli(["--help"])
    told = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(text in told for text in ("Try a command.", "what to read", "where to write", "how many", "--dry_run"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a.jsonl", "out"], (["a.jsonl"], "out")),
        (["[a b.jsonl, c:d]", "out"], (["a b.jsonl", "c:d"], "out")),
        (["a", "b", "out", "--name=[x]"], (["a", "b"], "out")),
        (["a[1]", "out"], (["a[1]"], "out")),
        (["--name", "[x, y]", "[a]", "out"], (["a"], "out")),
    ],
)
def test_a_positional_list_is_values_or_a_list_in_brackets(args: list[str], expected: tuple) -> None:
    given: list[tuple] = []

    @command("lists")
    def lists(names: list[str], out: str, name: str = "") -> None:
        """Take a list.

        Args:
            names: several
            out: one
            name: an option
        """
        given.append((names, out))

    lists.cli(args)
    assert given == [expected]


def test_the_function_stays_a_function() -> None:
    calls.clear()
    assert try_it("some", settings=Settings(5)) == SOME_REFUSED
    assert calls == [("some", None, Settings(5))]


@pytest.mark.parametrize("verbose, silent", [("", True), ("1", False)])
def test_libraries_report_only_errors_unless_asked(monkeypatch: pytest.MonkeyPatch, verbose: str, silent: bool) -> None:
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(logger, "filters", [])
    monkeypatch.setenv("SPEECHGPT_VERBOSE", verbose)
    transformers_logging.enable_progress_bar()
    try_it.cli(["source"])
    for level, shown in ((logging.WARNING, not silent), (logging.ERROR, True)):
        record = logger.makeRecord("DeepSpeed", level, "", 0, "a message", (), None)
        assert bool(logger.filter(record)) is shown
    assert transformers_logging.is_progress_bar_enabled() is not silent


@dataclass(frozen=True)
class Pace:
    """How fast."""

    speed: float = 1.0
    """steps per second"""

    def __post_init__(self) -> None:
        check_range("speed", self.speed, 0, 10, exclusive=True)


@command("try-two", flat=("settings", "pace"))
def try_two(settings: Settings = Settings(), pace: Pace = Pace(), seed: int = 0) -> None:
    """Try two settings."""
    calls.append((settings, pace, seed))


def test_the_fields_of_several_settings_are_options(tmp_path: Path) -> None:
    calls.clear()
    (tmp_path / "c.yaml").write_text("size: 9\nspeed: 2\n")
    try_two.cli(["--config", str(tmp_path / "c.yaml"), "--seed", "4", "--dry-run"])
    assert calls == [(Settings(9, dry_run=True), Pace(2.0), 4)]


@pytest.mark.parametrize(
    "content", [b"size: caf\xe9", b"size: [1", b"- size", b"size", b"\0", b"a: b: c", "size: 9".encode("utf-16")]
)
def test_a_config_that_cannot_be_read_is_named(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    for option in (["--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        with pytest.raises(SystemExit) as ended:
            try_two.cli(option)
        assert ended.value.code == WRONG_CALL
        (line,) = [line for line in capsys.readouterr().err.split("\n") if line]
        assert line.startswith(f"try-two: {tmp_path / 'c.yaml'}: ")


@pytest.mark.parametrize("speed", ["0", "-1", "10.5", ".nan"])
def test_a_number_outside_its_range_is_one_line(speed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        try_two.cli([f"--speed={speed}"])
    assert ended.value.code == WRONG_CALL
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("try-two: --speed is ") and "more than 0 and at most 10" in line


def test_a_range_has_one_end_or_two() -> None:
    for value in (None, 0, 5):
        check_range("shard_size", value, 0)
    with pytest.raises(ValueError, match="^--shard-size is -1; it must be at least 0$"):
        check_range("shard_size", -1, 0)
    with pytest.raises(ValueError, match="^--share is 2; it must be at most 1$"):
        check_range("share", 2, most=1)


@dataclass
class Inner:
    """Settings within settings."""

    low: int = 1
    """at least 1"""

    def __post_init__(self) -> None:
        check_range("inner.low", self.low, 1)


@command("try-three")
def try_three(
    inner: Inner | None = None,
    kind: Literal["all", "some"] | list[str] = "all",
    form: Literal["a", "b"] = "a",
    number: int | None = None,
    share: float = 0.5,
) -> None:
    """Try settings within settings, and types of several kinds.

    Args:
        inner: settings of its own
        kind: which
        form: which one
        number: how many
        share: how much
    """


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("inner.low", "0", "--inner.low is 0; it must be at least 1"),
        ("inner.low", "x", "--low is x; it must be a whole number"),
        ("inner", "13:26", "--inner is 13:26; it must be a table of its settings {NAME: VALUE} or null"),
        ("kind", "{a: 3}", "--kind is {'a': 3}; it must be all or some or a list"),
        ("form", "c", "--form is c; it must be a or b"),
        ("number", "many", "--number is many; it must be a whole number or null"),
        ("share", "half", "--share is half; it must be a number"),
    ],
)
def test_a_value_of_another_type_is_one_plain_line(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        try_three.cli([f"--{option}={value}"])
    assert ended.value.code == WRONG_CALL
    (line,) = capsys.readouterr().err.splitlines()
    assert line.removesuffix(" (try-three --help lists the options)") == f"try-three: {said}"

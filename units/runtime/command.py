"""The command line of every command: `@command("units-fit")` above the function that does the work.

    @command("units-fit")
    def main(manifest: Path, out: Path, size: int = 100) -> int | None:
        '''Fit k-means on one layer's features. ...'''

    if __name__ == "__main__":
        main.cli()

The function can still be called as it is; `main.cli` is its command line (setup.py:
`units-fit=units.encoder.fit:main.cli`).

| what happens | what the user sees | exit code |
|---|---|---|
| the function returns | its own output | 0, or the number that it returns |
| some inputs were refused | the function's report; it returns SOME_REFUSED | 3 |
| a wrong option, or an error that the user can fix | one line | 2 |
| Ctrl-C | nothing | 130 |

Errors that the user can fix are USER_ERRORS. With the environment variable SPEECHGPT_TRACEBACK=1 they show a traceback;
with SPEECHGPT_VERBOSE=1 the messages and progress bars of libraries are shown.

A module with a command imports torch, transformers and other heavy libraries inside the function, so that `--help` is
fast (tests/whole/test_commands.py).
"""

from __future__ import annotations

import errno
import inspect
import logging
import math
import numbers
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast, get_args, get_origin, get_type_hints

from units.runtime.parser_errors import plain

SOME_REFUSED = 3  # exit code: the work is done, except for the inputs that were refused and listed
WRONG_CALL = 2  # exit code
INTERRUPTED = 130  # exit code: 128 + SIGINT
# AudioError, ManifestError, CodebookMismatch, ... are ValueErrors; a training that diverged is a FloatingPointError,
# whose message says which checkpoint is from before and what to change.
USER_ERRORS = (OSError, ValueError, ImportError, FloatingPointError)
# What the operating system says of a path, in words that follow the path.
PATH_ERRORS = {
    errno.ENOENT: "is not there",
    errno.EEXIST: "is there already and is no folder; name another place",
    errno.ENOTDIR: "cannot be: a part of that path is a file, not a folder; name another place",
    errno.EISDIR: "is a folder, where a file is needed; name another place",
    errno.EACCES: "may not be read or written by this user",
    errno.EROFS: "cannot be written: the file system is read-only",
    errno.ENOSPC: "cannot be written: the disk is full",
}
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


class Command(Protocol):
    """A function with its command line."""

    def __call__(self, *args: Any, **kwargs: Any) -> int | None: ...

    def cli(self, args: Sequence[str] | None = None) -> None:
        """Parse the command line (sys.argv if not given), run the function, and exit with its code if that is not 0."""


def check_range(
    option: str, value: float | None, least: float = -math.inf, most: float = math.inf, exclusive: bool = False
) -> None:
    """Check a number where it enters.

    Args:
        option: its name as a parameter or field, such as shard_size; the message says --shard-size.
        value: the number; None, for an option that is not given, passes.
        least, most: the range, of finite numbers. exclusive: `least` itself is not in it.

    Raises: ValueError with the value and the range; True and False are no numbers.
    """
    if value is None:
        return
    if not isinstance(value, numbers.Real):
        raise ValueError(f"--{option.replace('_', '-')} is {repr(value)[:60]}; it must be a number")
    above = value > least if exclusive else value >= least
    if above and value <= most and abs(value) < math.inf and not isinstance(value, bool):
        return
    lower = f"{'more than' if exclusive else 'at least'} {least}" if least > -math.inf else ""
    upper = f"at most {most}" if most < math.inf else ""
    raise ValueError(
        f"--{option.replace('_', '-')} is {value}; it must be {' and '.join(filter(None, (lower, upper))) or 'finite'}"
    )


def command(
    name: str, *, positional: bool = True, optional: Sequence[str] = (), flat: bool | Sequence[str] = False
) -> Callable[[Callable[..., int | None]], Command]:
    """Give a function a command line; its parameters become the options, its docstring the help.

    Args:
        name: what the user types, such as `units-fit`; every error begins with it.
        positional: parameters without a default are positional arguments.
        optional: parameters with a default that may also be positional, after the others: units-extract SOURCE [OUT].
        flat: names of parameters that are settings dataclasses, whose fields become options: --size, not
            --settings.size.
            True is the last parameter.
    """

    def decorate(function: Callable[..., int | None]) -> Command:
        def cli(args: Sequence[str] | None = None) -> None:
            given = list(sys.argv[1:] if args is None else args)
            run(name, lambda: _call(function, name, _with_optional(function, given, optional), positional, flat))

        decorated = cast(Any, function)
        decorated.cli = cli
        return decorated

    return decorate


def run(name: str, work: Callable[[], int | None]) -> None:
    """Do the work of a command, with the errors and exit codes of the table above."""
    if not os.environ.get("SPEECHGPT_VERBOSE"):
        _silence_libraries()
    try:
        code = work()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe, such as head, has stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except USER_ERRORS as error:
        if os.environ.get("SPEECHGPT_TRACEBACK"):
            raise
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(WRONG_CALL) from None
    if code:
        raise SystemExit(code)


def _silence_libraries() -> None:
    """Leave the libraries only their errors: no "Loading weights" bars, no advice, no DeepSpeed accelerator warning."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("DeepSpeed").addFilter(
        _is_error
    )  # DeepSpeed reads no variable, and sets its level when it is imported
    if "transformers" in sys.modules:  # it read the variables when it was imported
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, or its class if it has no message.

    One of the operating system about a path says so in words instead of `[Errno 17] File exists: 'out'`.
    """
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
        return f"{os.fspath(error.filename)} {PATH_ERRORS[error.errno]}"
    return plain(str(error)) or type(error).__name__


def _call(
    function: Callable[..., int | None], name: str, args: list[str], positional: bool, flat: bool | Sequence[str]
) -> int | None:
    """Parse arguments and call the function with them."""
    # where annotations are strings, jsonargparse runs the TYPE_CHECKING block of the module, which imports torch
    function.__annotations__ = get_type_hints(function)
    _check_config_files(args)
    parser = _parser(name, _summary(function))
    parameters = inspect.signature(function, eval_str=True).parameters
    flat_names = [list(parameters)[-1]] if flat is True else list(flat or ())
    parser.add_function_arguments(
        function, as_positional=positional, skip=set(flat_names), as_group=False, sub_configs=True
    )
    for action in parser._actions:  # a positional list takes every value up to the first option
        kind = getattr(parameters.get(action.dest), "annotation", None)
        if not action.option_strings and get_origin(kind) is list:
            action.nargs, action.metavar, action._typehint = "+", action.dest, get_args(kind)[0]
            args = _unpacked(args)
    for parameter in flat_names:
        parser.add_class_arguments(parameters[parameter].annotation, as_group=False)
    given = parser.instantiate(parser.parse_args(_spelled(args, parser)))
    values = {key: value for key, value in vars(given).items() if key != "config"}
    for parameter in flat_names:
        settings = parameters[parameter].annotation
        fields = [key for key in inspect.signature(settings).parameters if key in values]
        values[parameter] = settings(**{key: values.pop(key) for key in fields})
    return function(**values)


def _unpacked(args: list[str]) -> list[str]:
    """Arguments in which a list in brackets, such as '[a.jsonl, b.jsonl]', is written as several values.

    For commands with a positional list. The value of an option is left as it is.
    """
    found: list[str] = []
    for before, arg in zip(["", *args], args):
        is_of_option = before.startswith("--") and "=" not in before
        if is_of_option or not (arg.startswith("[") and arg.endswith("]")):
            found.append(arg)
        else:
            found += [str(value) for value in _yaml_list(arg)]
    return found


def _yaml_list(text: str) -> list[object]:
    """The values of a list as yaml writes it; the text itself if it is none."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return [text]
    return values if isinstance(values, list) else [text]


def _check_config_files(args: Sequence[str]) -> None:
    """Raises FileError for a file of --config that is not UTF-8 or not YAML; the parser would not name it."""
    for option, following in zip(args, [*args[1:], ""]):
        name, equals, value = option.partition("=")
        path = Path(value if equals else following)
        if name == "--config" and path.is_file():
            from units.runtime.files.yaml_files import read_yaml

            read_yaml(path)


def _parser(name: str, description: str) -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        """A parser whose errors are one line."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
            print(f"{name}: {plain(message)} ({name} --help lists the options)", file=sys.stderr)
            raise SystemExit(WRONG_CALL)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=name, description=description)
    parser.add_argument("--config", action="config", help="a yaml file with options")
    return parser


def _with_optional(function: Callable[..., object], args: list[str], optional: Sequence[str]) -> list[str]:
    """The arguments, with optional positional ones turned into options."""
    parameters = inspect.signature(function).parameters.values()
    required = sum(parameter.default is inspect.Parameter.empty for parameter in parameters)
    found, rest = args[:required], args[required:]
    if not all(_is_value(arg) for arg in found):
        return args
    for name in optional:
        if not rest or not _is_value(rest[0]):
            break
        found += [f"--{name}={rest.pop(0)}"]
    return found + rest


def _is_value(arg: str) -> bool:
    return arg == "-" or not arg.startswith("-")


def _summary(function: Callable[..., object]) -> str:
    """A docstring without the sections for its arguments and what follows."""
    return (inspect.getdoc(function) or "").split("\nArgs:")[0].strip()


def _spelled(args: list[str], parser: Any) -> list[str]:
    """Options in jsonargparse's spelling: --dry-run becomes --dry_run=true, and --no-durations --durations=false."""
    switches = {action.dest for action in parser._actions if getattr(action, "_typehint", None) is bool}
    found = []
    for i, arg in enumerate(args):
        if not arg.startswith("--") or arg == "--":
            found.append(arg)
            continue
        option, equals, value = arg[2:].partition("=")
        option = option.replace("-", "_")
        bare = not equals and (i + 1 == len(args) or args[i + 1].lower() not in ("true", "false"))
        if option in switches and bare:
            found.append(f"--{option}=true")
        elif option.startswith("no_") and option[3:] in switches and bare:
            found.append(f"--{option[3:]}=false")
        else:
            found.append(f"--{option}{equals}{value}")
    return found

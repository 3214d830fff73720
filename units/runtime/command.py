"""One manner for every command: `@command("units-fit")` above the function that does the work.

    @command("units-fit")
    def main(manifest: Path, out: Path, size: int = 100) -> int | None:
        '''Fit k-means on one layer's features. ...'''

    if __name__ == "__main__":
        main.cli()

The function stays callable as it is; `main.cli` is its command line (setup.py: `units-fit=units.encoder.fit:main.cli`).

| what happens | what the user sees | exit code |
|---|---|---|
| the function returns | its own output | 0, or the number that it returns |
| some inputs were refused | the function's report; it returns SOME_REFUSED | 3 |
| a wrong option, or an error that the user can mend | one line | 2 |
| Ctrl-C | nothing | 130 |

Errors that the user can mend are USER_ERRORS. With the environment variable SPEECHGPT_TRACEBACK=1 they show where they
were raised; with SPEECHGPT_VERBOSE=1 the libraries' own messages and progress bars are shown.

A module with a command imports torch, transformers and the like inside the function, so that `--help` costs no more than
this package's light parts (tests/whole/test_commands.py).
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, cast, get_type_hints

SOME_REFUSED = 3  # exit code: the work is done, but for the inputs that were refused and listed
WRONG_CALL = 2  # exit code
INTERRUPTED = 130  # exit code: 128 + SIGINT
USER_ERRORS = (OSError, ValueError, ImportError)  # AudioError, ManifestError, CodebookMismatch, ... are ValueErrors
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


def command(
    name: str, *, positional: bool = True, optional: Sequence[str] = (), flat: bool = False
) -> Callable[[Callable[..., int | None]], Command]:
    """Give a function a command line; its parameters become the options, its docstring the help.

    Args:
        name: what the user types, such as `units-fit`; it begins every error.
        positional: parameters without a default are given by place, not by name.
        optional: parameters with a default that may be given by place too, behind the others: units-extract SOURCE [OUT].
        flat: the last parameter is a settings dataclass whose fields are options of their own: --size, not --settings.size.
    """

    def decorate(function: Callable[..., int | None]) -> Command:
        def cli(args: Sequence[str] | None = None) -> None:
            given = list(sys.argv[1:] if args is None else args)
            run(name, lambda: _call(function, name, _placed(function, given, optional), positional, flat))

        decorated = cast(Any, function)
        decorated.cli = cli
        return decorated

    return decorate


def run(name: str, work: Callable[[], int | None]) -> None:
    """Do a command's work in the manner that this file's first lines describe."""
    if not os.environ.get("SPEECHGPT_VERBOSE"):
        _silence_libraries()
    try:
        code = work()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
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
    """An error's message without line breaks, or the error's kind where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def _call(function: Callable[..., int | None], name: str, args: list[str], positional: bool, flat: bool) -> int | None:
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        """An error of the command line is one line."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
            print(f"{name}: {' '.join(message.split())} ({name} --help lists the options)", file=sys.stderr)
            raise SystemExit(WRONG_CALL)

    # where annotations are strings, jsonargparse runs the TYPE_CHECKING block of the module, which imports torch
    function.__annotations__ = get_type_hints(function)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=name, description=_summary(function))
    parser.add_argument("--config", action="config", help="a yaml file with options")
    skip: set[str | int] = set()
    settings = None
    if flat:
        settings = list(inspect.signature(function, eval_str=True).parameters.values())[-1]
        skip = {settings.name}
    parser.add_function_arguments(function, as_positional=positional, skip=skip, as_group=False, sub_configs=True)
    if settings is not None:
        parser.add_class_arguments(settings.annotation, as_group=False)
    given = parser.instantiate(parser.parse_args(_spelled(args, parser)))
    values = {key: value for key, value in vars(given).items() if key != "config"}
    if settings is not None:
        fields = inspect.signature(settings.annotation).parameters
        own = {key: values.pop(key) for key in list(values) if key in fields}
        values[settings.name] = settings.annotation(**own)
    return function(**values)


def _placed(function: Callable[..., object], args: list[str], optional: Sequence[str]) -> list[str]:
    """Arguments that are given by place behind the required ones, as options."""
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
    """A docstring up to its arguments."""
    return (inspect.getdoc(function) or "").split("\nArgs:")[0].strip()


def _spelled(args: list[str], parser: Any) -> list[str]:
    """Options as jsonargparse takes them: --dry-run is --dry_run=true, and --no-durations is --durations=false."""
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

"""The one trainer of all stages.

    python -m stages.train stages/configs/toy/stage1.yaml                          # one process, CPU or one GPU
    python -m stages.train stages/configs/toy/stage1.yaml --training.max_steps 50  # any field can be overridden
    python -m stages.train stages/configs/7b/stage1.yaml --plan --gpus 8 --gpu A100-80G  # its needs; trains nothing
    torchrun --nproc_per_node 8 -m -- stages.train stages/configs/7b/stage1.yaml   # DeepSpeed, as the file says

Writes checkpoints while it runs, then a plain Hugging Face folder, `log.jsonl`, and last `speechgpt.json`. A killed
stage continues from its newest checkpoint; a finished one is not run again. Exit code 143: stopped by SIGTERM, after a
checkpoint.

This file is light, so that `--help` is quick; stages/stage.py does the work.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from stages.config import StageConfig, unknown_names
from stages.planning.cluster import Cluster
from units.runtime.command import WRONG_CALL, check_range, one_line, run
from units.runtime.files.yaml_files import read_yaml

if TYPE_CHECKING:
    from stages.system import System

NAME = "stages-train"


def train(config: StageConfig, system: System | None = None) -> Path:
    """Run one stage to its end.

    Args:
        system: what is trained; SpeechGPT if it is not given.

    Returns: its folder.
    Raises: SystemExit, after a checkpoint, if the process is stopped by SIGTERM; ValueError or FileNotFoundError if the
        config, the start or the data do not fit.
    """
    from stages.stage import train_stage

    return train_stage(config, system or _speechgpt())


def _speechgpt() -> System:
    from stages.unit_system.system import UNIT_SYSTEM

    return UNIT_SYSTEM


def main(
    argv: Sequence[str] | None = None,
    *,
    name: str = NAME,
    kind: type[StageConfig] = StageConfig,
    system: Callable[[], System] = _speechgpt,
) -> None:
    """Train one stage: `stages-train CONFIG [--field value ...] [--plan --gpus N --gpu KIND]`.

    Args:
        argv: the command line's arguments; sys.argv if not given.
        name: of the command, for messages. kind: of the config. system: returns the system. The command of another
            system is `cli` with these three.

    Raises: SystemExit with exit code 2 for a wrong command line or config; what `train` raises.
    """
    argv = [_spelled(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    file = Path(argv[0]) if argv and not argv[0].startswith("-") else None
    if file:
        argv[:1] = ["--config", str(file)]
    parser = _parser(name, kind)
    if wrong := _wrong_names(file, argv, kind):
        parser.error("; ".join(wrong))
    given = parser.instantiate(parser.parse_args(argv))
    fields, cluster = (
        {field.name: getattr(given, field.name) for field in dataclasses.fields(part)} for part in (kind, Cluster)
    )
    config = kind(**fields)
    if given.share is not None:
        check_range("share", given.share, 1)
        processes = config.sharing(given.share) or 1
        config.accumulation(processes)  # raises if it does not divide
        print(processes)
    elif given.plan:
        from stages.planning.page import print_plan

        gpus = Cluster(**cluster)  # first: the size may have to be downloaded
        print_plan(config, system().size(config, file), gpus)
    else:
        try:
            train(config, system())
        except FloatingPointError as error:  # training diverged: the message says what to change
            raise ValueError(str(error)) from error
        except SystemExit:  # stopped by SIGTERM
            _leave_group()
            raise
        _leave_group()


def _leave_group() -> None:
    """End the connections to the other processes. A process that exits with them, now and then aborts in gloo's
    threads (exit code -6), and the launcher then calls finished work failed."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def cli(args: Sequence[str] | None = None, *, name: str = NAME, **system: Any) -> None:
    """`main` as a command: a user's error is one line and exit code 2."""
    run(name, functools.partial(main, args, name=name, **system))


main.cli = cli  # type: ignore[attr-defined]  # as units.runtime.command gives every command


def _spelled(argument: str) -> str:
    """An option with underscores for its dashes, as the fields are written: --block-size is --block_size."""
    if not argument.startswith("--"):
        return argument
    option, equals, value = argument[2:].partition("=")
    return f"--{option.replace('-', '_')}{equals}{value}"


def _parser(name: str, kind: type[StageConfig]) -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    class Parser(ArgumentParser):
        """An error of the command line is one line."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
            print(f"{name}: {one_line(ValueError(message))} ({name} --help lists the options)", file=sys.stderr)
            raise SystemExit(WRONG_CALL)

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=name, description="Train one stage.")
    parser.add_argument("--config", action="config", help="the stage's file; it may also be given without --config")
    parser.add_argument("--plan", action="store_true", help="print what the stage needs, and train nothing")
    parser.add_argument(
        "--share",
        type=int,
        metavar="N",
        help="print how many of N processes can share the stage's batch, and train nothing",
    )
    parser.add_class_arguments(kind)
    parser.add_class_arguments(Cluster)
    return parser


def _wrong_names(file: Path | None, argv: list[str], kind: type[StageConfig]) -> list[str]:
    """One message for each unknown name in the stage's file and on the command line, with the nearest known name."""
    given: list[dict[str, Any]] = []
    if file and file.exists():
        given.append(read_yaml(file))
    ours = {"config", "plan", "share", "help", "print_config"} | {field.name for field in dataclasses.fields(Cluster)}
    for option in (argument[2:].split("=")[0].rstrip("+") for argument in argv if argument.startswith("--")):
        if option.split(".")[0] not in ours:
            nested: Any = None
            for part in reversed(option.split(".")):
                nested = {part: nested}
            given.append(nested)
    return [wrong for names in given for wrong in unknown_names(names, kind)]


if __name__ == "__main__":
    main.cli()  # type: ignore[attr-defined]

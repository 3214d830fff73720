"""Files that appear whole or not at all, and runs that resume only with the plan they were begun with."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def path_written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` if the block ends without an exception, and else deleted."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a random name, since the process ids of two machines that share a folder may agree
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def written_whole(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file to write. It appears under its name if the block ends without an exception, and else not at all."""
    with path_written_whole(path) as part, part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the name without its bytes


def check_begun(path: Path, plan: Mapping[str, object], old: Mapping[str, Callable[[], object]] = {}) -> None:
    """Compare the plan of a resumed run with the plan it was begun with; write it down if the run is new.

    Args:
        path: the file that holds the plan, in the run's folder.
        plan: everything that decides the result, as JSON holds it.
        old: for values that earlier releases wrote in another form, name -> a function that gives the old form.

    Raises: ValueError naming what differs, or that the file is damaged.
    """
    if not path.exists():
        with written_whole(path) as file:
            json.dump(plan, file)
        return
    begun = _read_plan(path)
    changed = [name for name in {**plan, **begun} if plan.get(name) != begun.get(name)]
    if changed := [name for name in changed if name not in old or old[name]() != begun.get(name)]:
        was, now = ({name: one.get(name) for name in changed} for one in (begun, plan))
        raise ValueError(
            f"{path.parent} was begun with other {', '.join(changed)}: {was}, this run has {now}. "
            f"Give another folder, or delete this one; {path.name} holds how it was begun."
        )


def _read_plan(path: Path) -> dict[str, object]:
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}); delete it and its folder, and begin again") from error
    if not isinstance(plan, dict):
        raise ValueError(f"{path} is not the plan of a run; delete it and its folder, and begin again")
    return plan

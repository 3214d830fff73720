"""Files that appear whole or not at all, and runs that resume only as they were begun."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def written_whole(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary neighbour of `path` and rename it to `path` when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")  # process ids of two machines may agree
    try:
        with part.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without its bytes
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def check_begun(path: Path, plan: dict) -> None:
    """A run goes on only as it was begun: leave its plan in the file `path`, or compare it with the one that lies there.

    Args:
        plan: whatever decides the result, as JSON has it.

    Raises: ValueError saying what differs.
    """
    if not path.exists():
        with written_whole(path) as file:
            json.dump(plan, file)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if other := [name for name in {**plan, **begun} if plan.get(name) != begun.get(name)]:
        was, now = ({name: told.get(name) for name in other} for told in (begun, plan))
        raise ValueError(
            f"{path.parent} was begun with other {', '.join(other)}: {was}, this run has {now}. "
            "Give another folder, or delete this one."
        )

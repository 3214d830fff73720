"""JSON lines that a command writes one after the other, and continues after it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from units.runtime.files.json_files import finished_lines


def drop_unfinished(output: Path) -> list[dict[str, Any]]:
    """The records of a file that a run began; a last line that was not finished is cut off.

    Raises: FileError naming the line if the file is damaged.
    """
    if not output.exists():
        return []
    found = finished_lines(output)
    content = output.read_bytes()
    if not content.endswith(b"\n"):
        with output.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)
    return found

"""Checkpoints of trainings that torch.save wrote: read whole, or refused in one line that names the file.

state = read_state(Path("training.pt"))
with state_of(Path("training.pt")):
    network.load_state_dict(state["weights"])
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from units.runtime.files.json_files import FileError, FileReason

REMEDY = "delete it, and the training begins again; or copy it again from where it is whole"


def read_state(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """The dict of tensors and plain values in a checkpoint.

    Args:
        device: where its tensors are placed.

    Raises:
        OSError: it cannot be read.
        FileError: it is damaged, cut, or of another kind.
    """
    import torch

    path.open("rb").close()  # an OSError names the file; all that follows is about its content
    try:
        check_checksums(path)
        state = torch.load(path, weights_only=True, map_location=device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a damaged file fails in any way that zip files and pickles can fail
        raise FileError(
            FileReason.DAMAGED, f"{path}: damaged, cut short, or no checkpoint ({_short(error)}); {REMEDY}"
        ) from error
    if not isinstance(state, dict):
        raise FileError(FileReason.DAMAGED, f"{path}: holds a {type(state).__name__}, no checkpoint; {REMEDY}")
    return state


def check_checksums(path: Path) -> None:
    """Check the parts of what torch.save wrote against the checksums in it: torch.load reads a flipped bit as it is.

    Raises: ValueError naming the part that differs; zipfile's errors. Files of torch before 1.6 have no checksums.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if part := archive.testzip():
                raise ValueError(f"its part {part} is not what was written")


@contextmanager
def state_of(path: Path) -> Iterator[None]:
    """Name the file in errors of the block, which takes over its state.

    Raises: FileError if the state lacks a part, or has another form.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        import torch

        if isinstance(error, (torch.OutOfMemoryError, FileError)):
            raise
        raise FileError(
            FileReason.DAMAGED, f"{path}: not the state of this training ({_short(error)}); {REMEDY}"
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

"""Models by the hub's names."""

from __future__ import annotations

import re
from pathlib import Path


def local_folder(folder: str | Path) -> Path:
    """The folder itself if it exists; otherwise a local copy of the hub's model of that name.

    Raises:
        FileNotFoundError: neither exists.
    """
    if Path(folder).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, ValueError) as error:  # huggingface_hub raises both: no such name, no network, not allowed
        raise FileNotFoundError(
            f"there is no folder {folder}, and the hub has no model of that name ({error})"
        ) from error

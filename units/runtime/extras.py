"""Libraries that only an extra installs, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any


def required(library: str, extra: str = "data") -> Any:
    """Import a library that an extra of setup.py installs.

    Raises:
        ImportError: in one line that states what to install.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ImportError(
            f"this needs the library {library}; install it with: pip install 'speechgpt-trainer[{extra}]' ({error})"
        ) from error

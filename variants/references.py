"""References from a model folder to the parts that were frozen in training: where they lie, and a fingerprint of them.

A 47 M adapter is saved, and not the LLM and the encoder that it was trained with. A part within the folder, or near it
in the same run, is named by a relative path, so that a run folder can be moved; another one by its absolute path or its
hub id.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechgpt.checkpoint import CheckpointError
from units.encoder.states import fingerprint
from units.runtime.hub import local_folder
from units.shipped import ENCODERS


class PartError(ValueError):
    """A part of a model is missing, or is not the one that the model was trained with."""


@dataclass(frozen=True)
class Reference:
    """A part of a model.

    path: relative to the model's folder, or absolute, a hub id, `starter` or `codec`. fingerprint: of its weights.
    """

    path: str
    fingerprint: str

    @classmethod
    def of(cls, part: str | Path, folder: Path) -> Reference:
        """Refer to a part from a model folder."""
        found = fingerprint(located(str(part)))
        if str(part) in ENCODERS or not Path(part).exists():
            return cls(str(part), found)
        absolute = Path(part).resolve()
        near = absolute.is_relative_to(folder.resolve().parent)
        return cls(os.path.relpath(absolute, folder.resolve()) if near else str(absolute), found)

    @classmethod
    def read(cls, extra: dict[str, Any], name: str) -> Reference:
        """The reference of a name in the `extra` of a `speechgpt.json`.

        Raises: CheckpointError if it has none.
        """
        try:
            return cls(str(extra[name]["path"]), str(extra[name]["fingerprint"]))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"speechgpt.json has no {name} with path and fingerprint; copy it again") from error

    def json(self) -> dict[str, str]:
        """As `speechgpt.json` holds it."""
        return {"path": self.path, "fingerprint": self.fingerprint}

    def find(self, folder: Path) -> Path:
        """The part's folder or file.

        Args:
            folder: the model folder that refers to it.

        Raises: PartError if it is not there, or has other weights.
        """
        inside = folder / self.path
        try:
            found = inside if inside.exists() else located(self.path)
            now = fingerprint(found)
        except FileNotFoundError as error:
            raise PartError(f"{folder} was trained with {self.path}, which cannot be found: {error}") from error
        if now != self.fingerprint:
            raise PartError(
                f"{found} is not what {folder} was trained with: its weights have the fingerprint {now}, not "
                f"{self.fingerprint}"
            )
        return found


def located(part: str) -> Path:
    """The folder or file of `starter` or `codec`, a path, or a hub id.

    Raises: FileNotFoundError if there is none.
    """
    found = ENCODERS.get(part) or local_folder(part)
    if not found.exists():
        raise FileNotFoundError(f"there is no {part}")
    return found

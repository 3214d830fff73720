"""`speechgpt.json`: what a checkpoint's plain Hugging Face files do not say. Written last, so its presence means complete."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechgpt.vocab import UnitVocab
from units.codebook import Codebook
from units.runtime.atomic import written_whole

FILE = "speechgpt.json"


@dataclass(frozen=True)
class CheckpointFacts:
    """codebook of the units it speaks; stage that made it; system prefix of its template; resolved config; versions."""

    codebook: Codebook
    stage: str
    first_unit_id: int
    prefix: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write `speechgpt.json` into a checkpoint folder."""
        with written_whole(Path(folder) / FILE) as file:
            json.dump(dataclasses.asdict(self), file, indent=1, default=str)

    @classmethod
    def load(cls, folder: str | Path) -> CheckpointFacts:
        """Read it.

        Raises: FileNotFoundError saying how such a folder is made; ValueError on unknown or missing fields.
        """
        path = Path(folder) / FILE
        if not path.exists():
            what = "is no folder" if not Path(folder).is_dir() else f"has no {FILE}"
            raise FileNotFoundError(
                f"{folder} {what}, so it is no finished SpeechGPT checkpoint. `make demo` makes one in runs/toy/model; "
                "stages/ trains your own."
            )
        try:
            record = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not the JSON of a checkpoint ({error}); copy or write it again") from error
        unknown = record.keys() - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"{path} has unknown fields {sorted(unknown)}; it was written by a newer version")
        missing = {"codebook", "stage", "first_unit_id"} - record.keys()
        if missing:
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; copy or write it again")
        return cls(**{**record, "codebook": Codebook.from_json(record["codebook"])})

    def check_vocab(self, vocab: UnitVocab, folder: str | Path) -> None:
        """Raise ValueError if the folder's tokenizer is not the one these facts were written with."""
        if (vocab.size, vocab.first_unit_id) != (self.codebook.size, self.first_unit_id):
            raise ValueError(
                f"the tokenizer in {folder} has {vocab.size} units from token {vocab.first_unit_id}, but {FILE} says "
                f"{self.codebook.size} from token {self.first_unit_id}; the two files are not of one checkpoint"
            )


def local_folder(folder: str | Path) -> Path:
    """A model folder as it is; the hub's copy where there is none, and the name is one that the hub could have.

    Raises: FileNotFoundError if neither has it.
    """
    if Path(folder).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        return Path(folder)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, ValueError) as error:  # huggingface_hub's are both: no such name, no network, not allowed
        raise FileNotFoundError(
            f"there is no folder {folder}, and the hub gave no model of that name ({error})"
        ) from error

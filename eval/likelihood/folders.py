"""Where the suites of pairs lie in a test set's folder."""

from __future__ import annotations

from pathlib import Path

from eval.likelihood.zerospeech import GOLD
from eval.test_set import NotMeasured

SPLITS = ("dev", "test")  # dev first: the test splits are much larger


def folder_of(root: Path, *names: str) -> Path:
    """The first of some folders below root that exists; root itself if it has one of the names.

    Raises:
        NotMeasured: there is none.
    """
    found = [root] if root.name in names else [root / name for name in names if (root / name).is_dir()]
    if not found or not found[0].is_dir():
        raise NotMeasured(f"{root} has no folder {' or '.join(names)}")
    return found[0]


def split_of(root: Path, *names: str) -> Path:
    """The folder with gold.csv: dev of one of some folders, else test; root itself if it is such a folder.

    Raises:
        NotMeasured: there is none.
    """
    if (root / GOLD).is_file() and root.parent.name in names:
        return root
    folder = folder_of(root, *names)
    for split in SPLITS:
        if (folder / split / GOLD).is_file():
            return folder / split
    raise NotMeasured(f"{folder} has neither dev/{GOLD} nor test/{GOLD}")

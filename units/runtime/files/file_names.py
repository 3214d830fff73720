"""File names for ids: every id gets files of its own inside one folder, and a plain id keeps its name.

    names = FileNames(Path("out"), [".wav"])
    names.path("q1")             # out/q1.wav
    names.path("speaker/q1")     # out/speaker/q1.wav
    names.path("a/")             # out/a~2270fa1ea7f1.wav: "a/" cannot be the name of a file
    names.write_list()           # out/file_names.jsonl: {"id": "a/", "name": "a~2270fa1ea7f1"}

Ids come from users and corpora, so they may hold anything: `..`, a line break, 300 letters, a name that Windows
reserves, or two ids that are one file where a file system does not tell upper from lower case.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import json_lines

LIST = "file_names.jsonl"  # the ids whose files have other names
LONGEST = 255 - len("..0123456789ab.part")  # bytes: file systems take 255, and a file begins as .NAME.HEX.part
LONGEST_PATH = 1024  # bytes of an id that is kept as a path; systems take 4096 with the folder before it
LETTERS = 40  # characters of an id that a changed name keeps, for people who look for it
FORBIDDEN = '<>:"\\|?*'  # in names of Windows
# Cc: control, Cf: format (invisible ones, byte order marks), Cs: halves of surrogate pairs, Zl and Zp: line separators
UNSAFE_CATEGORIES = {"Cc", "Cf", "Cs", "Zl", "Zp"}
RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3])\s*(\..*)?", re.IGNORECASE)
CHANGED = re.compile(r"~[0-9a-f]{12,}")  # the end of a changed name: a plain name has no such part


def plain_name(id: str, suffix: str = "") -> str:
    """The name of an id's file, without its suffix: the id if it is plain, else its letters and a hash of it.

    Different ids have different names. Where a file system takes two of them for one, as upper and lower case,
    FileNames changes the second.
    """
    return id if is_plain(id, suffix) else _changed(id)


def is_plain(id: str, suffix: str = "") -> bool:
    """Whether an id and a suffix are the path of a file below any folder, on any usual file system."""
    parts = id.split("/")
    named = [*parts[:-1], parts[-1] + suffix]
    return all(map(_is_plain_part, parts, named)) and len(id.encode()) <= LONGEST_PATH


def _is_plain_part(part: str, named: str) -> bool:
    """part: of an id. named: the folder or file that it becomes."""
    return (
        part not in ("", ".", "..")
        and not any(c in FORBIDDEN or unicodedata.category(c) in UNSAFE_CATEGORIES for c in part)
        and part == part.strip()
        and not named.endswith(".")
        and not RESERVED.fullmatch(named)
        and not CHANGED.search(part)
        and len(named.encode()) <= LONGEST
    )


def _changed(id: str, digits: int = 12) -> str:
    kept = (c if c.isalnum() or c == "-" or unicodedata.category(c)[0] == "M" else "_" for c in id[:LETTERS])
    digest = hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:digits]
    return f"{re.sub('_+', '_', ''.join(kept)).strip('_')}~{digest}"


class FileNames:
    """The files of ids in one folder. The same ids in the same order get the same files.

    Args:
        folder: where the files lie.
        suffixes: of the files that each id has, such as .wav.
        taken: names of other files in the folder.
        slash: what the slash of an id becomes: "/" gives folders, such as "_" one flat folder.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str], taken: Iterable[str] = (), slash: str = "/") -> None:
        self.folder, self.suffixes, self.slash = folder, list(suffixes), slash
        self.changed: dict[str, str] = {}  # id -> its files' name without suffix, where it is not the id
        self._names: dict[str, str] = {}  # id -> its files' name without suffix
        self._files = {_on_disk(name) for name in (*taken, LIST)}
        self._folders: set[str] = set()

    def path(self, id: str, suffix: str | None = None) -> Path:
        """A file of an id. suffix: one of `suffixes`; the first if not given."""
        if id not in self._names:
            self._names[id] = self._new(id)
        return self.folder / (self._names[id] + (suffix or self.suffixes[0]))

    def _new(self, id: str) -> str:
        """A name that no other id has, on any file system."""
        suffix, digits = max(self.suffixes, key=len), 12
        name = id.replace("/", self.slash) if is_plain(id, suffix) else _changed(id)
        while not self._is_free(name):
            name, digits = _changed(id, digits), digits + 4
        self._files |= {_on_disk(name + suffix) for suffix in self.suffixes}
        self._folders |= _folders(name)
        if name != id:
            self.changed[id] = name
        return name

    def _is_free(self, name: str) -> bool:
        files = {_on_disk(name + suffix) for suffix in self.suffixes}
        return not files & (self._files | self._folders) and not _folders(name) & self._files

    def write_list(self) -> None:
        """Write the list of changed names, if there are any."""
        if self.changed:
            with written_whole(self.folder / LIST) as file:
                file.writelines(json.dumps({"id": id, "name": name}) + "\n" for id, name in self.changed.items())


def read_list(folder: Path) -> dict[str, str]:
    """The changed names of a folder: id -> name without suffix. Inverse of FileNames.write_list; empty without it.

    Raises: FileError if the list is damaged.
    """
    path = folder / LIST
    return {row["id"]: row["name"] for _, row in json_lines(path, {"id": str, "name": str})} if path.exists() else {}


def _on_disk(name: str) -> str:
    """One text for all names that some file system takes for the same: no case, one form of each letter."""
    for _ in range(2):  # a folded letter may have a decomposition
        name = unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", name).upper().casefold())
    return name


def _folders(name: str) -> set[str]:
    return {_on_disk(str(parent)) for parent in PurePosixPath(name).parents if str(parent) != "."}

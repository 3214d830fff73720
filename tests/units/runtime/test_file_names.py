"""File names for ids: one file an id, inside the folder, on any file system; plain ids keep their names."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from units.runtime.files.file_names import LIST, FileNames, is_plain, plain_name, read_list

PLAIN = ["q1", "speaker/q1", "LJ001-0001", "84-121123-0000", "a b", "a.b", "v1.2/x", ".hidden", "你好", "naïve", "x~2"]
ODD = [
    *["", ".", "..", "/", "a/", "/a", "./a", "a/.", "a//b", "../a", "a/../b", "a/..", "a./b", " a", "a ", "a /b"],
    *["a\nb", "a\0b", "a\tb", "a\u2028b", "a\x85b", "\ufeffa", "a\u202eb", "\ud800", "a\udcff"],
    *["CON", "con", "aux.txt", "LPT1", "com¹", "nul /x", "a/prn", "a:b", "a\\b", "a|b", "a?b", "a*", '"a"', "<12>"],
    *["a" * 300, "好" * 90, "x/" * 3000 + "x", "a~0123456789ab", "a~0123456789ab/b"],
]
# pairs that are one file on some file system
TWINS = [
    *[("a", "A"), ("Dir/x", "dir/x"), ("straße", "STRASSE"), ("caf\u00e9", "cafe\u0301"), ("ﬁx", "fix")],
    *[("K", "\u212a"), ("a.wav/b", "a"), ("a", "a.wav/b"), ("A.WAV/b", "a"), ("file_names.jsonl/a", "a")],
]


def on_disk(path: str) -> str:
    """A strict file system: names are compared without case and in one normal form."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", path).casefold()).casefold()


def assert_own_files(folder: Path, ids: list[str]) -> None:
    """Every id has a file of its own below the folder, with a name that any file system takes."""
    names = FileNames(folder, [".wav"])
    paths = [names.path(id) for id in ids]
    files = [path.relative_to(folder).as_posix() for path in paths]
    folded = {on_disk(file) for file in files}
    assert len(folded) == len(set(ids))
    for id, file in zip(ids, files):
        assert file.endswith(".wav") and file == str(Path(file)) and ".." not in Path(file).parts
        assert all(0 < len(part.encode("utf-8")) <= 255 - 19 for part in file.split("/"))
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in file)
        assert not {on_disk(str(parent)) for parent in Path(file).parents} & folded
        assert (id in names.changed) == (file != f"{id}.wav") and names.path(id) == folder / file
    again = FileNames(folder, [".wav"])
    assert [again.path(id) for id in ids] == paths  # a resumed run finds its files


@pytest.mark.parametrize("id", PLAIN)
def test_plain_ids_keep_their_names(tmp_path: Path, id: str) -> None:
    names = FileNames(tmp_path, [".wav"])
    assert is_plain(id) and names.path(id) == tmp_path / f"{id}.wav" and not names.changed


@pytest.mark.parametrize("id", ODD)
def test_odd_ids_get_a_name_inside_the_folder_that_can_be_written(tmp_path: Path, id: str) -> None:
    names = FileNames(tmp_path / "out", [".wav"])
    path = names.path(id)
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert path.resolve().is_relative_to((tmp_path / "out").resolve()) and not is_plain(id)
    names.write_list()
    assert read_list(tmp_path / "out") == {id: str(path.relative_to(tmp_path / "out"))[:-4]}


def test_all_of_them_have_files_of_their_own(tmp_path: Path) -> None:
    for ids in ([*PLAIN, *ODD], [*ODD, *PLAIN], [*PLAIN, *(a for pair in TWINS for a in pair), *ODD]):
        assert_own_files(tmp_path, list(dict.fromkeys(ids)))


@pytest.mark.parametrize("first,second", TWINS)
def test_ids_that_a_file_system_takes_for_one_have_two_files(tmp_path: Path, first: str, second: str) -> None:
    assert_own_files(tmp_path, [first, second])
    assert_own_files(tmp_path, [second, first])


def test_a_changed_name_keeps_the_letters_of_its_id(tmp_path: Path) -> None:
    assert plain_name("你好/") == "你好~" + plain_name("你好/").partition("~")[2]
    assert plain_name("a/") != plain_name("a//") and plain_name("a/").startswith("a~")
    names = FileNames(tmp_path, [".wav"])
    assert names.path("take").name == "take.wav" and names.path("TAKE").name.startswith("TAKE~")


def test_several_files_an_id_and_names_that_are_taken(tmp_path: Path) -> None:
    names = FileNames(tmp_path, [".wav", ".png"], ["plan.json"])
    assert (names.path("a").name, names.path("a", ".png").name) == ("a.wav", "a.png")
    assert names.path("a.png/b").name != "b.wav" and names.path("plan.json/b").name != "b.wav"
    names.write_list()
    rows = [json.loads(line) for line in (tmp_path / LIST).read_text().split("\n")[:-1]]
    assert [row["id"] for row in rows] == ["a.png/b", "plan.json/b"]


def test_a_flat_folder(tmp_path: Path) -> None:
    names = FileNames(tmp_path, [".wav"], slash="_")
    ids = ["a/b", "a_b", "a/b/c", "a/b_c", "a_/b", "A/b"]
    paths = [names.path(id) for id in ids]
    assert paths[:3:2] == [tmp_path / "a_b.wav", tmp_path / "a_b_c.wav"] and len({str(p).lower() for p in paths}) == 6
    assert all(path.parent == tmp_path for path in paths)


def test_without_changed_names_there_is_no_list(tmp_path: Path) -> None:
    names = FileNames(tmp_path, [".wav"])
    names.path("a")
    names.write_list()
    assert not list(tmp_path.iterdir()) and read_list(tmp_path) == {}


@given(st.lists(st.text(st.characters(codec=None, exclude_categories=()), max_size=12), unique=True, max_size=12))
def test_any_ids_have_files_of_their_own(ids: list[str]) -> None:
    assert_own_files(Path("out"), ids)


@given(st.lists(st.text("aA./~ \u0301éÉ\u00e9e", max_size=5), unique=True, max_size=12))
def test_similar_ids_have_files_of_their_own(ids: list[str]) -> None:
    assert_own_files(Path("out"), ids)

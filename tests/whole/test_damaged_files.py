"""Files that are cut, damaged, foreign or not text: every reader gives its value, or one line that names the file.

Each reader of the table reads a good file, then the file cut at many places, with bytes flipped, and files of other
kinds. It may still read a damaged file, where the damage is not one that a reader can see; otherwise it raises the
project's ValueError, or an OSError, whose message names the file. No other exception, and never codec, JSON or numpy
errors without a name.
"""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from damaged_files import Reader, assert_read_or_refused, damaged
from eval_readers import EVAL_READERS
from made_results import made_result
from model_readers import MODEL_READERS
from published_readers import PUBLISHED_READERS
from stage_readers import STAGE_READERS
from text_readers import TEXT_READERS
from tiny_tone_corpus import write_unit_set
from tiny_vocoders import CODEBOOK, HIFIGAN, VOCOS, draw_units, loud_vocoder
from unit_readers import UNIT_READERS, save_vocoder_training
from variant_readers import VARIANT_READERS

from eval.report.content import read_exchanges
from eval.report.notes import notes
from eval.report.plots import read_logs
from eval.results import load_details, load_result, save_details, save_result
from eval.test_set import TestSet
from units import notation
from units.codebook import Codebook
from units.dataset.unit_set import UnitRecord, read_unit_set
from units.runtime.command import one_line
from units.runtime.files.atomic import check_begun
from units.runtime.files.file_names import LIST, FileNames, read_list
from units.runtime.files.saved_states import read_state
from units.runtime.refusals import RefusedError
from units.vocoder.unit_vocoder import UnitVocoder
from units.vocoder.vocode_lines import read_lines

PLAN = {"source": "abc", "size": 3}


def write_set(folder: Path) -> None:
    draw = random.Random(0)
    records = [UnitRecord(f"q{i}", draw_units(draw), 16000, "text", "ann") for i in range(40)]
    write_unit_set(folder, records)
    rows = [{"id": "x", "reason": "silent"}, {"where": "y", "reason": "too short: 3"}]
    (folder / "refused.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_set(folder: Path) -> object:
    found = read_unit_set(folder)
    return list(found), found.speakers(), found.rows(0), found.refused_by_reason(), list(found.tables(["units"]))


def write_corpus(folder: Path) -> None:
    rows = [{"question": "what is two", "answer": "four"}, {"turns": [["a", "b"], ["c", "d\u2028e"]]}]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    (folder / "chats.jsonl.gz").write_bytes(gzip.compress((folder / "chats.jsonl").read_bytes()))
    (folder / "corpus.json").write_text(json.dumps({"answer_voice": "a", "new_voice": "b", "seed": 0}))
    (folder / "text.txt").write_text("what is two? four.\n")
    (folder / "test.jsonl").write_text(json.dumps({"id": "q", "audio": "q.wav", "text": "what is two"}) + "\n")


def read_compressed(folder: Path) -> object:
    (folder / "chats.jsonl").unlink(missing_ok=True)
    return TestSet(folder).answers


def write_list(folder: Path) -> None:
    names = FileNames(folder, [".wav"])
    names.path("a/")
    names.path("b/")
    names.write_list()


def write_log(folder: Path) -> None:
    (folder / "stage1").mkdir()
    (folder / "stage1" / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')


def write_exchange(folder: Path) -> None:
    texts = dict.fromkeys(("family", "question", "gold", "transcript", "text", "heard"), "a")
    save_details(folder / "answers.jsonl", [{"id": "q1", **texts}, {"id": "q2", **texts, "question_wav": "q.wav"}])


def write_notes(folder: Path) -> None:
    (folder / "corpus").mkdir()
    write_corpus(folder / "corpus")
    (folder / "unit_encoder").mkdir()
    (folder / "unit_encoder" / "codebook.json").write_text(CODEBOOK.to_json())


def write_published(folder: Path) -> None:
    loud_vocoder(HIFIGAN).save_pretrained(folder)
    (folder / "model.safetensors").unlink()


def write_codebook(folder: Path) -> None:
    (folder / "c.json").write_text(CODEBOOK.to_json())


def begin(folder: Path) -> None:
    check_begun(folder / "plan.json", PLAN)


def write_details(folder: Path) -> None:
    save_details(folder / "a.jsonl", [{"a": 1.5}] * 3)


def read_vocoder(folder: Path) -> object:
    return UnitVocoder.from_pretrained(folder)


READERS = {
    "completion file of a unit set": Reader("unit_set.json", write_set, read_set),
    "shard": Reader("shard-00000.parquet", write_set, read_set),
    "list of refusals": Reader("refused.jsonl", write_set, read_set),
    "codebook": Reader("c.json", write_codebook, lambda f: Codebook.load(f / "c.json")),
    "vocoder config": Reader("config.json", loud_vocoder(VOCOS).save_pretrained, read_vocoder),
    "vocoder weights": Reader("model.safetensors", loud_vocoder(VOCOS).save_pretrained, read_vocoder),
    "hifigan config": Reader("config.json", loud_vocoder(HIFIGAN).save_pretrained, read_vocoder),
    "published config": Reader("config.json", write_published, read_vocoder),
    "published weights": Reader("vocoder.pt", write_published, read_vocoder),
    "plan": Reader("plan.json", begin, begin),
    "list of file names": Reader(LIST, write_list, read_list),
    "result": Reader("a.json", lambda f: save_result(f / "a.json", made_result()), lambda f: load_result(f / "a.json")),
    "details": Reader("a.jsonl", write_details, lambda f: load_details(f / "a.jsonl")),
    "kept answers": Reader("answers.jsonl", write_exchange, read_exchanges),
    "log": Reader("stage1/log.jsonl", write_log, read_logs),
    "facts of a corpus, for the notes": Reader("corpus/corpus.json", write_notes, lambda f: notes(f, {})),
    "codebook, for the notes": Reader("unit_encoder/codebook.json", write_notes, lambda f: notes(f, {})),
    "chats": Reader("chats.jsonl", write_corpus, lambda f: TestSet(f).answers),
    "compressed chats": Reader("chats.jsonl.gz", write_corpus, read_compressed),
    "facts of a corpus": Reader("corpus.json", write_corpus, lambda f: TestSet(f).facts),
    "text of a corpus": Reader("text.txt", write_corpus, lambda f: TestSet(f).text_lines()),
    **TEXT_READERS,
    **STAGE_READERS,
    **UNIT_READERS,
    **VARIANT_READERS,
    **MODEL_READERS,
    **EVAL_READERS,
    **PUBLISHED_READERS,
}  # fmt: skip


# a model is opened, or a folder of models is written, for each damaged file
MODELS = {*MODEL_READERS, *PUBLISHED_READERS, *(kind for kind in VARIANT_READERS if "of a published" in kind)}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in MODELS else ()) for kind in READERS]
)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path: Path, kind: str) -> None:
    reader = READERS[kind]
    (tmp_path / "good").mkdir()
    reader.write(tmp_path / "good")
    file = tmp_path / "good" / reader.file
    content = file.read_bytes()
    reader.read(tmp_path / "good")
    for bad in damaged(content, seed=2):
        file.write_bytes(bad)
        assert_read_or_refused(reader.read, tmp_path / "good", file)


OTHER_TYPES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    10**400,
    "a",
    "",
    [],
    ["a"],
    [[]],
    {},
    {"a": 1},
)
JSON_READERS = [kind for kind, reader in READERS.items() if reader.file.endswith(".json") and kind != "plan"]


def changed_rows(rows: list[dict]) -> list[list[dict]]:
    """Rows with each of their fields changed, fields in lists too."""
    found: list[list[dict]] = [[other, *rows] for other in OTHER_TYPES]
    for i, row in enumerate(rows):
        found += [[*rows[:i], changed, *rows[i + 1 :]] for changed in changed_fields(row)]
        for name, values in row.items():
            if isinstance(values, list) and values and isinstance(values[0], dict):
                found += [[{**row, name: changed}] for changed in changed_rows(values)]
            elif isinstance(values, list):
                found += [[{**row, name: [other, *values[1:]]}] for other in OTHER_TYPES]
    return found


def changed_fields(record: dict) -> list[dict]:
    """A record without each of its fields, and with another value in each of them, nested ones too."""
    found = []
    for name, value in record.items():
        found += [{key: rest for key, rest in record.items() if key != name}]
        found += [{**record, name: other} for other in OTHER_TYPES]
        if isinstance(value, dict):
            found += [{**record, name: inner} for inner in changed_fields(value)]
    return [*found, {**record, "another": 1}]


LARGE = {"published config", "hifigan config", *MODELS}  # hundreds of fields, and a network is built for each


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in LARGE else ()) for kind in JSON_READERS]
)
def test_any_field_may_be_missing_or_of_another_type(tmp_path: Path, kind: str) -> None:
    reader = READERS[kind]
    (tmp_path / "good").mkdir()
    reader.write(tmp_path / "good")
    file = tmp_path / "good" / reader.file
    content = json.loads(file.read_text())
    for changed in changed_rows(content) if isinstance(content, list) else changed_fields(content):
        file.write_text(json.dumps(changed))
        assert_read_or_refused(reader.read, tmp_path / "good", file)


def as_shard(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"codebook": CODEBOOK.to_json()})


NOT_UTF8 = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
FOREIGN_TABLES = {
    "another table": pa.table({"a": [1, 2]}),
    "no codebook": pa.table({"id": ["a"], "units": [[1]]}),
    "other types": as_shard(pa.table({"id": [1.5], "units": ["1 2"]})),
    "null units": as_shard(pa.table({"id": ["a"], "units": pa.array([None], pa.list_(pa.uint16()))})),
    "units beyond the codebook": as_shard(pa.table({"id": ["a"], "units": [[999]]})),
    "negative units": as_shard(pa.table({"id": ["a"], "units": [[-1]]})),
    "a codebook that is none": pa.table({"id": ["a"], "units": [[1]]}).replace_schema_metadata({"codebook": "{"}),
    "an id that is not UTF-8": as_shard(pa.table({"id": NOT_UTF8, "units": [[1]]})),
}


@pytest.mark.parametrize("kind", FOREIGN_TABLES)
def test_a_parquet_file_that_is_no_shard_is_named(tmp_path: Path, kind: str) -> None:
    write_set(tmp_path)
    pq.write_table(FOREIGN_TABLES[kind], tmp_path / "shard-00000.parquet")
    with pytest.raises((RefusedError, ValueError), match="shard-00000.parquet"):
        read_set(tmp_path)


def test_every_flipped_byte_of_the_units_of_a_shard_is_seen(tmp_path: Path) -> None:
    """Pages of a shard have checksums, so no damaged unit is read as another one."""
    write_set(tmp_path)
    good = list(read_unit_set(tmp_path))
    file = tmp_path / "shard-00000.parquet"
    content = file.read_bytes()
    for place in random.Random(0).sample(range(len(content)), 60):
        flipped = bytearray(content)
        flipped[place] ^= 16
        file.write_bytes(bytes(flipped))
        try:
            assert list(read_unit_set(tmp_path)) == good, place
        except ValueError as error:
            assert file.name in str(error)


@pytest.mark.parametrize("kind", ["of this torch", "before 1.6"])
def test_a_flipped_byte_of_a_checkpoint_is_seen(tmp_path: Path, kind: str) -> None:
    """torch.load itself reads a tensor whose bytes were changed; older files have no checksums to see it by."""
    save_vocoder_training(tmp_path)
    file = tmp_path / "training.pt"
    good = read_state(file)
    if kind == "before 1.6":
        torch.save(good, file, _use_new_zipfile_serialization=False)
        assert read_state(file)["made_of"] == good["made_of"]
        return
    content = file.read_bytes()
    refused = 0
    for place in random.Random(1).sample(range(len(content)), 150):
        flipped = bytearray(content)
        flipped[place] ^= 4
        file.write_bytes(bytes(flipped))
        try:
            found = read_state(file)
        except ValueError as error:
            refused += 1
            assert file.name in str(error)
        else:
            assert found["made_of"] == good["made_of"]
            torch.testing.assert_close(found["weights"], good["weights"], rtol=0, atol=0)
    assert refused > 50


def test_lines_of_units_are_vocoded_or_refused() -> None:
    for content in damaged(b"a|1 2 7\n3 4\n<sosp><5><6><eosp>\nb|<sosp><8><eosp>\n", seed=2):
        assert all(line.id or line.detail for line in read_lines(io.BytesIO(content), CODEBOOK))


def test_notation_is_read_or_refused() -> None:
    for content in damaged(b"<sosp><5><6><10><eosp>", seed=3):
        text = content.decode("utf-8", "replace")
        try:
            assert notation.read(text, 12) == notation.read(notation.spell(notation.read(text, 12)))
        except ValueError as error:
            assert one_line(error) and not isinstance(error, UnicodeError)

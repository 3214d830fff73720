"""Readers of manifests, alignments, corpora, text sets and conversation sets, for tests/whole/test_damaged_files.py.

Readers that refuse rows and go on have to name the file in each refusal.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from damaged_files import Reader
from tiny_conversations import CODEBOOK

from instruct_data.build.cross_modal import read_instructions
from instruct_data.build.records import read_conversations, write_conversations
from instruct_data.build.splits import Splits
from instruct_data.build.text_parts import chat_parts
from instruct_data.released.speech_instruct import read_released
from instruct_data.released.stage1_text import read_stage1
from instruct_data.text.chats import read_chats
from instruct_data.text.completion import CachedModel, EndpointModel
from instruct_data.text.published import FORMATS
from instruct_data.text.rewrite import PROMPTS, Prompts
from instruct_data.text.sources import read_source
from speechgpt.dialogue import Conversation, Message
from units.corpus.alignments import Alignments
from units.corpus.corpora import READERS as CORPORA
from units.corpus.manifest import read_manifest
from units.corpus.sources import list_source
from units.runtime.refusals import Refusals

CHATS = "".join(
    json.dumps(row, ensure_ascii=False) + "\n"
    for row in ({"question": "what is two", "answer": "vier \u00e4"}, {"turns": [["a", "b"], ["c", "d\u2028e"]]})
)
TREE = [
    {"message_tree_id": "t", "message_id": "a", "parent_id": None, "role": "prompter", "text": "who"},
    {"message_tree_id": "t", "message_id": "b", "parent_id": "a", "role": "assistant", "text": "me", "rank": 0},
]
PUBLISHED = {
    "plain": [json.loads(line) for line in CHATS.split("\n") if line],
    "alpaca": [{"instruction": "add", "input": "1 and 2", "output": "3"}],
    "moss": [{"plain_text": "[Human]: who<eoh> [MOSS]: me<eoa> "}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "who"}, {"from": "gpt", "value": "me"}]}],
    "dolly": [{"instruction": "add", "context": "1 and 2", "response": "3"}],
    "openassistant": TREE,
    "ultrachat": [{"data": ["who", "me"]}],
}
TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"
0
1.5
<exists>
1
"IntervalTier"
"phones"
0
1.5
2
0
0.5
"HH"
0.5
1.5
"AH0"
"""
LONG_TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "\u00e4"
        intervals [2]:
            xmin = 0.5
            xmax = 1.5
            text = "AH0"
"""
GIGASPEECH = {
    "audios": [
        {
            "path": "a.wav",
            "segments": [
                {"sid": "s", "text_tn": "HI", "subsets": ["{XL}"], "speaker": "N/A", "begin_time": 0, "end_time": 1}
            ],
        }
    ]
}
METADATA = {
    "fairseq": ("x.tsv", ".\na.wav\t5\n"),
    "librispeech": ("1/2/1-2.trans.txt", "1-2-3 HELLO\n"),
    "librilight": ("1/b/a.json", '{"speaker": "1", "voice_activity": [[0, 1.5]]}'),
    "gigaspeech": ("GigaSpeech.json", json.dumps(GIGASPEECH)),
    "commonvoice": ("validated.tsv", "client_id\tpath\tsentence\nx\ta.mp3\thello\n"),
    "ljspeech": ("metadata.csv", "a|b|c\n"),
    "vctk": ("txt/p1/p1_1.txt", "hello"),
    "folder": ("a.txt", "hello"),
}
AUDIO = ("1/2/1-2-3.flac", "1/b/a.flac", "clips/a.mp3", "wavs/a.wav", "wav48/p1/p1_1.wav", "a.wav")


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Writes a file of this content in a folder."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)

    return write


def refusing(read: Callable[[Path, Refusals], object], name: str) -> Callable[[Path], object]:
    """A reader that refuses rows; each refusal has to name the file."""

    def checked(folder: Path) -> object:
        refusals = Refusals(rows=[])
        found = read(folder / name, refusals)
        for row in refusals.rows or ():
            assert Path(name).name in f"{row.id} {row.detail} {row.audio}", row
        return found

    return checked


def text_set(name: str, form: str, content: str | bytes) -> Reader:
    """A file of a published format."""
    return Reader(name, written(name, content), refusing(lambda path, r: list(read_source(path, form, r)), name))


def write_parquet(folder: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"question": f"q{i}", "answer": "a" * i} for i in range(1, 600)]), folder / "a.parquet"
    )


def write_set(name: str) -> Callable[[Path], object]:
    turns = [(Message("human", ((1, 2, 7),)), Message("assistant", (f"hello {i}",))) for i in range(5)]
    chats = [Conversation(turn, "asr", f"c{i}") for i, turn in enumerate(turns)]
    return lambda folder: write_conversations(folder / name, chats, CODEBOOK, 0)


def write_corpus(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for audio in AUDIO:
            written(audio, "")(folder)
        written(*METADATA[name])(folder)

    return write


def read_corpus(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        source = folder / METADATA[name][0] if name == "fairseq" else folder
        return list(CORPORA[name].read(source, CORPORA[name].part or "", Refusals()))

    return read


def write_prompts(folder: Path) -> None:
    for name in ("question.txt", "answer.txt"):
        (folder / name).write_bytes((PROMPTS / name).read_bytes())


def write_cache(folder: Path) -> None:
    model = cache(folder)
    with model._database:
        model._database.execute("insert or replace into texts values (?, ?)", (b"key", "text"))
    model._database.close()


def cache(folder: Path) -> CachedModel:
    return CachedModel(EndpointModel("http://localhost:1/v1", "m"), folder / "a.cache")


def read_cache(folder: Path) -> object:
    model = cache(folder)
    try:
        return model._cached(b"key")
    finally:
        model._database.close()


MANIFEST = '{"id": "q1", "audio": "q1.wav", "start": 1, "text": "hi \u00e4\u2028b"}\n{"id": "q2", "audio": "q2.wav"}\n'
ALIGNMENT = "id\tstart\tend\tlabel\nq1\t0.0\t0.3\tHH\nq1\t0.3\t0.5\t\u00e4\n"
RELEASED = (
    json.dumps({"prefix": "You.", "plain_text": "[Human]: who<eoh> [SpeechGPT]: <sosp><1><2><eosp><eoa> "}) + "\n"
)

TEXT_READERS = {
    "manifest": Reader("a.jsonl", written("a.jsonl", MANIFEST), lambda f: read_manifest(f / "a.jsonl")),
    "manifest as a source": Reader("a.jsonl", written("a.jsonl", MANIFEST), lambda f: list_source(f / "a.jsonl")),
    "alignment": Reader("a.tsv", written("a.tsv", ALIGNMENT), lambda f: Alignments.open(f / "a.tsv").segments("q1")),
    "textgrid": Reader("q1.TextGrid", written("q1.TextGrid", TEXTGRID), lambda f: Alignments.open(f).segments("q1")),
    "long textgrid": Reader(
        "q1.TextGrid", written("q1.TextGrid", LONG_TEXTGRID), lambda f: Alignments.open(f).segments("q1")
    ),
    "textgrid in UTF-16": Reader(
        "q1.TextGrid",
        written("q1.TextGrid", LONG_TEXTGRID.encode("utf-16")),
        lambda f: Alignments.open(f).segments("q1"),
    ),
    **{f"corpus {name}": Reader(METADATA[name][0], write_corpus(name), read_corpus(name)) for name in METADATA},
    "text set": Reader("a.jsonl", written("a.jsonl", CHATS), refusing(lambda p, r: list(read_chats(p, r)), "a.jsonl")),
    "compressed text set": Reader(
        "a.jsonl.gz", written("a.jsonl.gz", CHATS), refusing(lambda p, r: list(read_chats(p, r)), "a.jsonl.gz")
    ),
    "parts of a text set": Reader(
        "a.jsonl.gz", written("a.jsonl.gz", CHATS), lambda f: chat_parts(f / "a.jsonl.gz", "chat", 0, Splits())
    ),
    **{f"{form} array": text_set("a.json", form, json.dumps(PUBLISHED[form], indent=1)) for form in FORMATS},
    **{f"{form} lines": text_set("b.jsonl", form, "\n".join(map(json.dumps, PUBLISHED[form]))) for form in FORMATS},
    "compressed array": text_set("a.json.gz", "alpaca", json.dumps(PUBLISHED["alpaca"] * 40)),
    "compressed lines": text_set("b.jsonl.gz", "plain", CHATS * 20),
    "parquet": Reader(
        "a.parquet", write_parquet, refusing(lambda path, r: list(read_source(path, "plain", r)), "a.parquet")
    ),
    "conversation set": Reader("c.jsonl", write_set("c.jsonl"), lambda f: list(read_conversations(f / "c.jsonl"))),
    "compressed conversation set": Reader(
        "c.jsonl.gz", write_set("c.jsonl.gz"), lambda f: list(read_conversations(f / "c.jsonl.gz"))
    ),
    "released set": Reader(
        "r.jsonl", written("r.jsonl", RELEASED), refusing(lambda p, r: list(read_released(p, 12, r)), "r.jsonl")
    ),
    "released text of stage 1": Reader(
        "s.txt",
        written("s.txt", "<sosp><1><2><eosp>\n"),
        refusing(lambda p, r: list(read_stage1(p, CODEBOOK, r)), "s.txt"),
    ),
    "task descriptions": Reader(
        "asr.txt", written("asr.txt", "write it\nhear it\n"), lambda f: read_instructions("asr", f)
    ),
    "prompt of questions": Reader("question.txt", write_prompts, Prompts.load),
    "prompt of answers": Reader("answer.txt", write_prompts, Prompts.load),
    "cache of completions": Reader("a.cache", write_cache, read_cache),
}

"""The cache of tokens: its key has all that decides them, and data that has not changed is not read again."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tiny_run import CODEBOOK, chats, make_run, opened, stage_config
from tokenizers import normalizers
from transformers import AutoTokenizer

from instruct_data.build.records import write_conversations
from speechgpt.dialogue import Conversation, Dialogue, Message
from speechgpt.vocab import new_words
from stages.config import Interleaving, Source
from stages.packing.tokens import DIGESTS, tokenise
from stages.unit_system import documents
from stages.unit_system import opened as opened_stage
from units.dataset.unit_set import read_unit_set

TEXT = "red blue green\nmy dog is blue\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run whose unit set is aligned with words."""
    run = make_run(tmp_path_factory.mktemp("run"))
    rows = [
        f"{record.id}\t{start:.2f}\t{start + 0.02:.2f}\t{word}\n"
        for record in read_unit_set(run / "units/train")
        for start, word in ((0.0, "red"), (0.02, "dog"))
    ]
    (run / "words.tsv").write_text("id\tstart\tend\tlabel\n" + "".join(rows))
    return run


@pytest.fixture
def widened(run):
    """The tokenizer after stage 1."""
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    tokenizer.add_tokens(new_words(CODEBOOK.size), special_tokens=True)
    return tokenizer


@pytest.fixture
def made(run, widened, tmp_path):
    """Tokenise a source, and count the caches there are."""

    def made(source: Source, tokenizer=widened) -> int:
        tokenise(source, opened(stage_config(run), tokenizer), tmp_path / "cache")
        return caches(tmp_path / "cache")

    return made


def caches(folder: Path) -> int:
    """How many tokenised sources a cache folder holds."""
    return sum(path.is_dir() for path in folder.iterdir())


def rewritten(path: Path, text: str, like: os.stat_result) -> None:
    """Other content with the same size and modification time."""
    path.write_text(text)
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def test_cache_follows_the_content_of_all_that_went_in(tmp_path, run, widened, monkeypatch) -> None:
    source, cache = Source(str(tmp_path / "chat.jsonl")), tmp_path / "cache"
    write_conversations(source.path, chats(6), CODEBOOK, 0)

    def made(tokenizer=widened, **changes) -> int:
        tokenise(source, opened(stage_config(run, **changes), tokenizer), cache)
        return caches(cache)

    assert made() == 1
    monkeypatch.setattr(opened_stage, "documents", None)  # the second time must not tokenise
    assert made() == 1
    assert made(block_size=32, too_long="cut", training={"max_steps": 9}) == 1  # these do not change tokens
    monkeypatch.undo()
    assert made(train_on_prompt=True) == 2
    assert made(prefix="Be kind.") == 3
    write_conversations(source.path, chats(6, seed=1), CODEBOOK, 0)
    assert made() == 4
    widened.add_tokens(["new"])
    assert made() == 5
    assert not list(cache.glob("*.part"))


def test_data_that_did_not_change_is_not_read_again(made, tmp_path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    facts = path.stat()
    assert made(source := Source(str(path))) == 1
    rewritten(path, TEXT.upper(), facts)  # a reader would notice
    assert made(source) == 1
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert made(source) == 2
    rewritten(path, TEXT + "one two\n", facts)
    assert made(source) == 3
    rewritten(path, TEXT, facts)  # as it was at first
    assert made(source) == 3


@pytest.mark.parametrize("broken", ["", "{", "[1]", "null", "7", '{"a": 1}', "\udcff"])
def test_digests_that_cannot_be_read_are_made_anew(made, tmp_path, broken: str) -> None:
    path, kept = tmp_path / "text.txt", tmp_path / "cache" / DIGESTS
    path.write_text(TEXT)
    assert made(source := Source(str(path))) == 1
    kept.write_bytes(broken.encode(errors="surrogateescape"))
    facts = path.stat()
    assert made(source) == 1  # the data, read again, is what it was
    rewritten(path, TEXT.upper(), facts)
    assert made(source) == 1  # and its digest is known again
    kept.unlink()
    assert made(source) == 2


def test_a_damaged_cache_is_made_again(run, widened, tmp_path, capsys) -> None:
    """No flipped bit, cut or missing file of a cache changes what is trained."""
    source, draw = Source("data/chat.jsonl.gz"), random.Random(0)

    def documents() -> list:
        found = tokenise(source, opened(stage_config(run), widened), tmp_path)
        return [found.task_names, *([part.tolist() for part in found.document(i)] for i in range(len(found)))]

    good = documents()
    capsys.readouterr()
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    for name in sorted(path.name for path in folder.iterdir()):
        content = (folder / name).read_bytes()
        flips = []
        for place in draw.sample(range(len(content)), 12):
            flipped = bytearray(content)
            flipped[place] ^= 1 << draw.randrange(8)
            flips.append(bytes(flipped))
        for bad in (*flips, content[:-1], content[: len(content) // 2], content + b"\0", None):
            if bad is None:
                (folder / name).unlink()
            else:
                (folder / name).write_bytes(bad)
            assert documents() == good
            assert (folder / name).read_bytes() == content
    assert "damaged" in capsys.readouterr().out


def test_digests_that_cannot_be_written_are_done_without(made, tmp_path) -> None:
    path, kept = tmp_path / "text.txt", tmp_path / "cache" / DIGESTS
    path.write_text(TEXT)
    kept.mkdir(parents=True)  # nothing can be renamed to it
    assert made(source := Source(str(path))) == 2  # caches, and the folder in the way
    facts = path.stat()
    assert made(source) == 2
    rewritten(path, TEXT.upper(), facts)
    assert made(source) == 3
    assert not list(kept.parent.glob(".*"))


def test_another_start_or_end_of_documents_is_another_cache(made, widened) -> None:
    source = Source("corpus/text.txt")
    assert made(source) == 1
    widened.bos_token = "red"
    assert made(source) == 2
    widened.eos_token = "blue"
    assert made(source) == 3


def test_another_way_to_cut_words_is_another_cache(made, widened) -> None:
    source = Source("corpus/text.txt")
    widened.pad_token = widened.eos_token
    assert made(source) == 1
    words = widened.get_vocab()
    widened(
        ["red", "my dog is blue"], padding=True, truncation=True, max_length=3
    )  # which changes the tokenizer's settings
    assert made(source) == 1
    widened.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert widened.get_vocab() == words
    assert made(source) == 2


def test_another_way_to_mix_is_another_cache_of_what_is_mixed(made, monkeypatch) -> None:
    plain, mixed = Source("units/train"), Source("units/train", interleave=Interleaving("words.tsv", span=1))
    assert (made(plain), made(mixed)) == (1, 2)
    monkeypatch.setattr(opened_stage, "INTERLEAVING_VERSION", 99)
    assert made(plain) == 2 and made(mixed) == 3
    monkeypatch.setattr(opened_stage, "DOCUMENTS_VERSION", 99)
    assert made(plain) == 4 and made(mixed) == 5


def test_a_template_that_gives_other_tokens_needs_another_version(widened) -> None:
    turns = (Message("human", ("red", (3, 7))), Message("assistant", ("one", "two", (4,))))
    ids = Dialogue(widened, "my").render(Conversation(turns, "chain")).ids
    spelled = "".join(widened.convert_ids_to_tokens(ids))
    for word, letter in (("\u2581", ""), ("<0x3A>", ":"), ("<0x3B>", ";")):
        spelled = spelled.replace(word, letter)
    expected = "<s>my[Human]:red<sosp><3><7><eosp><eoh>[SpeechGPT]:one;[ta]two;[ua]<sosp><4><eosp><eoa>"
    # caches hold these tokens: if the template changes, raise DOCUMENTS_VERSION in stages/unit_system/documents.py
    assert (documents.DOCUMENTS_VERSION, spelled) == (1, expected)

"""Documents to packed blocks: nothing lost, nothing leaking, nothing stale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_documents import flat, pack
from tiny_run import CODEBOOK, FOREIGN, chats, make_run, opened, stage_config, write_unit_set
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from instruct_data.build.records import write_conversations
from speechgpt.vocab import UnitVocab, new_words
from stages.config import Source
from stages.held_out import token_losses
from stages.packing.blocks import IGNORED, PackedBlocks, best_fit, load_blocks
from stages.packing.tokens import tokenise
from stages.unit_system.documents import _lines
from units.codebook import CodebookMismatch
from units.dataset.unit_set import read_unit_set
from units.runtime.files.json_files import FileError


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def widened(run):
    """The tokenizer after stage 1."""
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    tokenizer.add_tokens(new_words(CODEBOOK.size), special_tokens=True)
    return tokenizer


def members(blocks: PackedBlocks) -> list[list[tuple[int, int]]]:
    """(source, document) of every block."""
    return [blocks.documents_of(i) for i in range(len(blocks))]


def caches(folder: Path) -> list[Path]:
    """The tokenised sources in a cache folder."""
    return [path for path in folder.iterdir() if path.is_dir()]


@given(st.lists(st.integers(1, 50), max_size=80))
def test_best_fit_never_overfills_and_loses_nothing(lengths: list[int]) -> None:
    blocks = best_fit(lengths, 50)
    assert sorted(index for block in blocks for index in block) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in block) <= 50 for block in blocks)
    # no two blocks could have been one: the first document of the later one would have fitted the earlier one
    assert sum(sum(lengths[i] for i in block) <= 25 for block in blocks) <= 1


@settings(max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(0, 5))
def test_blocks_hold_whole_documents_and_padding_carries_no_loss(lengths: list[int], seed: int) -> None:
    documents = [[100 * i + j for j in range(n)] for i, n in enumerate(lengths, 1)]
    blocks = pack(flat(*documents), 12, 6, seed)
    assert len(blocks) == 6 and 0 < blocks.fill <= 1
    for block, chosen in zip(blocks, members(blocks), strict=True):
        whole = [documents[d] for _, d in chosen]
        used = sum(map(len, whole))
        assert block["input_ids"][:used].tolist() == sum(whole, [])
        assert block["position_ids"].tolist() == [p for d in whole for p in range(len(d))] + [*range(12 - used)]
        assert block["labels"].tolist() == [x for d in whole for x in [IGNORED, *d[1:]]] + [IGNORED] * (12 - used)


def test_a_token_stands_in_a_document_of_the_mean_length() -> None:
    blocks = pack(flat([1] * 10, [2] * 2, [3] * 4, [4] * 8), 12, 2)  # two full blocks
    assert blocks.fill == 1 and blocks.mean_length == (10 * 10 + 2 * 2 + 4 * 4 + 8 * 8) / 24


def test_order_is_a_function_of_the_seed() -> None:
    documents = flat(*([i] * (i % 7 + 1) for i in range(50)))
    one, again, other, short = (
        members(pack(documents, 16, n, seed)) for n, seed in ((30, 1), (30, 1), (30, 2), (10, 1))
    )
    assert one == again and one != other
    assert one[:10] == short  # more steps, same beginning


def test_each_document_comes_once_before_any_comes_twice() -> None:
    drawn = [d for block in members(pack(flat(*([i] * 4 for i in range(16))), 16, 4)) for _, d in block]
    assert sorted(drawn) == list(range(16))


def test_weights_say_how_often_a_source_comes() -> None:
    once, thrice = (flat(*([i] * 4 for i in range(20))) for _ in range(2))
    sources = [(once, np.arange(20), 1.0), (thrice, np.arange(20), 3.0)]
    blocks = PackedBlocks(sources, 16, 500, 0, 0)
    share = np.mean([source for block in members(blocks) for source, _ in block])
    assert share == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_equals_the_loss_of_documents_one_by_one(attention: str) -> None:
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 40, n).tolist() for n in (7, 20, 1, 13, 9, 5, 20, 3)]
    train = [(draw.random(len(d)) < 0.7).tolist() for d in documents]
    blocks = pack(flat(*documents, train=train), 24, len(best_fit([len(d) for d in documents], 24)))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, attn_implementation=attention, **shape)).double().eval()
    one_by_one = []
    for ids, mask in zip(documents, train, strict=True):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        losses = -scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:], dtype=torch.long)]
        one_by_one += losses[torch.tensor(mask[1:], dtype=torch.bool)].tolist()
    with torch.no_grad():
        packed = torch.cat([token_losses(model, block)[0] for block in blocks]).tolist()
        batch = {name: torch.stack([block[name] for block in blocks]) for name in blocks[0]}
        whole = model(**batch, use_cache=False).loss.item()  # the Trainer, too, turns the cache off
    assert sorted(packed) == pytest.approx(sorted(one_by_one), abs=1e-5)
    assert whole == pytest.approx(np.mean(one_by_one), abs=1e-5)


def test_a_unit_set_is_spelled_as_the_vocabulary_spells_it(run, widened) -> None:
    found = tokenise(Source("units/train"), opened(stage_config(run), widened), run / "cache")
    vocab = UnitVocab.from_words(widened.get_vocab())
    records = list(read_unit_set(run / "units/train"))
    assert len(found) == len(records) and found.task_names == ["units"]
    for i, record in enumerate(records):
        ids, train = found.document(i)
        assert ids.tolist() == [widened.bos_token_id, *vocab.encode(record.units.ids)] and train.all()


def test_tokens_are_mapped_and_a_damaged_cache_is_made_anew(tmp_path, run, widened) -> None:
    source = Source("data/chat.jsonl.gz")
    found = tokenise(source, opened(stage_config(run), widened), tmp_path)
    assert isinstance(found.tokens, np.memmap) and not found.tokens.flags.writeable
    (folder,) = caches(tmp_path)
    (folder / "tokens.bin").unlink()  # not in place: `found` has it mapped
    (folder / "tokens.bin").write_bytes(b"cut short")
    again = tokenise(source, opened(stage_config(run), widened), tmp_path)
    assert again.tokens.tolist() == found.tokens.tolist() and caches(tmp_path) == [folder]


def test_a_stage_without_sources_is_refused(run, widened) -> None:
    with pytest.raises(ValueError, match="data of stage1 is empty"):
        load_blocks(opened(stage_config(run, data=[]), widened), 4)


@pytest.mark.parametrize(("content", "line"), [(b"caf\xe9 noir\n", 1), (b"red\n\ncaf\xe9\n", 3)])
def test_text_that_is_not_utf8_names_its_line(run, tmp_path, content: bytes, line: int) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(FileError, match=f"a.txt:{line}: not UTF-8"):
        list(_lines(tmp_path / "a.txt", AutoTokenizer.from_pretrained(run / "text_llm")))


def test_text_is_the_same_in_every_kind_of_lines(run, tmp_path) -> None:
    tokenizer, found = AutoTokenizer.from_pretrained(run / "text_llm"), []
    for content in (b"red blue\ncat\n", b"\xef\xbb\xbfred blue\r\n\r\ncat", b"red blue\rcat\r"):
        (tmp_path / "a.txt").write_bytes(content)
        found.append([document.ids.tolist() for document in _lines(tmp_path / "a.txt", tokenizer)])
    assert len(found[0]) == 2 and found[0] == found[1] == found[2]


def test_equal_documents_are_in_one_split(run, widened, tmp_path) -> None:
    (tmp_path / "twice.txt").write_text((run / "corpus/text.txt").read_text() * 2)
    config = stage_config(run, data=[Source(str(tmp_path / "twice.txt"))], dev_documents=20)
    sides = load_blocks(opened(config, widened), 30)
    texts = [{tuple(part.sources[s].document(d)[0]) for block in members(part) for s, d in block} for part in sides]
    assert texts[0] and texts[1] and texts[0].isdisjoint(texts[1])


def test_long_documents_split_into_pieces_lose_nothing(run, widened, capsys) -> None:
    config = stage_config(run, block_size=8, too_long="split", dev_documents=0, data=[Source("units/train")])
    whole = tokenise(config.data[0], opened(config, widened), run / "cache")
    blocks, _ = load_blocks(opened(config, widened), 300)
    pieces = blocks.sources[0]
    assert int(pieces.lengths.max()) == 8 and int(pieces.lengths.sum()) == len(whole.tokens)
    joined = [token for i in range(len(pieces)) for token in pieces.document(i)[0].tolist()]
    assert joined == whole.tokens.tolist()
    assert f"{int((whole.lengths > 8).sum())} longer than a block (split)" in capsys.readouterr().out


def test_tasks_of_tokens(run, widened) -> None:
    config = stage_config(run, data=[Source("data/chat.jsonl.gz"), Source("units/train")])
    blocks, _ = load_blocks(opened(config, widened), 6)
    assert blocks.task_names == ["asr", "chat", "units"]
    vocab = UnitVocab.from_words(widened.get_vocab())
    for i in range(len(blocks)):
        tasks, ids, labels = blocks.tasks(i), blocks[i]["input_ids"], blocks[i]["labels"]
        is_unit = (ids >= vocab.first_unit_id) & (ids < vocab.first_unit_id + vocab.size)
        assert not (is_unit & (tasks == 1)).any()  # chats are text
        assert (tasks[labels >= 0] >= 0).all() and ((tasks == -1) <= (ids == widened.eos_token_id)).all()


@pytest.mark.parametrize("noise", ["unit_noise", "reply_noise"])
def test_noise_changes_units_of_prompts_or_of_replies_alone(run, widened, noise: str) -> None:
    data = [Source("data/chat.jsonl.gz"), Source("units/train")]
    clean, _ = load_blocks(opened(stage_config(run, data=data), widened), 120)
    noisy, dev = load_blocks(opened(stage_config(run, data=data, **{noise: 0.3}), widened), 120)
    vocab = UnitVocab.from_words(widened.get_vocab())
    places = changed = 0
    for i in range(len(clean)):
        before, after = clean[i], noisy[i]
        prompted = before["labels"] == IGNORED
        changeable = vocab.is_unit(before["input_ids"]) & (prompted if noise == "unit_noise" else ~prompted)
        other = before["input_ids"] != after["input_ids"]
        assert not (other & ~changeable).any()
        assert ((after["input_ids"][other] - vocab.first_unit_id) < vocab.size).all()
        assert all(torch.equal(before[name], after[name]) for name in ("labels", "position_ids"))
        assert torch.equal(noisy[i]["input_ids"], after["input_ids"])  # a block read twice is the same
        places, changed = places + int(changeable.sum()), changed + int(other.sum())
    assert places > 500 and changed / places == pytest.approx(0.3 * (1 - 1 / CODEBOOK.size), abs=0.05)
    plain = load_blocks(opened(stage_config(run, data=data), widened), 1)[1]
    assert all(torch.equal(dev[i]["input_ids"], plain[i]["input_ids"]) for i in range(len(plain)))


@pytest.mark.parametrize("too_long", ["skip", "cut"])
def test_documents_longer_than_a_block_are_counted(run, widened, capsys, too_long: str) -> None:
    config = stage_config(run, block_size=16, too_long=too_long, dev_documents=4, data=[Source("units/train")])
    tokenised = tokenise(config.data[0], opened(config, widened), run / "cache")
    long = int((tokenised.lengths > 16).sum())
    assert 0 < long < len(tokenised)
    blocks, dev = load_blocks(opened(config, widened), 8)
    assert f"{long} longer than a block ({too_long})" in capsys.readouterr().out
    chosen = {d for part in (blocks, dev) for block in members(part) for _, d in block}
    assert len(chosen) <= len(tokenised) - (long if too_long == "skip" else 0)
    assert max(int(blocks.sources[0].lengths[d]) for d in chosen) <= 16


def test_a_source_of_only_long_documents_is_refused(run, widened) -> None:
    with pytest.raises(ValueError, match="no document of at most 3 tokens.*raise block_size"):
        load_blocks(opened(stage_config(run, block_size=3), widened), 4)


def test_held_out_documents_are_never_trained_on(run, widened) -> None:
    blocks, dev = load_blocks(opened(stage_config(run, data=[Source("data/chat.jsonl.gz")]), widened), 20)
    trained, held = ({d for block in members(part) for _, d in block} for part in (blocks, dev))
    assert held and trained.isdisjoint(held)


@pytest.mark.parametrize("seed", [0, 1])
def test_each_held_out_document_stands_in_the_dev_blocks_once(run, widened, seed: int) -> None:
    data = [Source("data/chat.jsonl.gz"), Source("units/train"), Source("corpus/text.txt", hold_out=False)]
    config = stage_config(run, data=data, dev_documents=1000, block_size=128, seed=seed, unit_noise=0.5)
    blocks, dev = load_blocks(opened(config, widened), 300)
    seen = [document for block in members(dev) for document in block]
    trained = {document for block in members(blocks) for document in block}
    every = {(source, i) for source, tokenised in enumerate(dev.sources[:2]) for i in range(len(tokenised))}
    assert len(seen) == len(set(seen)) > 2 and {source for source, _ in seen} == {0, 1}
    assert set(seen) == every - trained  # 300 blocks hold all the rest


def test_dev_blocks_are_shuffled_by_the_seed_and_mixed_from_the_start() -> None:
    few, many = flat(*([i] * 8 for i in range(30))), flat(*([i] * 4 for i in range(120)))
    sources = [(few, np.arange(30), 1.0), (many, np.arange(0, 120, 2), 5.0), (many, np.arange(0), 1.0)]
    dev = [members(PackedBlocks(sources, 16, None, 0, seed)) for seed in (1, 1, 2)]
    assert dev[0] == dev[1] != dev[2] and len(dev[0]) == 15 + 15
    for blocks in dev:
        assert sorted(document for block in blocks for document in block) == [
            *((0, i) for i in range(30)),
            *((1, i) for i in range(0, 120, 2)),
        ]
        for first in range(1, 31):  # any beginning is half and half
            begun = [block[0][0] for block in blocks[:first]]
            assert abs(begun.count(0) - begun.count(1)) <= 1


def test_a_set_too_small_to_hold_anything_out_still_trains(tmp_path, run, widened) -> None:
    write_conversations(tmp_path / "few.jsonl", chats(2), CODEBOOK, 0)
    blocks, dev = load_blocks(opened(stage_config(run, data=[Source(str(tmp_path / "few.jsonl"))]), widened), 2)
    assert len(blocks) == 2 and len(dev) == 0


def test_tasks_choose_conversations(run, widened) -> None:
    config = stage_config(run)
    for tasks, expected in ((None, ["asr", "chat"]), (["asr"], ["asr"])):
        found = tokenise(Source("data/chat.jsonl.gz", tasks=tasks), opened(config, widened), run / "cache")
        assert sorted(found.task_names) == expected
    with pytest.raises(ValueError, match="no documents of the tasks"):
        tokenise(Source("data/chat.jsonl.gz", tasks=["tts"]), opened(config, widened), run / "cache")


def test_units_of_a_foreign_codebook_are_refused_by_name_even_when_cached(tmp_path, run, widened) -> None:
    config = stage_config(run)
    write_conversations(tmp_path / "foreign.jsonl", chats(6), FOREIGN, 0)
    for path in (write_unit_set(tmp_path / "foreign", FOREIGN), tmp_path / "foreign.jsonl"):
        source = Source(str(path))
        tokenise(source, opened(config, widened, FOREIGN), tmp_path / "cache")
        with pytest.raises(CodebookMismatch, match="'foreign'.*'tiny'"):
            tokenise(source, opened(config, widened), tmp_path / "cache")
        with pytest.raises(ValueError, match="'foreign', but the model has none"):
            tokenise(source, opened(config, widened, None), tmp_path / "cache")


def test_missing_data_is_named(run, widened) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist; it is named under data"):
        tokenise(Source("units/nowhere"), opened(stage_config(run), widened), run / "cache")

"""Speech and text by turns: no word lost, none said twice, and the same cuts whenever and wherever they are made."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import CODEBOOK, make_run, opened, stage_config
from transformers import AutoTokenizer

from speechgpt.vocab import UnitVocab, new_words
from stages.config import Interleaving, Source
from stages.packing.blocks import load_blocks
from stages.packing.tokens import tokenise
from stages.unit_system.interleave import interleaved, turns
from units.codebook import Units, reduce
from units.corpus.alignments import Segment
from units.dataset.unit_set import UnitRecord, write_unit_set

RATE = CODEBOOK.frame_rate
HOW = Interleaving("words.tsv", span=2.0, text_share=0.5)


def utterance(words: int, seed: int = 0, key: str = "u") -> tuple[UnitRecord, list[Segment]]:
    """An utterance of so many words, 5 frames each, 2 silent frames between them and 1 at both ends.

    Cuts are at 7, 14, ..
    """
    draw = random.Random(seed)
    frames = [draw.randrange(CODEBOOK.size) for _ in range(7 * words)]
    segments = [Segment((7 * i + 1) / RATE, (7 * i + 6) / RATE, f"w{i}") for i in range(words)]
    return UnitRecord(key, Units.from_frames(frames, CODEBOOK), len(frames) * 320), segments


@given(st.integers(1, 40), st.integers(0, 9), st.floats(1, 20), st.floats(0.05, 0.95))
def test_parts_hold_every_word_once_and_all_frames_around_the_spoken_ones(words, seed, span, share) -> None:
    record, segments = utterance(words, seed)
    how = Interleaving("", span=span, text_share=share)
    parts = interleaved(record, segments, how, seed)
    frames = record.units.frames()
    word = 0
    for i, part in enumerate(parts):
        if isinstance(part, str):
            said = part.split()
            assert said == [f"w{i}" for i in range(word, word + len(said))]
            word += len(said)
        else:
            end = int(parts[i + 1].split()[0][1:]) if i + 1 < len(parts) else words
            assert end > word
            assert part == reduce(frames[7 * word : 7 * end if end < words else None])[0]
            word = end
    assert word == words
    kinds = [isinstance(part, str) for part in parts]
    assert all(one != two for one, two in zip(kinds, kinds[1:]))


def test_shares_and_lengths_are_as_configured() -> None:
    how = Interleaving("", span=10.0, text_share=0.3)
    parts = list(turns(200_000, how, np.random.default_rng(0)))
    assert sum(end - start for written, start, end in parts if written) / 200_000 == pytest.approx(0.3, abs=0.01)
    assert 200_000 / len(parts) == pytest.approx(10.0, abs=0.2)


def test_cuts_follow_the_seed_and_the_id_alone() -> None:
    record, segments = utterance(30)
    assert interleaved(record, segments, HOW, 1) == interleaved(record, segments, HOW, 1)
    assert interleaved(record, segments, HOW, 1) != interleaved(record, segments, HOW, 2)
    other = UnitRecord("v", record.units, record.num_samples)
    assert interleaved(record, segments, HOW, 1) != interleaved(other, segments, HOW, 1)


def test_silence_and_unknown_words_are_never_written() -> None:
    record, segments = utterance(30)
    holes = [Segment(s.start, s.end, ("sil", "<unk>", s.label)[i % 3]) for i, s in enumerate(segments)]
    said = " ".join(part for part in interleaved(record, holes, HOW, 0) if isinstance(part, str)).split()
    assert said and set(said) <= {f"w{i}" for i in range(2, 30, 3)}


def test_alignments_of_another_recording_are_refused() -> None:
    record, segments = utterance(3)
    late = [*segments, Segment(segments[-1].end + 5, segments[-1].end + 6, "late")]
    with pytest.raises(ValueError, match="u: its last word ends at .* s, but its units at 0.42 s"):
        interleaved(record, late, HOW, 0)
    bare = UnitRecord("u", Units((1, 2), None, CODEBOOK), None)
    with pytest.raises(ValueError, match="no durations"):
        interleaved(bare, [], HOW, 0)


@pytest.mark.parametrize("wrong", [{"span": 0.5}, {"text_share": 0.0}, {"text_share": 1.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="--interleave.(span|text-share) is "):
        Interleaving("words.tsv", **wrong)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """A tiny run with a unit set of ten utterances, eight of them aligned, and the tokenizer after stage 1."""
    run = make_run(tmp_path_factory.mktemp("run"))
    tokenizer = AutoTokenizer.from_pretrained(run / "text_llm")
    tokenizer.add_tokens(new_words(CODEBOOK.size), special_tokens=True)
    said = [utterance(6, seed=i, key=f"u{i}") for i in range(10)]
    write_unit_set(run / "units/aligned", [record for record, _ in said], CODEBOOK)
    rows = [f"{r.id}\t{s.start:.4f}\t{s.end:.4f}\t{s.label}\n" for r, segments in said[:8] for s in segments]
    (run / "words.tsv").write_text("id\tstart\tend\tlabel\n" + "".join(rows))
    return run, tokenizer


def test_documents_of_an_aligned_set(aligned, capsys) -> None:
    run, tokenizer = aligned
    config = stage_config(run, data=[Source("units/aligned", interleave=HOW)], dev_documents=0, block_size=128)
    load_blocks(opened(config, tokenizer), 4)
    assert "'interleaved': 8, 'units': 2" in capsys.readouterr().out
    tokenised = tokenise(config.data[0], opened(config, tokenizer), run / "cache")
    vocab = UnitVocab.from_words(tokenizer.get_vocab())
    for i in range(10):
        ids, train = tokenised.document(i)
        record, segments = utterance(6, seed=i, key=f"u{i}")
        parts = interleaved(record, segments, HOW, config.seed) if i < 8 else [record.units.ids]
        units = [unit for part in parts if not isinstance(part, str) for unit in part]
        assert ids[0] == tokenizer.bos_token_id and train.all()
        assert vocab.decode(ids.tolist()) == units
        text = tokenizer.decode(
            [t for t in ids.tolist() if t not in vocab.special_ids.values() and not vocab.is_unit(t)],
            skip_special_tokens=True,
        )
        assert text.split() == " ".join(part for part in parts if isinstance(part, str)).split()


def test_utterances_with_misfitting_words_stay_units_and_are_reported(aligned, capsys) -> None:
    run, tokenizer = aligned
    grids = run / "grids"
    grids.mkdir()
    intervals = "".join(f'{i * 0.14:.2f} {i * 0.14 + 0.14:.2f} "w{i}"\n' for i in range(6))
    for name, end in (("u0", ""), ("u1", '0.84 9.0 "late"\n')):
        count = 6 + bool(end)
        (grids / f"{name}.TextGrid").write_text(
            f'"ooTextFile" "TextGrid" 0 9 <exists> 1\n"IntervalTier" "words" 0 9 {count}\n{intervals}{end}'
        )
    (grids / "u2.TextGrid").write_text((grids / "u0.TextGrid").read_text()[:90])  # cut off
    source = Source("units/aligned", interleave=Interleaving("grids", span=2.0, text_share=0.5))
    config = stage_config(run, data=[source])
    tokenised = tokenise(source, opened(config, tokenizer), run / "cache")
    printed = capsys.readouterr().out
    assert (
        f"1 utterances interleaved; 7 without words in {grids} and 2 with words that do not fit stay units" in printed
    )
    assert "the first: u1: its last word ends at 9.00 s" in printed
    names = [tokenised.task_names[task] for task in tokenised.tasks]
    assert names == ["interleaved"] + 9 * ["units"]
    (grids / "u0.TextGrid").unlink()
    with pytest.raises(
        ValueError, match="no utterance of .* 8 have no words in it, and the words of 2 do not fit; the first: u1"
    ):
        tokenise(source, opened(config, tokenizer), run / "cache")


def test_the_cache_follows_alignments_seed_and_settings(aligned) -> None:
    run, tokenizer = aligned

    def made(how: Interleaving | None = HOW, **changes) -> list[int]:
        config = stage_config(run, data=[Source("units/aligned", interleave=how)], **changes)
        return tokenise(config.data[0], opened(config, tokenizer), run / "cache").tokens.tolist()

    first = made()
    assert made() == first != made(seed=1)
    assert made(None) != first != made(Interleaving("words.tsv", span=4.0, text_share=0.5))
    lines = (run / "words.tsv").read_text()
    (run / "words.tsv").write_text(lines.replace("w1", "once"))
    assert made() != first
    (run / "words.tsv").write_text(lines)
    assert made() == first


def test_what_cannot_be_interleaved_is_refused(aligned) -> None:
    run, tokenizer = aligned
    for source, error in (
        (Source("corpus/text.txt", interleave=HOW), "interleave is for unit sets"),
        (Source("units/aligned", interleave=Interleaving("nowhere.tsv")), "nowhere.tsv does not exist"),
    ):
        config = stage_config(run, data=[source])
        with pytest.raises((ValueError, FileNotFoundError), match=error):
            tokenise(source, opened(config, tokenizer), run / "cache")

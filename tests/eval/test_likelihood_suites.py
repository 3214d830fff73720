"""Suites of pairs: each official rule on examples computed by hand, and folders that are not the suite."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path

import pytest

from eval.likelihood.flat_folders import SALMON_PARTS, salmon, stories
from eval.likelihood.folders import folder_of, split_of
from eval.likelihood.pairs import Pair, Suite, SuiteError, SuiteReason, outcome, suite_scores
from eval.likelihood.submitted import SubmittedScores
from eval.likelihood.zerospeech import lexical, prosody, read_submission, syntactic, write_submission
from eval.test_set import NotMeasured, TestSet
from speechgpt.answers import Likelihood

# filename, id, voice, frequency, word, phones, length, correct, and log p: two words, the first in two voices
LEXICAL = """filename,id,voice,frequency,word,phones,length,correct
a1,7,A,3,cat,k ae t,3,1
a2,7,A,,cit,k ih t,3,0
b1,7,B,3,cat,k ae t,3,1
b2,7,B,,cit,k ih t,3,0
c1,9,A,0,zyzzyva,z ih z,7,1
c2,9,A,,zozzyva,z oh z,7,0
"""
SYNTACTIC = """filename,id,voice,type,subtype,transcription,correct
s1,1,A,agreement,noun,this dog,1
s2,1,A,agreement,noun,these dog,0
s3,1,B,agreement,noun,this dog,1
s4,1,B,agreement,noun,these dog,0
s5,1,A,binding,x,he likes himself,1
s6,1,A,binding,x,he likes herself,0
s7,2,A,binding,x,she likes herself,1
s8,2,A,binding,x,she likes himself,0
"""
PROSODY = """filename,id,voice,type,subtype,correct
p1,1,A,lexical,x,1
p2,1,A,lexical,x,0
p3,1,A,protosyntax,x,1
p4,1,A,protosyntax,x,0
"""


def suite_folder(folder: Path, gold: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "gold.csv").write_text(gold)
    for line in gold.splitlines()[1:]:
        (folder / f"{line.split(',')[0]}.wav").write_bytes(b"")
    return folder


def scores(**found: tuple[float, int]) -> dict[str, Likelihood]:
    return {name: Likelihood(*one) for name, one in found.items()}


def test_a_tie_is_half() -> None:
    assert [outcome(*pair) for pair in ((-1.0, -2.0), (-2.0, -1.0), (-1.0, -1.0))] == [1.0, 0.0, 0.5]


def test_swuggy_averages_voices_then_ids(tmp_path: Path) -> None:
    suite = lexical(suite_folder(tmp_path / "lexical" / "dev", LEXICAL))
    # voice A of 7: -10 > -11, but -5 < -1.1 per unit; voice B of 7: a tie in both; 9: -4 > -5 in both
    found = scores(a1=(-10, 2), a2=(-11, 10), b1=(-6, 3), b2=(-6, 3), c1=(-4, 4), c2=(-5, 4))
    figures = suite_scores(suite, found)
    assert figures["sum"].value == pytest.approx(((1 + 0.5) / 2 + 1) / 2)  # 0.875
    assert figures["mean"].value == pytest.approx(((0 + 0.5) / 2 + 1) / 2)  # 0.625
    # the deviation of (0.75, 1) is 0.1768, over the root of 2
    assert figures["sum"].standard_error == pytest.approx(math.sqrt((0.125**2 * 2) / 1 / 2)) and figures["sum"].n == 2
    # fewer units: 2 < 10; a tie; a tie
    assert figures["shorter"].value == pytest.approx(((1 + 0.5) / 2 + 0.5) / 2) and "shorter/flat" not in figures
    assert figures["sum/flat"].value == pytest.approx(2.5 / 3) and figures["sum/flat"].n == 3  # slamkit's mean
    bands = {name: (score.value, score.n) for name, score in figures.items() if "frequency" in name or "length" in name}
    assert bands == {
        "frequency/1-5": (0.25, 1), "frequency/in_vocabulary": (0.25, 1), "length/3": (0.25, 1),
        "frequency/oov": (1.0, 1), "length/7": (1.0, 1),
        "sum/frequency/1-5": (0.75, 1), "sum/frequency/in_vocabulary": (0.75, 1), "sum/length/3": (0.75, 1),
        "sum/frequency/oov": (1.0, 1), "sum/length/7": (1.0, 1),
    }  # fmt: skip


@pytest.mark.parametrize(
    "frequency, band",
    [("0", "oov"), ("1", "1-5"), ("4", "1-5"), ("5", "6-20"), ("19", "6-20"), ("20", "21-100"), ("100", ">100")],
)
def test_the_bands_are_closed_below_and_open_above(tmp_path: Path, frequency: str, band: str) -> None:
    gold = LEXICAL.replace(",7,A,3,", f",7,A,{frequency},").replace(",7,B,3,", f",7,B,{frequency},")
    suite = lexical(suite_folder(tmp_path / "dev", gold))
    assert f"frequency/{band}" in suite.pairs[0].bands


def test_sblimp_averages_voices_then_pairs_and_has_types(tmp_path: Path) -> None:
    suite = syntactic(suite_folder(tmp_path / "syntactic" / "dev", SYNTACTIC))
    right = scores(s1=(-1, 1), s2=(-2, 1), s3=(-2, 1), s4=(-1, 1), s5=(-1, 1), s6=(-2, 1), s7=(-2, 1), s8=(-1, 1))
    figures = suite_scores(suite, right)
    # agreement/noun/1: (1 + 0) / 2; binding/x/1: 1; binding/x/2: 0. The same id of another type is another item.
    assert figures["mean"].value == pytest.approx((0.5 + 1 + 0) / 3) and figures["mean"].n == 3
    assert (figures["type/agreement"].value, figures["type/binding"].value) == (0.5, 0.5)
    assert figures["flat"].value == 0.5 and figures["flat"].n == 4


def test_prosaudit_averages_by_type_and_id(tmp_path: Path) -> None:
    suite = prosody(suite_folder(tmp_path / "english" / "dev", PROSODY))
    figures = suite_scores(suite, scores(p1=(-1, 1), p2=(-2, 1), p3=(-1, 1), p4=(-1, 1)))
    assert figures["mean"].value == 0.75 and suite.submission == "english_dev.txt" and "flat" not in figures
    without = PROSODY.replace(",x,", ",").replace("subtype,", "")
    assert len(prosody(suite_folder(tmp_path / "plain" / "dev", without)).pairs) == 2


def test_stories_take_turns_and_numbers_sort_as_numbers(tmp_path: Path) -> None:
    names = [f"{number}_{kind}.wav" for number in (2, 10) for kind in ("a_correct", "b_incorrect")]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    suite = stories(tmp_path, "sstorycloze")
    pairs = [(pair.right, pair.wrong) for pair in suite.pairs]
    assert pairs == [("2_a_correct", "2_b_incorrect"), ("10_a_correct", "10_b_incorrect")]
    # 2: -8 > -9, but -4 < -3 per unit; 10: a tie in both
    found = {
        "2_a_correct": Likelihood(-8, 2), "2_b_incorrect": Likelihood(-9, 3),
        "10_a_correct": Likelihood(-6, 3), "10_b_incorrect": Likelihood(-6, 3),
    }  # fmt: skip
    figures = suite_scores(suite, found)
    assert (figures["sum"].value, figures["mean"].value, figures["mean"].n) == (0.75, 0.25, 2)
    assert "flat" not in figures and suite.submission == ""
    (tmp_path / "11_a_correct.wav").write_bytes(b"")
    with pytest.raises(SuiteError, match="has 5 wavs, the last one is 11_a_correct.wav"):
        stories(tmp_path, "sstorycloze")
    (tmp_path / "1_z.wav").write_bytes(b"")
    with pytest.raises(SuiteError, match="1_z.wav comes before 2_a_correct.wav"):
        stories(tmp_path, "sstorycloze")


def salmon_folder(folder: Path) -> Path:
    for part in SALMON_PARTS:
        (folder / part).mkdir(parents=True)
        for number in (0, 1):
            for name in ("0_right", "1_wrong"):
                (folder / part / f"sample_{number}_{name}.wav").write_bytes(b"")
    return folder


def test_salmon_takes_the_first_name_of_a_sample(tmp_path: Path) -> None:
    suite = salmon(salmon_folder(tmp_path / "salmon_benchmark"))
    won = {"sample_0_0_right": -1.0, "sample_0_1_wrong": -2.0, "sample_1_0_right": -2.0, "sample_1_1_wrong": -2.0}
    figures = suite_scores(suite, {name: Likelihood(won[name.split("/")[1]], 1) for name in suite.files})
    assert figures["mean"].value == 0.75 and figures["mean"].n == 16
    assert {figures[f"part/{part}"].value for part in SALMON_PARTS} == {0.75}
    (tmp_path / "salmon_benchmark" / "bg_alignment" / "sample_1_1_wrong.wav").unlink()
    with pytest.raises(SuiteError, match="sample_1_0_right.wav is alone") as error:
        salmon(tmp_path / "salmon_benchmark")
    assert error.value.reason == SuiteReason.MISSING_AUDIO
    with pytest.raises(SuiteError, match="lacks the parts bg_alignment"):
        salmon(tmp_path)


@pytest.mark.parametrize(
    "wrong, reason, named",
    [
        (LEXICAL.replace("frequency", "freq"), SuiteReason.WRONG_HEADER, "gold.csv lacks the columns frequency"),
        (LEXICAL.replace("3,1\na2", "3,yes\na2"), SuiteReason.WRONG_ROW, "gold.csv:2: "),
        (LEXICAL.replace("a2,7", "a1,7"), SuiteReason.WRONG_ROW, "gold.csv:3: "),
        (
            LEXICAL.replace("k ih t,3,0\nb1", "k ih t,3,1\nb1"),
            SuiteReason.WRONG_ROW,
            "2 right and 0 wrong rows for A/7",
        ),
        (LEXICAL.replace(",3,cat", ",often,cat"), SuiteReason.WRONG_ROW, "frequency of a1 is 'often'"),
        (LEXICAL.replace("a1,7,A", "a1,7"), SuiteReason.WRONG_ROW, "gold.csv:2: "),
        ("", SuiteReason.WRONG_HEADER, "gold.csv lacks the columns filename"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, wrong: str, reason: SuiteReason, named: str) -> None:
    with pytest.raises(SuiteError) as error:
        lexical(suite_folder(tmp_path / "dev", wrong))
    assert error.value.reason == reason and named in str(error.value) and "\n" not in str(error.value)


def test_a_missing_wav_is_named(tmp_path: Path) -> None:
    folder = suite_folder(tmp_path / "dev", LEXICAL)
    (folder / "b2.wav").unlink()
    with pytest.raises(SuiteError, match="1 of 6 wavs are missing, the first one is .*b2.wav"):
        lexical(folder)


def test_a_table_in_another_order_is_refused(tmp_path: Path) -> None:
    header, *rows = SYNTACTIC.splitlines()
    swapped = "\n".join([header, *rows[2:4], *rows[:2], *rows[4:], ""])
    assert len(syntactic(suite_folder(tmp_path / "whole_pairs", swapped)).pairs) == 4  # pairs stay together
    swapped = "\n".join([header, rows[2], rows[1], rows[0], *rows[3:], ""])
    with pytest.raises(SuiteError, match="its order pairs s3 with s2") as error:
        syntactic(suite_folder(tmp_path / "broken_pairs", swapped))
    assert error.value.reason == SuiteReason.WRONG_ORDER


def test_a_submission_is_read_back_and_faults_are_named(tmp_path: Path) -> None:
    suite = lexical(suite_folder(tmp_path / "lexical" / "dev", LEXICAL))
    found = scores(a1=(-10, 2), a2=(-11, 10), b1=(-6.5, 3), b2=(-6, 3), c1=(-4, 4), c2=(-5, 4))
    path = write_submission(tmp_path / "sub" / suite.submission, suite, found, "mean")
    assert path.read_text().splitlines()[:2] == ["a1 -5.0", "a2 -1.1"] and path.parts[-2:] == ("lexical", "dev.txt")
    again = read_submission(path, suite)
    assert {name: one.log_probability for name, one in again.items()} == {n: one.mean for n, one in found.items()}
    model = SubmittedScores(tmp_path / "sub")
    mean = suite_scores(suite, model.scores(suite))["mean"].value
    assert mean == suite_scores(suite, found)["mean"].value
    with pytest.raises(NotMeasured, match="syntactic/dev.txt"):
        model.scores(Suite("sblimp", {}, [], "syntactic/dev.txt"))
    lines = path.read_text().splitlines()
    for text, named in (
        ([lines[1], lines[0], *lines[2:]], ":1: a2 stands where a1 is expected"),
        (lines[:-1], "lacks 1 of 6 scores, such as c2"),
        ([*lines, lines[0]], ":7: a1 stands there twice"),
        (["x -1", *lines], ":1: x is not in the suite swuggy"),
        (["a1 much", *lines[1:]], ":1: 'a1 much' is not"),
        (["a1 nan", *lines[1:]], ":1: 'a1 nan' is not"),
    ):
        path.write_text("\n".join(text) + "\n")
        with pytest.raises(SuiteError) as error:
            read_submission(path, suite)
        assert named in str(error.value)


def test_a_random_model_scores_a_half_and_its_stated_error_is_true() -> None:
    pairs = [Pair(f"{i}{v}r", f"{i}{v}w", i) for i in range(150) for v in "ABC"]
    suite = Suite("made", {}, pairs)
    names = [name for pair in pairs for name in (pair.right, pair.wrong)]
    found = []
    for seed in range(100):
        draw = random.Random(seed)
        found.append(suite_scores(suite, {name: Likelihood(-draw.random(), 1) for name in names})["mean"])
    values = [score.value for score in found]
    assert abs(statistics.mean(values) - 0.5) < 0.01
    assert statistics.mean(score.standard_error for score in found) == pytest.approx(statistics.stdev(values), rel=0.25)


def test_a_limit_keeps_whole_items(tmp_path: Path) -> None:
    suite = lexical(suite_folder(tmp_path / "dev", LEXICAL)).limited(1)
    assert [pair.item for pair in suite.pairs] == ["7", "7"] and list(suite.files) == ["a1", "a2", "b1", "b2"]


def test_pairs_without_a_score_are_left_out() -> None:
    suite = Suite("made", {}, [Pair("a", "b", 1), Pair("c", "d", 2)])
    figures = suite_scores(suite, scores(a=(-1, 1), b=(-2, 1), c=(-1, 1)))
    assert (figures["mean"].value, figures["mean"].n, figures["mean"].standard_error) == (1.0, 1, None)
    assert suite_scores(suite, {})["mean"].value is None


def test_a_test_sets_name_changes_with_its_suites(tmp_path: Path) -> None:
    names = [TestSet(tmp_path).name]
    dev = suite_folder(tmp_path / "lexical" / "dev", LEXICAL)
    names.append(TestSet(tmp_path).name)
    (dev / "gold.csv").write_text(LEXICAL.replace("cat", "cot"))
    names.append(TestSet(tmp_path).name)
    for name in ("0_a", "0_b"):
        (tmp_path / "sSC").mkdir(exist_ok=True)
        (tmp_path / "sSC" / f"{name}.wav").write_bytes(b"")
        names.append(TestSet(tmp_path).name)
    assert len(set(names)) == 5 == len(names) and TestSet(tmp_path).name == names[-1]


def test_suites_are_found_by_their_folders(tmp_path: Path) -> None:
    dev = suite_folder(tmp_path / "lexical" / "dev", LEXICAL)
    test = suite_folder(tmp_path / "lexical" / "test", LEXICAL)
    assert split_of(tmp_path, "lexical") == split_of(tmp_path / "lexical", "lexical") == split_of(dev, "lexical") == dev
    assert split_of(test, "lexical") == test
    with pytest.raises(NotMeasured, match="no folder syntactic"):
        split_of(tmp_path, "syntactic")
    with pytest.raises(NotMeasured, match="no folder sStoryCloze or sSC"):
        folder_of(tmp_path, "sStoryCloze", "sSC")

"""ZeroSpeech's suites as they lie on disk: sWUGGY (lexical), sBLIMP (syntactic) and prosAudit.

    lexical/dev/gold.csv    filename,id,voice,frequency,word,phones,length,correct     and the wavs beside it
    syntactic/dev/gold.csv  filename,id,voice,type,subtype,transcription,correct
    english/dev/gold.csv    filename,id,voice,type,subtype,...,correct                 (prosAudit)

Source: zerospeech/benchmarks, tasks/lm/{lexical,syntactic,prosody}.py. There, rows of sWUGGY are paired by voice and
id; rows of the others by their order in gold.csv, the n-th right one with the n-th wrong one. Here a pair has to agree
in voice, type, subtype and id as well, so that a file in another order is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.likelihood.pairs import Pair, Suite, SuiteError, SuiteReason, check_files, value_of
from speechgpt.answers import Likelihood
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import read_text
from units.runtime.files.tables import read_table

GOLD = "gold.csv"
COLUMNS = {
    "lexical": ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct"),
    "syntactic": ("filename", "id", "voice", "type", "subtype", "transcription", "correct"),
    "prosody": ("filename", "id", "voice", "type", "subtype", "correct"),
}
NEEDED = {
    "lexical": ("filename", "id", "voice", "frequency", "length", "correct"),
    "syntactic": ("filename", "id", "voice", "type", "subtype", "correct"),
    "prosody": ("filename", "id", "voice", "type", "correct"),
}
# Occurrences in LibriSpeech: the lower bound is inside, the upper one outside.
BANDS = (("oov", 0, 1), ("1-5", 1, 5), ("6-20", 5, 20), ("21-100", 20, 100), (">100", 100, float("inf")))


def lexical(folder: Path) -> Suite:
    """sWUGGY: a word and a non-word of the same voice and id.

    Raises:
        SuiteError: the folder is not that suite.
    """
    rows = _rows(folder, "lexical")
    _, found = _split(rows, folder, lambda row: (row["voice"], row["id"]))
    pairs = []
    for (_, id), right, wrong in found:
        word = rows[right]
        frequency = _number(word["frequency"] or "0", "frequency", right, folder)
        bands = [f"frequency/{name}" for name, low, high in BANDS if low <= frequency < high]
        bands += ["frequency/in_vocabulary"] if frequency >= 1 else []
        pairs.append(Pair(right, wrong, id, (*bands, f"length/{word['length']}")))
    return _suite("swuggy", folder, rows, pairs, f"lexical/{folder.name}.txt")


def syntactic(folder: Path) -> Suite:
    """sBLIMP: a grammatical sentence and an ungrammatical one of the same voice, type, subtype and id.

    Raises:
        SuiteError: the folder is not that suite.
    """
    return _by_type("sblimp", "syntactic", folder, f"syntactic/{folder.name}.txt")


def prosody(folder: Path) -> Suite:
    """prosAudit: a pause between two words or phrases, and one within.

    Raises:
        SuiteError: the folder is not that suite.
    """
    return _by_type("prosaudit", "prosody", folder, f"{folder.parent.name}_{folder.name}.txt")


def _by_type(name: str, kind: str, folder: Path, submission: str) -> Suite:
    rows = _rows(folder, kind)
    ordered, found = _split(rows, folder, lambda row: (row["voice"], row["type"], row.get("subtype", ""), row["id"]))
    _check_order(ordered, rows, folder)
    subtyped = kind == "syntactic"
    pairs = []
    for (_, type, subtype, id), right, wrong in found:
        item = (type, subtype, id) if subtyped else (type, id)
        pairs.append(Pair(right, wrong, item, (f"type/{type}",)))
    return _suite(name, folder, rows, pairs, submission)


def _suite(name: str, folder: Path, rows: Mapping[str, dict], pairs: list[Pair], submission: str) -> Suite:
    files = {stem: folder / f"{stem}.wav" for stem in rows}
    check_files(files, folder / GOLD)
    items = {pair.item for pair in pairs}
    return Suite(name, files, pairs, submission, flat=len(items) == len(pairs))


def _rows(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The rows of gold.csv by the stem of the wav."""
    path = folder / GOLD
    header, lines = read_table(read_text(path), str(path))
    if missing := [name for name in NEEDED[kind] if name not in header]:
        raise SuiteError(
            SuiteReason.WRONG_HEADER,
            f"{path} lacks the columns {', '.join(missing)}; it has {','.join(header)}, and the suite has "
            f"{','.join(COLUMNS[kind])}",
        )
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(lines, 2):
        stem = (row["filename"] or "").removesuffix(".wav")
        bad = {name: row[name] for name in NEEDED[kind] if row[name] is None}
        if not stem or stem in rows or bad or row["correct"] not in ("0", "1"):
            raise SuiteError(
                SuiteReason.WRONG_ROW,
                f"{path}:{number}: {str(dict(row))[:200]}; each row names another wav, has every column, and correct "
                "is 0 or 1",
            )
        rows[stem] = row
    return rows


Key = tuple[str, ...]


def _split(
    rows: Mapping[str, dict], folder: Path, key: Callable[[dict], Key]
) -> tuple[list[tuple[str, str]], list[tuple[Key, str, str]]]:
    """(right, wrong) in the order of gold.csv, as the official program pairs them; and (key, right, wrong) by key.

    Rows that share a key are paired in their order.

    Raises: SuiteError for a key with more right rows than wrong ones, or fewer.
    """
    sides: dict[Key, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for stem, row in rows.items():
        sides[key(row)][row["correct"] == "0"].append(stem)
    found: list[tuple[Key, str, str]] = []
    for one, (right, wrong) in sides.items():
        if len(right) != len(wrong):
            raise SuiteError(
                SuiteReason.WRONG_ROW,
                f"{folder / GOLD}: {len(right)} right and {len(wrong)} wrong rows for {'/'.join(one)}, such as "
                f"{(right or wrong)[0]}; a pair is one of each",
            )
        found += [(one, *both) for both in zip(right, wrong)]
    right, wrong = ([stem for stem, row in rows.items() if row["correct"] == side] for side in ("1", "0"))
    return list(zip(right, wrong)), found


def _check_order(ordered: list[tuple[str, str]], rows: Mapping[str, dict], folder: Path) -> None:
    """Raise SuiteError if the official program, which pairs rows by their order, would pair other rows."""
    names = ("voice", "type", "subtype", "id")
    for right, wrong in ordered:
        if any(rows[right].get(name) != rows[wrong].get(name) for name in names):
            raise SuiteError(
                SuiteReason.WRONG_ORDER,
                f"{folder / GOLD} is in another order than the suite's: its order pairs {right} with {wrong}, which "
                "differ in voice, type, subtype or id. Take the file as it was published",
            )


def _number(text: str, name: str, stem: str, folder: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise SuiteError(
            SuiteReason.WRONG_ROW, f"{folder / GOLD}: {name} of {stem} is {text!r}; it is a number"
        ) from None


def write_submission(path: Path, suite: Suite, scores: Mapping[str, Likelihood], normalisation: str) -> Path:
    """Write scores as ZeroSpeech's program reads them: `STEM SCORE`, one line a wav, in the order of gold.csv."""
    with written_whole(path) as file:
        for name in suite.files:
            if name in scores:
                file.write(f"{name} {value_of(scores[name], normalisation)!r}\n")
    return path


def read_submission(path: Path, suite: Suite) -> dict[str, Likelihood]:
    """Read such a file: the inverse of write_submission, for one normalisation. Each sound counts as one token.

    Raises:
        SuiteError: a line is missing, is of another suite, is no score, or stands in another place than in gold.csv.
    """
    found: dict[str, Likelihood] = {}
    for number, name, score in _scores(path):
        if name not in suite.files or name in found:
            fault = "stands there twice" if name in found else f"is not in the suite {suite.name}"
            raise SuiteError(SuiteReason.WRONG_ROW, f"{path}:{number}: {name} {fault}")
        found[name] = Likelihood(score, 1)
    if missing := [name for name in suite.files if name not in found]:
        raise SuiteError(
            SuiteReason.WRONG_ROW, f"{path} lacks {len(missing)} of {len(suite.files)} scores, such as {missing[0]}"
        )
    for number, (name, expected) in enumerate(zip(found, suite.files), 1):
        if name != expected:
            raise SuiteError(
                SuiteReason.WRONG_ORDER,
                f"{path}:{number}: {name} stands where {expected} is expected; the lines are in the order of gold.csv",
            )
    return found


def _scores(path: Path) -> Iterator[tuple[int, str, float]]:
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        parts = line.split()
        try:
            name, score = parts[0], float(parts[1])
        except (IndexError, ValueError):
            parts = []
        if len(parts) != 2 or score != score:
            raise SuiteError(SuiteReason.WRONG_ROW, f"{path}:{number}: {line[:60]!r} is not `STEM SCORE`")
        yield number, name, score

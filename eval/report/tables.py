"""What the report says, in plain rows: every figure it shows is looked up here, and a missing one is "not run"."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eval.metrics import Score
from eval.results import Result
from units.codebook import Codebook
from units.runtime.provenance import fingerprint

NOT_RUN = "not run"


@dataclass(frozen=True)
class Row:
    """One figure of the report. better: which way. beside: what to compare it with, and its name."""

    name: str
    meaning: str
    score: Score | None
    unit: str
    better: str
    beside: Score | None
    beside_name: str


@dataclass(frozen=True)
class _Figure:
    """Where a row comes from: task, the figure of it ("" is the main one), and the same for what stands beside it."""

    name: str
    meaning: str
    task: str
    figure: str = ""
    unit: str = "%"
    beside: tuple[str, str] | None = None
    beside_name: str = ""


_SAME = "the judge on the same recordings"
_VOICE = "the judge on the answer voice itself"
_FLOOR, _ORIGINAL = ("originals", "wer_answer_voice"), ("resynthesis", "wer_original")
_TEXT = "the same questions as text"
_READ, _UNREAD = "... that stand with their answer in the text it read", "... that do not stand there"
_FIGURES = (
    _Figure("spoken_qa", "spoken question, exactly right answer in text", "spoken_qa", "", "%", ("text_qa", ""), _TEXT),
    _Figure("spoken_qa_read", _READ, "spoken_qa", "read", "%", ("text_qa", "read"), _TEXT),
    _Figure("spoken_qa_unread", _UNREAD, "spoken_qa", "unread", "%", ("text_qa", "unread"), _TEXT),
    _Figure("asr_wer", "spoken question written down: word error rate", "asr", "", "%", ("originals", ""), _SAME),
    _Figure("answer_wer", "spoken answer against the model's own text", "answer_speech", "", "%", _FLOOR, _VOICE),
    _Figure(
        "first_take_wer",
        "... as it was first spoken, before the model heard itself",
        "answer_speech",
        "first_take",
        "%",
        _FLOOR,
        _VOICE,
    ),
    _Figure(
        "answer_gold_wer",
        "spoken answer against the right answer",
        "answer_speech",
        "wer_against_gold",
        "%",
        _FLOOR,
        _VOICE,
    ),
    _Figure(
        "new_voice_wer",
        "word error rate in a voice no training heard; `unit_noise` was chosen by this figure",
        "new_voice",
        "",
        "%",
        ("originals", "wer_new_voice"),
        _SAME,
    ),
    _Figure(
        "new_voice_qa",
        "exactly right answers in that voice; chosen on likewise",
        "new_voice",
        "spoken_qa",
        "%",
        ("spoken_qa", ""),
        "in the trained voices",
    ),
    _Figure("text_qa", "the question as text, exactly right answer", "text_qa"),
    _Figure("text_qa_read", _READ, "text_qa", "read"),
    _Figure("text_qa_unread", _UNREAD, "text_qa", "unread"),
    _Figure("tts_wer", "sentence read aloud: word error rate", "tts", "", "%", _FLOOR, _VOICE),
    _Figure(
        "tts_unheard_wer",
        "... sentences not in the training audio",
        "tts",
        "wer_unheard_sentences",
        "%",
        _FLOOR,
        _VOICE,
    ),
    _Figure("resynth_wer", "units to speech, durations predicted", "resynthesis", "", "%", _ORIGINAL, _SAME),
    _Figure("resynth_true_wer", "units to speech, true durations", "resynthesis", "wer_true", "%", _ORIGINAL, _SAME),
    _Figure("answer_rtf", "seconds of work for a second of spoken answer", "speed", unit="s/s"),
    _Figure("answer_seconds", "seconds from a question to its whole answer", "speed", "seconds_for_an_answer", "s"),
    _Figure("unit_rate", "units a second of question", "speed", "units_per_second", "/s"),
)
HEADLINE = ("spoken_qa", "asr_wer", "answer_wer", "new_voice_wer", "text_qa", "resynth_wer")
LINE = ("asr_wer", "spoken_qa", "answer_wer", "new_voice_wer", "text_qa", "resynth_wer")
_FAMILY_COLUMNS = (
    ("text QA right", "text_qa", "family/"),
    ("spoken QA right", "spoken_qa", "family/"),
    ("... new voice", "new_voice", "spoken_qa_family/"),
    ("ASR WER", "asr", "family/"),
    ("... new voice", "new_voice", "family/"),
    ("answer speech WER", "answer_speech", "family/"),
)


_NOTES = (
    "A value is followed by one standard error: binomial for exact answers, the jackknife over utterances for word "
    "error rates, with all spoken answers of the same words left out together. It covers the choice of test questions, "
    "not the luck of one training seed; two standard errors either way is about 95 %. A figure that never errs says "
    "± 0.0, which is no certainty when n is small.",
    "The judge is an outside recogniser. It hears only sentences of a closed grammar (each slot open to its whole "
    "word class), and is told neither the question nor the answer. Speech that fits no sentence is heard as nothing, "
    "and all its words count as errors; speech that is nearly a sentence may be heard as one: read its rates as those"
    " of a small world.",
)
_ELSEWHERE = (
    "What was asked is the user's own: whether any training heard it, or any choice was made by it, is not known here."
)
_SPLIT_NOTE = (
    "All figures but resynthesis are on the test split, which none of these commands trains on or chooses by. One choice "
    "was made by it all the same: the dev split has no new voice, so `unit_noise` was chosen on the test questions "
    "of SEED=0 in the new voice, and its figures in that voice may be better than a voice that had no part in it would give."
)
_VOICES_NOTE = (
    "Every voice is a speech synthesiser's. The test questions ask, in the training voices, for combinations that nobody "
    "says in the audio that the vocoder and the stages learn from."
)
_STARTER_NOTE = (
    "But the unit encoder that ships with the package learned from audio of the world of SEED=0, and has heard most of this "
    "world's test questions there, without transcripts."
)


def find(results: dict[str, Result], task: str, figure: str = "") -> Score | None:
    """A figure of a task, "" being its main one; None if the task did not run or has no such figure."""
    if task not in results:
        return None
    return results[task].more.get(figure) if figure else results[task].main


def score_rows(results: dict[str, Result]) -> list[Row]:
    """Every figure of the report, run or not."""
    rows = []
    for f in _FIGURES:
        better = "" if f.name == "unit_rate" else "higher" if "_qa" in f.name else "lower"
        beside = find(results, *f.beside) if f.beside else None
        rows.append(Row(f.name, f.meaning, find(results, f.task, f.figure), f.unit, better, beside, f.beside_name))
    return rows


def family_rows(results: dict[str, Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table by family: n, then one figure a column."""
    families: dict[str, int] = {}
    for _, task, prefix in _FAMILY_COLUMNS:
        for name, score in (results[task].more if task in results else {}).items():
            if name.startswith(prefix):
                families.setdefault(name.removeprefix(prefix), score.n)
    header = ["family", "n", *(title for title, _, _ in _FAMILY_COLUMNS)]
    rows = [
        [name, str(n), *(show(find(results, task, prefix + name)) for _, task, prefix in _FAMILY_COLUMNS)]
        for name, n in families.items()
    ]
    return header, rows


def show(score: Score | None, unit: str = "%", error: bool = False) -> str:
    """A figure for people, such as "12.3 %" or "12.3 ± 1.1 %"."""
    if score is None:
        return NOT_RUN
    if score.value is None:
        return "undefined"
    scale, digits = (100, 1) if unit == "%" else (1, 2)
    width = f" ± {score.standard_error * scale:.{digits}f}" if error and score.standard_error is not None else ""
    return f"{score.value * scale:.{digits}f}{width} {unit}"


def summary_line(results: dict[str, Result], minutes: float | None, name: str) -> str:
    """The run on one line, figures as fractions."""
    rows = {row.name: row.score for row in score_rows(results)}
    cells = []
    for key in LINE:
        score = rows[key]
        value = (
            NOT_RUN.replace(" ", "-") if score is None else "undefined" if score.value is None else f"{score.value:.3f}"
        )
        cells.append(f"{key}={value}")
    return f"{name}: {' '.join(cells)} minutes={'unknown' if minutes is None else f'{minutes:.1f}'}"


def notes(run: Path, results: dict[str, Result]) -> list[str]:
    """What a reader has to know before believing the figures."""
    corpus = run / "corpus" / "corpus.json"
    world = json.loads(corpus.read_text(encoding="utf-8")) if corpus.exists() else None
    found = [*_warnings(run, results), *_NOTES]
    if world is None:
        return [*found, _ELSEWHERE]
    foreign = world.get("seed", 0) != 0 and _ears(run) == "starter"
    return [
        *found,
        _SPLIT_NOTE,
        f"{_VOICES_NOTE} {_STARTER_NOTE}" if foreign else _VOICES_NOTE,
        _recall_note(results),
        f"The new voice is {world['new_voice']}, asking the same test questions. No training heard it: not the encoder's, "
        f"the units', the vocoder's, or the stages'. Answers are in the one voice {world['answer_voice']}.",
    ]


def _recall_note(results: dict[str, Result]) -> str:
    """How much of the world's test questions was read in training."""
    read, unread = find(results, "text_qa", "read"), find(results, "text_qa", "unread")
    share = f"{read.n} of the {read.n + unread.n}" if read and unread else "most"
    return (
        f"The language model has read {share} test questions with their answers, word for word (corpus/text.txt), and "
        "stages 2 and 3 train on the same ones typed, and on about a tenth of `say`. So text QA is mostly recall, and spoken "
        "QA shows how much of it survives being heard; the sentences of `say` it has to take from what it hears or reads."
    )


def _ears(run: Path) -> str:
    """The network whose features became the run's units, "" if that is not known."""
    path = run / "unit_encoder" / "codebook.json"
    return Codebook.load(path).encoder if path.exists() else ""


def _warnings(run: Path, results: dict[str, Result]) -> list[str]:
    """What is wrong with these results as they lie there."""
    found = []
    told = {task: result for task, result in results.items() if task != "resynthesis"}
    mixed = [name for name in ("model", "corpus", "device") if len({getattr(r, name) for r in told.values()}) > 1]
    if mixed:
        found.append(f"The results below are of more than one {' and '.join(mixed)}; run eval.run again.")
    limits = {result.limit for result in told.values() if result.limit is not None}
    if limits:
        allowed = " or ".join(map(str, sorted(limits)))
        found.append(f"This is a quick look: some tasks were limited to {allowed} examples.")
    voice = run / "model" / "vocoder"
    if "resynthesis" in results and voice.exists() and fingerprint(voice) not in results["resynthesis"].model:
        found.append("The resynthesis below is of another vocoder than the model's; run eval.resynthesis again.")
    return found

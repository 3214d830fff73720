"""Spoken question answering sets as they are published become a test set: LlamaQuestions, WebQuestions, TriviaQA.

    eval-qa-set llama LLAMA1-Test-Set runs/llama_questions
    eval-qa-set web dataset-factoid-webquestions/main/test.json runs/webquestions --voice flite:slt
    eval-qa-set trivia unfiltered-web-dev.json runs/triviaqa --voice flite:slt --most 1000
    eval-run --model runs/toy/model --corpus runs/llama_questions --out results --tasks qa_match

| layout | what is read | sound |
|---|---|---|
| `llama` | a folder with `llama_questions_300.tsv` (Questions, Answer, Wav Filename) and the wavs below it | its own |
| `web` | a JSON file, or a folder of them: a list of objects with qId, qText, answers | a TTS voice |
| `trivia` | TriviaQA's JSON: Data, a list of QuestionId, Question, Answer (Value, Aliases) | a TTS voice |

`test.jsonl` and `qa.jsonl` (accepted answers by id) are written. WebQuestions and TriviaQA are texts, so a
figure on them is reported together with the TTS voice, which `qa_set.json` keeps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.files.atomic import written_whole
from units.runtime.files.json_files import FileError, FileReason, checked, parsed, read_json, read_text
from units.runtime.files.tables import read_table

Layout = Literal["llama", "web", "trivia"]
LLAMA_TABLE = "llama_questions_300"
LLAMA_COLUMNS = ("Questions", "Answer", "Wav Filename")


@dataclass(frozen=True)
class QAItem:
    """A question and its accepted answers. audio: its recording, None where only the text is published."""

    id: str
    question: str
    answers: tuple[str, ...]
    audio: Path | None = None


def llama_questions(folder: Path) -> Iterator[QAItem]:
    """LlamaQuestions (google-research-datasets/LLAMA1-Test-Set).

    Raises:
        FileNotFoundError: the table or a wav is missing.
        FileError: the table has other columns.
    """
    tables = [path for path in sorted(folder.rglob(f"{LLAMA_TABLE}.*")) if path.suffix in (".tsv", ".csv")]
    if not tables:
        raise FileNotFoundError(f"{folder} has no {LLAMA_TABLE}.tsv; give the folder of LLAMA1-Test-Set")
    text = read_text(tables[0])
    separator = "\t" if "\t" in text.split("\n")[0] else ","
    header, rows = read_table(text, str(tables[0]), separator)
    if missing := [name for name in LLAMA_COLUMNS if name not in header]:
        raise FileError(
            FileReason.MISSING_FIELD, f"{tables[0]} lacks the columns {', '.join(missing)}; it has {', '.join(header)}"
        )
    wavs = {path.name: path for path in folder.rglob("*.wav")}
    for number, row in enumerate(rows, 2):
        found = {name: (row[name] or "").strip() for name in LLAMA_COLUMNS}
        name = Path(found["Wav Filename"]).name
        if name not in wavs:
            raise FileNotFoundError(f"{tables[0]}:{number} names {name}, which is not below {folder}")
        yield QAItem(wavs[name].stem, found["Questions"], (found["Answer"],), wavs[name])


def web_questions(path: Path) -> Iterator[QAItem]:
    """WebQuestions (brmson/dataset-factoid-webquestions, main/*.json).

    Raises:
        FileError: a file is something else.
    """
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        rows: Any = parsed(read_text(file), str(file))
        if not isinstance(rows, list):
            raise FileError(FileReason.NOT_JSON, f"{file} is not a list of questions")
        for number, row in enumerate(rows, 1):
            found = checked(row, f"{file}, question {number}", {"qId": str, "qText": str, "answers": list})
            yield QAItem(found["qId"], found["qText"], _texts(found["answers"], f"{file}, question {number}"))


def trivia_qa(path: Path) -> Iterator[QAItem]:
    """TriviaQA (Joshi et al., arXiv 1705.03551), any of its JSON files.

    Raises:
        FileError: the file is something else.
    """
    for number, row in enumerate(read_json(path, {"Data": list})["Data"], 1):
        where = f"{path}, question {number}"
        found = checked(row, where, {"QuestionId": str, "Question": str, "Answer": dict})
        answer = checked(found["Answer"], where, {"Value": str})
        aliases = _texts(answer.get("Aliases") or [], where)
        yield QAItem(found["QuestionId"], found["Question"], tuple(dict.fromkeys((answer["Value"], *aliases))))


def _texts(answers: Any, where: str) -> tuple[str, ...]:
    """A list of answers, which are texts or numbers. Raises FileError."""
    if not isinstance(answers, list) or not all(type(answer) in (str, int, float) for answer in answers):
        raise FileError(
            FileReason.INVALID_FIELD, f"{where}: answers are {str(answers)[:60]!r}; they are a list of texts"
        )
    return tuple(map(str, answers))


LAYOUTS = {"llama": llama_questions, "web": web_questions, "trivia": trivia_qa}


@command("eval-qa-set")
def main(layout: Layout, source: Path, out: Path, voice: str | None = None, most: int | None = None) -> int | None:
    """Turn a published question answering set into a test set.

    Args:
        layout: llama, web or trivia
        source: its folder or file
        out: the folder of the test set
        voice: TTS voice that asks questions that are published as text, such as flite:slt
        most: only so many questions, the first ones
    """
    check_range("most", most, 1)
    items = list(LAYOUTS[layout](source))[:most]
    unusable = [item.id for item in items if not item.question.strip() or not any(map(str.strip, item.answers))]
    items = [item for item in items if item.id not in unusable]
    if not items:
        raise ValueError(f"{source} has no question with an answer")
    if twice := {item.id for item in items if sum(other.id == item.id for other in items) > 1}:
        raise ValueError(f"{source} has two questions with the id {min(twice)}")
    refused = _write_sound(items, out, voice)
    with written_whole(out / "qa.jsonl") as file:
        file.writelines(
            json.dumps({"id": item.id, "question": item.question, "answers": item.answers}) + "\n" for item in items
        )
    with written_whole(out / "qa_set.json") as file:
        json.dump({"layout": layout, "voice": voice, "questions": len(items)}, file)
    print(f"{len(items)} questions in {out}, {len(unusable)} without question or answer left out, {refused} unspoken")
    return SOME_REFUSED if refused else None


def _write_sound(items: list[QAItem], out: Path, voice: str | None) -> int:
    """Write test.jsonl, with the recordings or with spoken questions. Returns how many could not be spoken."""
    if all(item.audio for item in items):
        from units.corpus.manifest import Utterance, write_manifest

        write_manifest(
            out / "test.jsonl", [Utterance(item.id, item.audio, text=item.question) for item in items if item.audio]
        )
        return 0
    from instruct_data.speech.speak import Line, speak_lines
    from instruct_data.text.spoken.form import speakable

    if voice is None:
        raise ValueError("these questions are published as text: give the --voice that asks them, such as flite:slt")
    lines = [Line(item.id, speakable(item.question), voice) for item in items]
    return speak_lines(lines, out, "test").refused


if __name__ == "__main__":
    main.cli()

"""Text instruction sets as others publish them, turned into one plain text set; every refusal counted by reason.

    python -m instruct_data.text.sources alpaca_data.json alpaca chats.jsonl --filters.language en
    python -m instruct_data.text.sources '[en_helpfulness.json, en_honesty.json]' moss chats.jsonl

Files are JSON arrays, one object a line, or parquet, compressed or not; all are read as a stream.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from instruct_data.text.chats import TextChat, TextPair, is_broken, write_chats
from instruct_data.text.filters import Filters, kept_chats
from speechgpt.vocab import EOA, EOH, HUMAN
from units.runtime.gzipped import opened
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals, numbered_lines

Row = dict[str, Any]
CHUNK, LONGEST = 2**20, 2**26  # characters read at a time, and of the longest row of an array
_BETWEEN = re.compile(r"[\s,]*")
# What others write into JSON and it does not allow: NaN, for nothing there, and tabs and line ends as they are.
_LENIENT = json.JSONDecoder(strict=False, parse_constant=lambda name: None)


def read_rows(path: Path, refusals: Refusals) -> Iterator[tuple[str, Row]]:
    """The objects of a file with where each stands; what is no object is refused."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        batches = pq.ParquetFile(path).iter_batches(batch_size=256)
        rows: Iterable[Any] = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        found: Iterable[tuple[str, Any]] = ((f"{path}:{i}", row) for i, row in enumerate(rows, 1))
    elif _is_array(path):
        found = _array(path, refusals)
    else:
        found = _lines(path, refusals)
    for where, row in found:
        if isinstance(row, dict):
            yield where, row
        else:
            refusals.add(where, f"not an object: {repr(row)[:60]}")


def _is_array(path: Path) -> bool:
    with opened(path, "rb") as file:
        return file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _array(path: Path, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    number = 0
    with opened(path, "rb") as file:
        # what is no UTF-8 becomes half a character, for which its row alone is refused
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")  # type: ignore[type-var]
        try:
            for number, row in enumerate(_elements(text), 1):
                yield f"{path}:{number}", row
        except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            refusals.add(f"{path}:{number + 1}", f"the array is damaged from here on: {error}")


def _elements(text: TextIO) -> Iterator[Any]:
    """Stream the elements of a JSON array. Raises ValueError where it is none, or ends too soon."""
    buffer, ended = text.read(CHUNK), False
    at = buffer.index("[") + 1
    while True:
        at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
        if buffer.startswith("]", at):
            return
        try:
            row, end = _LENIENT.raw_decode(buffer, at)
            if end == len(buffer) and not ended:
                raise json.JSONDecodeError("a number could go on", buffer, end)
        except json.JSONDecodeError:
            if ended or len(buffer) - at > LONGEST:
                raise
            more = text.read(max(CHUNK, len(buffer) - at))
            buffer, at, ended = buffer[at:] + more, 0, not more
        else:
            yield row
            at = end


def _lines(path: Path, refusals: Refusals) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(path, refusals):
        try:
            text = line.decode("utf-8-sig")
            if text.strip():
                yield f"{path}:{number}", _LENIENT.decode(text)
        except (ValueError, RecursionError) as error:
            refusals.add(f"{path}:{number}", f"not JSON: {error}")


# --- the published forms: an object -> its turns, question and answer in alternation


def plain(row: Row) -> list[str]:
    """{"question", "answer"}, or this project's {"turns": [[question, answer], ..]}."""
    if "turns" in row:
        return [text for turn in row["turns"] for text in turn]
    return [row["question"], row["answer"]]


def alpaca(row: Row) -> list[str]:
    """{"instruction", "input", "output"} (Taori et al. 2023)."""
    return [_with(row["instruction"], row.get("input")), row["output"]]


def dolly(row: Row) -> list[str]:
    """{"instruction", "context", "response"} (databricks-dolly-15k)."""
    return [_with(row["instruction"], row.get("context")), row["response"]]


_MOSS_TURN = re.compile(f"{re.escape(HUMAN)}:(.*?){re.escape(EOH)}\\s*\\[MOSS\\]:(.*?){re.escape(EOA)}", re.DOTALL)


def moss(row: Row) -> list[str]:
    """moss-002-sft-data in both forms: `plain_text` with its markers (the hub's files), or `chat` turn by turn.

    {"plain_text": "[Human]: ..<eoh> [MOSS]: ..<eoa> [Human]: .."}
    {"chat": {"turn_1": {"Human": "<|Human|>: ..<eoh>", "MOSS": "<|MOSS|>: ..<eom>"}, ..}}
    """
    if "plain_text" in row:
        return [text for turn in _MOSS_TURN.findall(row["plain_text"]) for text in turn]
    turns = sorted(row["chat"].items(), key=lambda item: int(item[0].removeprefix("turn_")))
    texts = [text for _, turn in turns for text in (turn["Human"], turn["MOSS"])]
    return [re.sub(r"^<\|\w+\|>:|<eo[hm]>\s*$|<sup>.*?</sup>", "", text.strip()) for text in texts]


_ASKS = {"human", "user", "prompter"}
_ANSWERS = {"gpt", "assistant", "chatgpt", "bing", "bard"}


def sharegpt(row: Row) -> list[str]:
    """{"conversations": [{"from": "human", "value": ".."}, ..]}; system turns are left out."""
    return _roles((turn["from"], turn["value"]) for turn in row["conversations"])


def ultrachat(row: Row) -> list[str]:
    """{"data": [question, answer, ..]}, or the later {"messages": [{"role", "content"}, ..]}."""
    if "data" in row:
        return list(row["data"])
    return _roles((turn["role"], turn["content"]) for turn in row["messages"])


def openassistant(row: Row) -> list[str]:
    """A message tree {"prompt": {"text", "role", "replies": [..]}}: the thread of the best ranked replies."""
    said, message = [], row["prompt"]
    while message is not None:
        said.append((message["role"], message["text"]))
        replies = [reply for reply in message.get("replies") or () if not reply.get("deleted")]
        message = min(replies, key=_rank, default=None)
    return _roles(said)


def grow_trees(rows: Iterable[tuple[str, Row]], refusals: Refusals) -> Iterator[tuple[str, Row]]:
    """OpenAssistant's flat messages (`message_id`, `parent_id` but of roots) as trees; a tree's messages stand together."""
    for _, tree in itertools.groupby(rows, lambda found: found[1].get("message_tree_id")):
        places = list(tree)
        known = {row.get("message_id"): {**row, "replies": []} for _, row in places}
        roots = []
        for where, row in places:
            parent, message = row.get("parent_id"), known[row.get("message_id")]
            if parent is None:
                roots.append((where, {"prompt": message}))
            elif parent in known:
                known[parent]["replies"].append(message)
            else:
                refusals.add(where, f"its parent is not among its neighbours: {parent}")
        yield from roots


def _rank(reply: Row) -> float:
    return float("inf") if reply.get("rank") is None else reply["rank"]


def _with(instruction: str, more: str | None) -> str:
    return f"{instruction}\n{more}" if more and more.strip() else instruction


def _roles(said: Iterable[tuple[str, str]]) -> list[str]:
    """Turns in alternation, the human first. Raises ValueError where two of one side follow each other."""
    texts: list[str] = []
    for role, text in said:
        if role == "system":
            continue
        if role not in _ASKS | _ANSWERS:
            raise ValueError(f"unknown role: {role!r}")
        if not texts and role in _ANSWERS:
            continue  # many shared conversations begin in the middle
        if (len(texts) % 2 == 0) != (role in _ASKS):
            raise ValueError("one side speaks twice in a row")
        texts.append(text)
    return texts


FORMS: dict[str, Callable[[Row], list[str]]] = {
    "plain": plain, "alpaca": alpaca, "moss": moss, "sharegpt": sharegpt, "dolly": dolly,
    "openassistant": openassistant, "ultrachat": ultrachat,
}  # fmt: skip


def read_source(path: Path, form: str, refusals: Refusals) -> Iterator[tuple[str, TextChat]]:
    """Stream the chats of a published file with where each stands; what does not have its form is refused.

    Raises: ValueError if the form is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; there are {', '.join(FORMS)}")
    rows = read_rows(path, refusals)
    if form == "openassistant":
        first = next(rows, None)
        rows = itertools.chain([first] if first else [], rows)
        rows = grow_trees(rows, refusals) if first and "message_id" in first[1] else rows
    for where, row in rows:
        try:
            texts = FORMS[form](row)
            texts = [text.strip() for text in texts[: len(texts) // 2 * 2]]
        except KeyError as error:
            refusals.add(where, f"a field is missing: {error}")
        except (ValueError, TypeError, AttributeError) as error:
            kind = str(error) if isinstance(error, ValueError) else f"a field has another type: {error}"
            refusals.add(where, kind)
        else:
            family = str(row.get("family") or row.get("category") or "")
            if any(map(is_broken, [*texts, family])):
                refusals.add(where, "half a character: a surrogate without its other half")
            elif texts:
                turns = zip(texts[::2], texts[1::2])
                yield where, TextChat(tuple(TextPair(q, a, row.get("split", "train"), family) for q, a in turns))
            else:
                refusals.add(where, "no question with an answer")


def main(
    source: Path | list[Path], form: str, out: Path, filters: Filters = Filters(), most: int | None = None
) -> None:
    """Turn published files into one text set.

    Args:
        source: a file, or several
        form: plain, alpaca, moss, sharegpt, dolly, openassistant or ultrachat
        out: the text set, jsonl, compressed if its name ends in .gz; what is refused is listed in OUT.refused.jsonl
        filters: what is kept, and how it is made speakable
        most: chats to read, for a look at some before all of them; all if not given
    """
    listed = out.with_name(f"{out.name}.refused.jsonl")
    paths = source if isinstance(source, list) else [source]
    with listed_refusals(listed) as refusals:
        files = (
            progress(read_source(path, form, refusals), desc=f"reading {path.name}", unit="chats") for path in paths
        )
        chats = itertools.islice(itertools.chain.from_iterable(files), most)
        kept, turns = write_chats(out, kept_chats(chats, filters, refusals))
    if not kept:
        raise SystemExit(
            f"no chat of {', '.join(map(str, paths))} as {form!r} was kept, {out} is as it was; {refusals}; see {listed}"
        )
    print(f"{out}: {kept} chats of {turns} turns; {refusals}")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main)

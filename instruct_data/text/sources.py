"""Convert published text instruction sets to one text set; everything left out is counted by reason.

    python -m instruct_data.text.sources alpaca_data.json alpaca chats.jsonl --filters.language en
    python -m instruct_data.text.sources '[en_helpfulness.json, en_honesty.json]' moss chats.jsonl

Files are JSON arrays, JSON lines or parquet, compressed or not; all are read as a stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from instruct_data.text.chats import TextChat, TextPair, has_lone_surrogate, write_chats
from instruct_data.text.filters import Filters, kept_chats
from instruct_data.text.published import FORMATS, RowError, message_trees
from instruct_data.text.reasons import FILTERED, TextReason
from instruct_data.text.rows import Row, read_rows
from units.runtime.command import SOME_REFUSED, check_range, command
from units.runtime.progress import progress
from units.runtime.refusals import Refusals, listed_refusals


class NothingKept(ValueError):
    """A command was left without a single chat, and wrote nothing."""


def read_source(path: Path, form: str, refusals: Refusals) -> Iterator[tuple[str, TextChat]]:
    """Stream (FILE:ROW, chat) of a published file. A row that does not have its format is refused.

    Args:
        form: name of the format, one of FORMATS.

    Raises:
        ValueError: if the format is unknown.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; there are {', '.join(FORMATS)}")
    for id, row in _chat_rows(path, form, refusals):
        try:
            yield id, _chat_of(row, form)
        except RowError as error:
            refusals.add(id, error)


def _chat_rows(path: Path, form: str, refusals: Refusals) -> Iterator[tuple[str, Row]]:
    """The rows of a file; OpenAssistant's flat messages are joined to trees."""
    rows = read_rows(path, refusals)
    if form != "openassistant":
        return rows
    first = next(rows, None)
    if first is None:
        return rows
    rows = itertools.chain([first], rows)
    return message_trees(rows, refusals) if "message_id" in first[1] else rows


def _chat_of(row: Row, form: str) -> TextChat:
    """A row as a chat; a last question without an answer is left out.

    Raises:
        RowError: if the row is not a chat of this format.
    """
    try:
        texts = FORMATS[form](row)
        texts = [text.strip() for text in texts[: len(texts) // 2 * 2]]
    except KeyError as error:
        raise RowError(TextReason.MISSING_FIELD, f"the field {error} is missing") from error
    except (TypeError, AttributeError) as error:
        raise RowError(TextReason.WRONG_TYPE, f"a field has another type: {error}") from error
    except RowError:
        raise
    except ValueError as error:  # such as the number of a turn of moss
        raise RowError(TextReason.WRONG_TYPE, str(error)) from error
    family = str(row.get("family") or row.get("category") or "")
    if any(map(has_lone_surrogate, [*texts, family])):
        raise RowError(TextReason.LONE_SURROGATE, "half of a surrogate pair, or bytes that are not UTF-8")
    if not texts:
        raise RowError(TextReason.NO_TURN, "no question with an answer")
    split = row.get("split") or "train"
    if not isinstance(split, str):
        raise RowError(TextReason.WRONG_TYPE, f"the field 'split' is text, not {str(split)[:60]}")
    return TextChat(tuple(TextPair(q, a, split, family) for q, a in zip(texts[::2], texts[1::2])))


def exit_code(refusals: Refusals) -> int:
    """0 if the filters alone left something out, SOME_REFUSED if an input was refused."""
    filtered = sum(refusals.counts[reason.value] for reason in FILTERED)
    return SOME_REFUSED if refusals.counts.total() > filtered else 0


@command("instruct-sources")
def main(source: Path | list[Path], form: str, out: Path, filters: Filters = Filters(), most: int | None = None) -> int:
    """Convert published files to one text set.

    Args:
        source: a file, or a list of files
        form: plain, alpaca, moss, sharegpt, dolly, openassistant or ultrachat
        out: the text set, jsonl, compressed if its name ends in .gz; refused rows are listed in OUT.refused.jsonl
        filters: which chats are kept, and how they are made speakable
        most: read only this many chats, for a trial; all if not given
    """
    check_range("most", most, 1)
    listed = out.with_name(f"{out.name}.refused.jsonl")
    paths = source if isinstance(source, list) else [source]
    with listed_refusals(listed) as refusals:
        chats = itertools.chain.from_iterable(
            progress(read_source(path, form, refusals), desc=f"reading {path.name}", unit="chats") for path in paths
        )
        kept, turns = write_chats(out, kept_chats(itertools.islice(chats, most), filters, refusals))
    if not kept:
        names = ", ".join(map(str, paths))
        raise NothingKept(f"no chat of {names} as {form!r} was kept, {out} is unchanged; {refusals}; see {listed}")
    print(f"{out}: {kept} chats of {turns} turns; {refusals}")
    return exit_code(refusals)


if __name__ == "__main__":
    main.cli()

"""Tables with a header that another program wrote: comma or tab separated, read, or refused in one line."""

from __future__ import annotations

import csv
import io

from units.runtime.files.json_files import FileError, FileReason


def read_table(text: str, where: str, separator: str = ",") -> tuple[list[str], list[dict[str, str | None]]]:
    """The columns of a table, and its rows: column -> value, None where a row is short.

    Only a line feed ends a row: other separators may stand in a value.

    Args:
        where: names the table in the message.

    Raises: FileError.
    """
    rows: list[list[str]] = []
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        header = [name.strip() for name in next(lines, [])]
        for row in lines:
            if len(row) > len(header):
                raise FileError(
                    FileReason.INVALID_FIELD,
                    f"{where}:{lines.line_num}: {len(row)} values for {len(header)} columns; put a value with the "
                    f"separator {separator!r} in quotes",
                )
            if row:
                rows.append(row)
    except csv.Error as error:
        raise FileError(FileReason.DAMAGED, f"{where}:{lines.line_num}: not a row of a table ({error})") from error
    return header, [dict(zip(header, [*row, *[None] * len(header)])) for row in rows]

"""Reads metadata.csv or metadata.jsonl, the table of images and captions; captions must be text."""

import ast
import csv
import io
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.data.image import ENDINGS
from core.errors import UserError
from core.folders import shown_path
from core.trial.spec import PROMPT, Data

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
MISSING = "is missing"
NOTHING = ("nan", "null", "none")  # what programs write into an empty CSV cell
Cells = dict[str, object]  # column -> value of one row


class DataError(UserError):
    """The data folder or its table cannot be used; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of the table; `problem` says why it cannot be used, empty if it can.

    `file` is as in the table, or `row 3` where the table has no name. `subset` is None where the table has no
    such column.
    """

    file: str
    prompt: str
    subset: str | None
    problem: str


def read_table(table: Path, data: Data) -> list[TableRow]:
    """All rows of the table, faulty ones with their problem. Raises DataError where it is no table at all."""
    try:
        content = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown_path(table)}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    columns, rows = _read_lines(table, content) if table.suffix == ".jsonl" else _read_csv(table, content)
    image, caption = data.image_column or "file_name", data.text_column or "text"
    for key, column in (("image_column", image), ("text_column", caption)):
        if column not in columns and (column == image or PROMPT in data.caption):
            raise DataError(
                f"{shown_path(table)}: column {column} is missing (found: {', '.join(columns) or 'none'}); "
                f"data.{key} can name another"
            )
    if table.suffix == ".csv":
        rows = [row | {caption: _meant(row.get(caption))} for row in rows]
    return [
        _row(number, row, image, caption, "subset" in columns, data)
        for number, row in enumerate(rows, start=1)
    ]


def clean(text: str) -> str:
    """Replace lone surrogates, which cannot be written to a file or a terminal, by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def some_of(names: Sequence[str], shown: int = 5, of_what: str = "") -> str:
    """The first names and how many more there are, for a message: `a, b and 3 more`, then `of_what`."""
    more = f" and {len(names) - shown} more{of_what}" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _row(number: int, row: Cells, image: str, caption: str, has_subset: bool, data: Data) -> TableRow:
    file, no_file = _text(row.get(image))
    prompt, no_prompt = _text(row.get(caption))
    subset, no_subset = _text(row.get("subset"))
    prompt = prompt.strip()
    problem = ""
    if no_file or not file:
        file, problem = f"row {number}", f"file name {no_file or 'is empty'}"
    elif PROMPT in data.caption and (no_prompt or not prompt):
        problem = f"caption {no_prompt or 'is empty'}"
    elif no_subset and no_subset != MISSING:
        problem = f"subset {no_subset}"
    return TableRow(file, prompt, subset if has_subset else None, problem)


def _text(value: object) -> tuple[str, str]:
    """-> (text of a cell, ""), or ("", why it is not text); other values are never converted to text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "", MISSING
    if isinstance(value, str):
        return clean(value), ""
    return "", f"is {KINDS[type(value)]}, not text"


def _read_csv(table: Path, text: str) -> tuple[Sequence[str], list[Cells]]:
    """-> columns and rows; blanks after a comma are not part of a cell."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
        columns, rows = [name.strip() for name in reader.fieldnames or ()], []
        _check_header(table, columns)
        reader.fieldnames = columns
        for row in reader:
            if None in row:
                raise DataError(
                    f"{shown_path(table)}: line {reader.line_num} has more cells than columns; "
                    f"quote a caption that has a comma"
                )
            rows.append(row)
        return columns, rows
    except csv.Error as error:
        raise DataError(f"{shown_path(table)}: is no CSV after line {reader.line_num}: {error}") from None


def _check_header(table: Path, columns: Sequence[str]) -> None:
    for separator, name in SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            raise DataError(
                f"{shown_path(table)}: its columns are separated by {name} ({separator!r}); "
                f"save it with commas"
            )
    if any(Path(column).suffix.lower() in ENDINGS for column in columns):
        raise DataError(
            f"{shown_path(table)}: has no header, for its first line names an image; "
            f"write the columns above it: file_name,text"
        )


def _meant(cell: object) -> object:
    """The list, number, boolean or None that a program wrote into a caption's cell; else the cell itself."""
    written = cell.strip() if isinstance(cell, str) else ""
    if written.lower() in NOTHING:
        return None
    if written.lower() in ("true", "false"):
        return written.lower() == "true"
    with suppress(ValueError):
        return number if math.isfinite(number := float(written)) else cell
    if (written[:1], written[-1:]) in (("[", "]"), ("{", "}")):
        for parse in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                return found if isinstance(found := parse(written), list | dict) else cell
    return cell


def _read_lines(table: Path, text: str) -> tuple[Sequence[str], list[Cells]]:
    rows: list[Cells] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a caption may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{shown_path(table)}: line {number} is no JSON object")
        rows.append(row)
    return list(dict.fromkeys(key for row in rows for key in row)), rows

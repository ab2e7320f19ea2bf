"""A folder of captioned pictures, in any layout of the field: a table beside them, or a .txt beside each."""
import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.folders import Runs
from core.picture import ENDINGS
from core.settings import PROMPT, Data

TABLES = tuple(Path(folder, table) for folder in ("train", "") for table in ("metadata.csv", "metadata.jsonl"))
LAYOUTS = "metadata.csv or metadata.jsonl with file_name and text, or pictures with a .txt each, there or in train/"


class DataError(ValueError):
    """Why the pictures cannot be used, in one line."""


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """`file` is its name for people; `problem` says why it cannot be used, as far as its content is not needed for that."""
    file: str
    path: Path
    prompt: str
    subset: str = ""
    problem: str = ""
    in_table: bool = True


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """`notes` say in one line each what a user must know of the folder as a whole, such as what was left out."""
    pictures: tuple[CaptionedPicture, ...]
    notes: tuple[str, ...] = ()


def read_folder(data: Data) -> PictureFolder:
    """Every picture in the table's order, then those that it forgets; or all by name. Raises DataError."""
    root = Path(data.source)
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    pictures = _from_table(table, data) if table else _from_files(root, data)
    real_root = os.path.realpath(root)
    return PictureFolder(tuple(
        replace(picture, problem=picture.problem or _problem(picture.path, real_root)) for picture in pictures))


def caption_of(prompt: str, template: str) -> str:
    return template.replace(PROMPT, prompt)


def _from_table(table: Path, data: Data) -> list[CaptionedPicture]:
    columns, rows = _read_table(table)
    image, words = data.image_column or "file_name", data.text_column or "text"
    for key, column in (("image_column", image), ("text_column", words)):
        if column not in columns and (column == image or PROMPT in data.caption):
            raise DataError(f"{table}: column {column} is missing (found: {', '.join(columns) or 'none'}); "
                            f"data.{key} can name another")
    pictures = []
    for number, row in enumerate(rows, start=1):
        file, prompt = _cell(row, image), _cell(row, words).strip()
        subset = _cell(row, "subset") if "subset" in columns else _folder_of(file)
        problem = "caption is empty" if PROMPT in data.caption and not prompt else ""
        pictures.append(CaptionedPicture(file or f"row {number}", table.parent / file, prompt, subset,
                                         problem if file else "file name is empty"))
    named = {os.path.abspath(picture.path) for picture in pictures}
    return pictures + [
        CaptionedPicture(name := _clean(path.relative_to(table.parent).as_posix()), path, "", _folder_of(name),
                         f"{table.name} does not name it", in_table=False)
        for path in _picture_files(table.parent) if os.path.abspath(path) not in named]


def _read_table(table: Path) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """Columns and rows of a CSV or JSON Lines file; utf-8 with or without byte order mark."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    if table.suffix == ".jsonl":
        return _read_lines(table, text)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns, rows = list(reader.fieldnames or ()), []
        for row in reader:
            if None in row:
                raise DataError(f"{table}: line {reader.line_num} has more cells than columns; quote a caption that has a comma")
            rows.append(row)
        return columns, rows
    except csv.Error as error:
        raise DataError(f"{table}: is no CSV after line {reader.line_num}: {error}") from None


def _read_lines(table: Path, text: str) -> tuple[Sequence[str], list[dict[str, Any]]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a caption may hold U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{table}: line {number} is no JSON object")
        rows.append(row)
    return list(dict.fromkeys(key for row in rows for key in row)), rows


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return _clean("" if value is None else str(value))


def _clean(text: str) -> str:
    """Half a surrogate pair, which no file and no terminal takes, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _from_files(root: Path, data: Data) -> list[CaptionedPicture]:
    paths = _picture_files(root)
    train = root / "train"
    folder = train if paths and all(path.is_relative_to(train) for path in paths) else root
    if not paths:
        raise DataError(f"{root}: holds no pictures (allowed: {LAYOUTS})")
    if PROMPT in data.caption and not any(path.with_suffix(".txt").is_file() for path in paths):
        raise DataError(f"{folder}: holds pictures but no captions; write a .txt beside each, or data.caption without {PROMPT}")
    return [_from_file(path, folder, data) for path in paths]


def _picture_files(folder: Path) -> list[Path]:
    """Pictures in the folder and everywhere below, by name; not what a file manager hides there.

    Of linked folders only those at the top are entered, so that a circle of links ends.
    """
    found = {*folder.rglob("*"), *folder.glob("*/*")}
    runs = [path.parent for path in folder.rglob(Runs(Path()).tracking_lock.name) if path.parent != folder]
    return sorted(path for path in found if path.suffix.lower() in ENDINGS
                  and not any(part.startswith(".") for part in path.relative_to(folder).parts)
                  and not any(path.is_relative_to(ours) for ours in runs))  # what sweeps drew is no data


def _from_file(path: Path, folder: Path, data: Data) -> CaptionedPicture:
    name, words = path.relative_to(folder).as_posix(), path.with_suffix(".txt")
    prompt, problem = "", ""
    if _clean(name) != name:
        return CaptionedPicture(_clean(name), folder / _clean(name), "", _folder_of(_clean(name)), "its name is not UTF-8")
    if words.is_file() and not _problem(words, os.path.realpath(data.source)):
        try:
            prompt = words.read_text(encoding="utf-8-sig").strip()
            problem = "" if prompt else "caption is empty"
        except UnicodeDecodeError:
            problem = f"caption {words.name} is not UTF-8"
    else:
        problem = f"caption is missing (there is no {words.name})"
    return CaptionedPicture(name, path, prompt, _folder_of(name), problem if PROMPT in data.caption else "")


def _folder_of(file: str) -> str:
    """The sub-folder that a picture lies in, empty at the top."""
    parent = Path(file).parent.as_posix()
    return "" if parent == "." else parent


def _problem(path: Path, real_root: str) -> str:
    """Why a file cannot be used, judged by its place alone."""
    try:
        if not Path(os.path.realpath(path)).is_relative_to(real_root):
            return "lies outside the data folder"
        if not path.exists():
            return "file is missing"
        return "" if path.is_file() else "is no file"
    except (OSError, ValueError):  # too long, or with a character that no file has
        return "no file can have its name"

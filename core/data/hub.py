"""Fetches a data set of ModelScope into a folder under the cache, which is then read as any other folder.

This needs the package `modelscope[datasets]`, the network, and a separate process: `python -m core.data.hub`.
"""

import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import getproxies

from PIL import Image

from core.data.caption_table import DataError
from core.data.image import ENDINGS
from core.errors import first_line
from core.files.files import content_key, from_json, write_text
from core.files.install import install_command
from core.folders import shown_path
from core.trial.spec import PROMPT, REMOTE, Data

CAPTION_COLUMNS = ("text", "prompt", "caption", "description")  # best first, in any case
FILE_MARK = ":FILE"  # modelscope's suffix of a column of files; their cached names may have no ending
ROWS_TO_JUDGE_BY = 20
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow, that it can write as PNG


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds the images and which their captions, if any."""

    image: str
    caption: str | None


def as_local_folder(data: Data, cache: Path) -> Data:
    """The same data as a folder on this machine. Raises DataError if it was not fetched yet."""
    if not data.is_remote:
        return data
    folder = _folder(data, cache)
    if not folder.is_dir():
        raise DataError(
            f"{shown_path(folder)}: the images of {data.source} are not there; "
            f"start the command again to load them"
        )
    return replace(data, source=str(folder), subset=None, split=None, image_column=None, text_column=None)


def is_here(data: Data, cache: Path) -> bool:
    """Whether the data is on this machine; always true for a folder, even one that does not exist."""
    return not data.is_remote or _folder(data, cache).is_dir()


def check_loader(data: Data) -> None:
    """Raises DataError where the package that loads a remote data set is missing."""
    if find_spec("datasets") is None:
        raise DataError(
            f"data.source is {data.source}, but the package that loads it is missing; "
            f"run: {install_command('modelscope')}"
        )


def fetch_dataset(data: Data, cache: Path) -> str | None:
    """Fetch a remote data set if it is not here; returns a line on what was fetched. Raises DataError."""
    if is_here(data, cache):
        return None
    check_loader(data)
    order = json.dumps({"data": asdict(data), "folder": str(_folder(data, cache))})
    # Not in this process: the loader imports much of modelscope, and the driver is to stay small.
    done = subprocess.run(
        [sys.executable, "-P", "-m", "core.data.hub", order],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    answer = from_json(json.loads(done.stdout or "{}"), dict[str, str | None])
    if "loaded" not in answer:
        why = answer.get("error") or f"its loader ended with exit code {done.returncode}"
        raise DataError(f"data.source is {data.source}, but it cannot be loaded: {why}")
    return answer["loaded"]


def main() -> None:
    """Read a JSON order from the arguments, print a JSON answer; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    order = json.loads(sys.argv[1])
    try:
        answer = {"loaded": _load(Data(**order["data"]), Path(order["folder"]))}
    except Exception as error:  # modelscope and datasets raise many kinds; the parent reports it
        answer = {"error": _plain_line(error)}
    with answers:
        answers.write(json.dumps(answer))


def _plain_line(error: Exception) -> str:
    """The loader's error in one line, without logins in addresses and without any part of a proxy's login."""
    line = re.sub(r"[^\s'\"]*@", "...@", first_line(error)[:300])
    logins = " ".join(proxy.rpartition("@")[0].partition("://")[2] for proxy in getproxies().values())
    if set(re.findall(r"\w+", f"{logins} {unquote(logins)}")) & set(re.findall(r"\w+", line)):
        return f"{type(error).__name__}, whose text is not shown: it holds parts of a proxy's login"
    return line


def _load(data: Data, folder: Path) -> str:
    from modelscope.msdatasets import MsDataset

    found = MsDataset.load(
        data.source.removeprefix(REMOTE), subset_name=data.subset, split=data.split or "train"
    )
    return write_folder(rows_of(found), data, folder)


def rows_of(found: object) -> Iterable[Mapping[str, Any]]:
    """The rows of what modelscope loaded; images as their files' bytes, so that nothing is recompressed."""
    import datasets

    rows: Any = getattr(found, "ds_instance", found)
    if isinstance(rows, datasets.Dataset):
        for name, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(name, datasets.Image(decode=False))
    read: Iterable[Mapping[str, Any]] = rows
    return read


def write_folder(rows: Iterable[Mapping[str, Any]], data: Data, folder: Path) -> str:
    """Write rows as images and train/metadata.csv; the folder appears whole or not at all.

    Returns a line on what was written from which columns. Raises DataError.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, ROWS_TO_JUDGE_BY))
    columns = choose_columns(first, data)
    made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        (made / "train").mkdir(parents=True)
        table = [
            (
                _write_image(row[columns.image], made / "train", number),
                (row[columns.caption] or "") if columns.caption else "",
                data.subset or "",
            )
            for number, row in enumerate(itertools.chain(first, rows), start=1)
        ]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([("file_name", "text", "subset"), *table])
        write_text(made / "train" / "metadata.csv", text.getvalue())
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another study has just fetched the same
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    captions = f"captions from {columns.caption!r}" if columns.caption else "no captions"
    return (
        f"{data.source}: {len(table)} images from column {columns.image!r}, {captions} "
        f"(columns: {', '.join(first[0])})"
    )


def choose_columns(rows: Sequence[Mapping[str, Any]], data: Data) -> Columns:
    """The columns that the study names, else those that look like images and captions. Raises DataError."""
    if not rows:
        raise DataError("it has no rows")
    found = list(rows[0])
    for key, column in (("image_column", data.image_column), ("text_column", data.text_column)):
        if column is not None and column not in found:
            raise DataError(
                f"data.{key} is {column}, but there is no such column (allowed: {', '.join(found)})"
            )
    cells = {name: [row.get(name) for row in rows] for name in found}
    images = [name for name in found if name.endswith(FILE_MARK) or any(map(_is_image, cells[name]))]
    if not (data.image_column or images):
        raise DataError(
            f"no column holds images (found: {', '.join(found)}); name one with data.image_column"
        )
    texts = [name for name in found if name not in images and any(map(_is_text, cells[name]))]
    usual = {name.lower(): name for name in texts}
    caption = next((usual[name] for name in CAPTION_COLUMNS if name in usual), texts[0] if texts else None)
    if not (data.text_column or caption) and PROMPT in data.caption:
        raise DataError(
            f"no column holds captions (found: {', '.join(found)}); name one with data.text_column, "
            f"or write data.caption without {PROMPT}"
        )
    return Columns(data.image_column or images[0], data.text_column or caption)


def _is_image(value: object) -> bool:
    if isinstance(value, dict):
        return {"bytes", "path"} <= value.keys()
    return isinstance(value, Image.Image) or (
        isinstance(value, str) and Path(value).suffix.lower() in ENDINGS
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _write_image(value: object, folder: Path, number: int) -> str:
    """Write one cell and return its file name; the audit reports a file that could not be written."""
    source = value.get("path") if isinstance(value, dict) else value
    ending = Path(source).suffix.lower() if isinstance(source, str) else ""
    # images are read by their content, so a wrong ending does no harm
    file = folder / f"{number:05d}{ending if ending in ENDINGS else '.png'}"
    if isinstance(value, Image.Image):
        (value if value.mode in PNG_MODES else value.convert("RGB")).save(file)
    elif isinstance(value, dict) and value.get("bytes"):
        file.write_bytes(value["bytes"])
    elif isinstance(source, str) and Path(source).is_file():
        shutil.copyfile(source, file)
    return file.name


def _folder(data: Data, cache: Path) -> Path:
    key = content_key(data.source, data.subset, data.split, data.image_column, data.text_column)
    return cache / "datasets" / key


if __name__ == "__main__":
    main()

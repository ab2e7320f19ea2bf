"""The audit table: sizes, hashes and score of each image of a data folder, which the filters decide by."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import imagehash
import pandas as pd
from PIL import Image

from core.data.caption_table import some_of
from core.data.colour_profile import Note
from core.data.filters import BEFORE_SCORING, OPEN, why_dropped
from core.data.folder import CaptionedImage, caption_of, read_folder
from core.data.hub import as_local_folder
from core.data.image import READING, ImageError, ask, open_image
from core.files.cache import Cache
from core.files.files import sha256
from core.trial.spec import Data, Filters

HASHES = {
    "phash": imagehash.phash,
    "dhash": imagehash.dhash,
    "whash": imagehash.whash,
    "ahash": imagehash.average_hash,
}
FOLDER_COLUMNS = ("file", "path", "caption", "subset", "repeats")
IMAGE_COLUMNS = ("sha256", "width", "height", "ratio", "size", *HASHES, "score", "problem", "note")
COLUMNS = FOLDER_COLUMNS + IMAGE_COLUMNS
AUDIT_VERSION = 2  # raise it when the meaning of an audit column changes
Scorer = Callable[[Image.Image], float]
# called before image `number` of `total` is opened or scored for the first time
Looking = Callable[[int, int], object]
Row = dict[str, Any]  # column -> value


def audit(
    data: Data,
    cache: Cache,
    score: Scorer,
    scorer: str,
    filters: Filters = OPEN,
    looking: Looking = lambda number, total: None,
    note: Note = lambda text: None,
) -> pd.DataFrame:
    """One row per image: width and height in px, ratio = width / height, size in bytes, score from 1 to 10.

    `problem` is empty for a usable image, else why it cannot be used; `note` says what was ignored when it
    was read. Each content is opened only once, and scored only if the filters that need no score keep it; one
    at a time, for a score must not depend on the rest of a batch. Raises DataError when there is no such
    folder.
    """
    folder = read_folder(as_local_folder(data, cache.folder))
    rows = [
        _row(image, data.caption, cache, partial(looking, number, len(folder.images)))
        for number, image in enumerate(folder.images, start=1)
    ]
    dropped = why_dropped(_table(rows), filters).isin(BEFORE_SCORING)
    for number, row in enumerate(rows, start=1):
        if not (row["problem"] or dropped[number - 1]):
            _add_score(row, cache, score, scorer, partial(looking, number, len(rows)))
    for text in (*folder.notes, *_notes(rows)):
        note(_printable(text))
    return _table(rows)


def bad_images(table: pd.DataFrame) -> dict[str, str]:
    """File name -> reason of every image that cannot be used."""
    bad = table[table["problem"] != ""]
    return dict(zip(bad["file"].map(_printable), bad["problem"], strict=True))


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS))


def say_bad(bad: dict[str, str]) -> str:
    """The result of `bad_images` in one line for the user; names the first five."""
    named = [f"{file} ({reason})" for file, reason in bad.items()]
    listed = some_of(named, of_what=" (lora-sweep data lists them)")
    return f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be used: {listed}"


def known_score(path: Path, cache: Cache, scorer: str) -> float | None:
    """The cached score of this image's content; None where it was not scored or cannot be read."""
    try:
        _, digest = _fingerprint(path)
    except ImageError:
        return None
    return (cache.find_facts(("audit", AUDIT_VERSION, READING, digest, scorer)) or {}).get("score")


def _row(image: CaptionedImage, template: str, cache: Cache, looking: Callable[[], object]) -> Row:
    caption = caption_of(image.prompt, template)
    row: Row = asdict(image) | {"path": str(image.path), "caption": caption, "note": ""}

    def look() -> Row:
        looking()
        return look_at(image.path)

    if not image.problem:
        try:
            row["size"], row["sha256"] = _fingerprint(image.path)
            row |= cache.facts(("audit", AUDIT_VERSION, READING, row["sha256"]), look)
        except ImageError as error:
            row["problem"] = str(error)
    return row


def look_at(path: Path) -> Row:
    """Sizes, hashes and notes of one image, or its `problem`. Raises ImageError if the disk fails."""
    notes: list[str] = []
    try:
        image = open_image(path, notes.append)
    except ImageError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:
            raise  # the file system failed, which says nothing about the content: must not be cached
        return {"problem": str(error)}
    width, height = image.size
    hashes = ask(lambda seen: {name: str(method(seen)) for name, method in HASHES.items()}, image)
    return {"width": width, "height": height, "ratio": width / height, "note": "; ".join(notes), **hashes}


def _add_score(row: Row, cache: Cache, score: Scorer, scorer: str, looking: Callable[[], object]) -> None:
    def rate() -> Row:
        looking()
        return {"score": ask(score, open_image(Path(row["path"])))}

    try:
        row |= cache.facts(("audit", AUDIT_VERSION, READING, row["sha256"], scorer), rate)
    except ImageError as error:  # not cached: the next release of a library may read it
        row["problem"] = str(error)


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """Each distinct note once, with the names of the images that it is about."""
    for text in dict.fromkeys(row["note"] for row in rows if row["note"]):
        yield f"{text} ({some_names([row['file'] for row in rows if row['note'] == text])})"


def some_names(files: Sequence[str]) -> str:
    """The first five file names and how many more there are, for a message."""
    return some_of([_printable(file) for file in files])


def _fingerprint(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256, computed again only if the file changed. Raises ImageError."""
    try:
        now = path.stat()
        return now.st_size, _sha256_once(path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    except OSError as error:
        raise ImageError(f"cannot be read: {(error.strerror or type(error).__name__).lower()}") from error


@functools.cache
def _sha256_once(path: Path, *state: int) -> str:
    return sha256(path)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)

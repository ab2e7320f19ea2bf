"""The audit table: what each picture of a data folder is, so that the filters need not look at it again."""

import functools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imagehash
import pandas as pd
from PIL import Image

from core.data.colour_profile import Note
from core.data.filters import BEFORE_SCORING, OPEN, why_dropped
from core.data.folder import CaptionedPicture, caption_of, read_folder
from core.data.hub import local_data
from core.data.picture import READING, PictureError, ask, open_picture
from core.files.cache import Cache
from core.files.files import sha256
from core.trial.spec import Data, Filters

HASHES = {
    "phash": imagehash.phash,
    "dhash": imagehash.dhash,
    "whash": imagehash.whash,
    "ahash": imagehash.average_hash,
}
COLUMNS = (
    "file",
    "path",
    "caption",
    "subset",
    "repeats",
    "sha256",
    "width",
    "height",
    "ratio",
    "size",
    *HASHES,
    "score",
    "problem",
    "note",
)
AUDIT_VERSION = 2  # raise it when the meaning of an audit column changes
BAD_SHOWN = 5  # pictures that cannot be used, in one line
Scorer = Callable[[Image.Image], float]
# told before picture `number` of `total` is looked at or scored for the first time
Looking = Callable[[int, int], object]
NAMES_SHOWN = 5
Row = dict[str, Any]


def audit(
    data: Data,
    cache: Cache,
    score: Scorer,
    scorer: str,
    filters: Filters = OPEN,
    looking: Looking = lambda number, total: None,
    note: Note = lambda text: None,
) -> pd.DataFrame:
    """One row per picture: width and height in px, ratio = width / height, size in bytes, score from 1 to 10.

    `problem` is empty for a good picture, else why it cannot be used; `note` what was missed when it was
    read. Looks at each picture's content once ever, and scores, one at a time, those that `filters` keep as
    far as that needs no score: a score must not depend on what stood beside it in a batch. Raises DataError
    when there is no such folder.
    """
    folder = read_folder(local_data(data, cache.folder))
    rows = [
        _row(picture, data.caption, cache, partial(looking, number, len(folder.pictures)))
        for number, picture in enumerate(folder.pictures, start=1)
    ]
    dropped = why_dropped(_table(rows), filters).isin(BEFORE_SCORING)
    for number, row in enumerate(rows, start=1):
        if not (row["problem"] or dropped[number - 1]):
            _add_score(row, cache, score, scorer, partial(looking, number, len(rows)))
    for text in (*folder.notes, *_notes(rows)):
        note(_printable(text))
    return _table(rows)


def bad_pictures(table: pd.DataFrame) -> dict[str, str]:
    """Name -> reason of every picture that cannot be used."""
    bad = table[table["problem"] != ""]
    return dict(zip(bad["file"].map(_printable), bad["problem"], strict=True))


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(COLUMNS))


def say_bad(bad: dict[str, str]) -> str:
    """Pictures that cannot be used, in one line."""
    named = ", ".join(f"{file} ({reason})" for file, reason in list(bad.items())[:BAD_SHOWN])
    more = f" and {len(bad) - BAD_SHOWN} more (lora-sweep data lists them)" if len(bad) > BAD_SHOWN else ""
    return f"{len(bad)} picture{'s' if len(bad) > 1 else ''} cannot be used: {named}{more}"


def known_score(path: Path, cache: Cache, scorer: str) -> float | None:
    """The score that an earlier audit kept of this picture's content; None where there is none."""
    try:
        _, digest = _fingerprint(path)
    except PictureError:
        return None
    return (cache.find_facts(("audit", AUDIT_VERSION, READING, digest, scorer)) or {}).get("score")


def _row(picture: CaptionedPicture, template: str, cache: Cache, looking: Callable[[], object]) -> Row:
    row: Row = {
        "file": picture.file,
        "path": str(picture.path),
        "caption": caption_of(picture.prompt, template),
        "subset": picture.subset,
        "repeats": picture.repeats,
        "problem": picture.problem,
        "note": "",
    }

    def look() -> Row:
        looking()
        return look_at(picture.path)

    if not picture.problem:
        try:
            row["size"], row["sha256"] = _fingerprint(picture.path)
            row |= cache.facts(("audit", AUDIT_VERSION, READING, row["sha256"]), look)
        except PictureError as error:
            row["problem"] = str(error)
    return row


def look_at(path: Path) -> Row:
    notes: list[str] = []
    try:
        image = open_picture(path, notes.append)
    except PictureError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:
            raise  # the file could not be reached today, which says nothing about its content: not to be kept
        return {"problem": str(error)}
    hashes = ask(_hashes, image)
    return {
        "width": image.width,
        "height": image.height,
        "ratio": image.width / image.height,
        "note": "; ".join(notes),
        **hashes,
    }


def _hashes(image: Image.Image) -> Row:
    return {name: str(method(image)) for name, method in HASHES.items()}


def _add_score(row: Row, cache: Cache, score: Scorer, scorer: str, looking: Callable[[], object]) -> None:
    def rate() -> Row:
        looking()
        return {"score": ask(score, open_picture(Path(row["path"])))}

    try:
        row |= cache.facts(("audit", AUDIT_VERSION, READING, row["sha256"], scorer), rate)
    except PictureError as error:  # may be another library's with its next release, so it is not kept
        row["problem"] = str(error)


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What was missed when pictures were read, each once, with their names."""
    for text in dict.fromkeys(row["note"] for row in rows if row["note"]):
        yield f"{text} ({some_names([row['file'] for row in rows if row['note'] == text])})"


def some_names(files: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(files) - NAMES_SHOWN} more" if len(files) > NAMES_SHOWN else ""
    return ", ".join(map(_printable, files[:NAMES_SHOWN])) + more


def _fingerprint(path: Path) -> tuple[int, str]:
    """Bytes and sha256, read again only when the file system says that the file was touched. Raises
    PictureError.
    """
    try:
        now = path.stat()
        return now.st_size, _sha256_once(path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    except OSError as error:
        raise PictureError(f"cannot be read: {(error.strerror or type(error).__name__).lower()}") from error


@functools.cache
def _sha256_once(path: Path, *state: int) -> str:
    return sha256(path)


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)

"""The audit table: what each picture of a data folder is, so that the filters need not look at it again."""
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import imagehash
import pandas as pd
from PIL import Image

from core.cache import Cache
from core.data_folder import CaptionedPicture, caption_of, read_folder
from core.files import sha256
from core.hub_data import local_data
from core.picture import READING, PictureError, open_picture
from core.settings import Data

HASHES = {"phash": imagehash.phash, "dhash": imagehash.dhash, "whash": imagehash.whash, "ahash": imagehash.average_hash}
COLUMNS = ("file", "path", "caption", "subset", "sha256", "width", "height", "ratio", "size", *HASHES, "score", "problem")
AUDIT_VERSION = 1  # raise it when the meaning of an audit column changes
Scorer = Callable[[Image.Image], float]
Looking = Callable[[int, int], object]  # told before picture `number` of `total` is looked at for the first time
Noting = Callable[[str], object]  # told what a user must know and no row says, in one line each


def audit(data: Data, cache: Cache, score: Scorer, scorer: str, looking: Looking = lambda number, total: None,
          note: Noting = lambda text: None) -> pd.DataFrame:
    """One row per picture: width and height in px, ratio = width / height, size in bytes, score from 1 to 10.

    `problem` is empty for a good picture, else why it cannot be used. Looks at each picture's content once ever, one at
    a time: a score must not depend on what stood beside it in a batch. Raises DataError when there is no such folder.
    """
    folder = read_folder(local_data(data, cache.folder))
    for text in folder.notes:
        note(text)
    rows = _rows(folder.pictures, data.caption, cache, score, scorer, looking)
    return pd.DataFrame(list(rows), columns=list(COLUMNS))


def bad_pictures(table: pd.DataFrame) -> dict[str, str]:
    """Name -> reason of every picture that cannot be used."""
    bad = table[table["problem"] != ""]
    return dict(zip(bad["file"].map(_printable), bad["problem"], strict=True))


def _rows(pictures: Sequence[CaptionedPicture], template: str, cache: Cache, score: Scorer, scorer: str,
          looking: Looking) -> Iterator[dict]:
    for number, picture in enumerate(pictures, start=1):
        row: dict[str, Any] = {
            "file": picture.file, "path": str(picture.path), "caption": caption_of(picture.prompt, template),
            "subset": picture.subset, "problem": picture.problem}

        def look(number: int = number, path: Path = picture.path) -> dict[str, str | int | float]:
            looking(number, len(pictures))
            return _look(path, score)

        if not picture.problem:
            try:
                row["size"], row["sha256"] = _fingerprint(picture.path)
                row |= cache.facts(("audit", AUDIT_VERSION, READING, row["sha256"], scorer), look)
            except PictureError as error:
                row["problem"] = str(error)
        yield row


def _look(path: Path, score: Scorer) -> dict[str, str | int | float]:
    try:
        image = open_picture(path)
    except PictureError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno:
            raise  # the file could not be reached today, which says nothing about its content: not to be kept
        return {"problem": str(error)}
    hashes = {name: str(method(image)) for name, method in HASHES.items()}
    return {"width": image.width, "height": image.height, "ratio": image.width / image.height,
            "score": score(image), **hashes}


def _fingerprint(path: Path) -> tuple[int, str]:
    """Bytes and sha256, read again only when the file system says that the file was touched. Raises PictureError."""
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

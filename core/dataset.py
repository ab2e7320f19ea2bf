"""A folder of captioned pictures in the field's layout, and the audit table that the filters work on."""
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import imagehash
import pandas as pd
from PIL import Image, ImageOps

from core.cache import Cache
from core.files import sha256
from core.settings import Data

HASHES = {"phash": imagehash.phash, "dhash": imagehash.dhash, "whash": imagehash.whash, "ahash": imagehash.average_hash}
AUDIT_VERSION = 1  # raise it when the meaning of an audit column changes
Scorer = Callable[[Image.Image], float]


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    file: str
    path: Path
    prompt: str


def read_folder(data: Data) -> list[CaptionedPicture]:
    """Read `<source>/train/metadata.csv` (columns file_name, text; utf-8 with or without BOM).

    Raises ValueError with one line when the folder, the table or a column is missing.
    """
    train = Path(data.source) / "train"
    table = train / "metadata.csv"
    if not table.is_file():
        raise ValueError(f"{table}: not found; a data folder holds train/metadata.csv with columns file_name,text")
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"file_name", "text"} - set(rows.fieldnames or ())
    if missing:
        raise ValueError(f"{table}: column {sorted(missing)[0]} is missing (found: {rows.fieldnames})")
    return [CaptionedPicture(row["file_name"] or "", train / (row["file_name"] or ""), (row["text"] or "").strip())
            for row in rows]


def caption_of(prompt: str, template: str) -> str:
    return template.replace("{prompt}", prompt)


def open_picture(path: Path) -> Image.Image:
    """Upright RGB, transparency on white. Raises OSError, ValueError or a decompression-bomb error when unreadable."""
    with Image.open(path) as raw:
        upright = ImageOps.exif_transpose(raw)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layered = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
        return upright.convert("RGB")


def audit(data: Data, cache: Cache, score: Scorer, scorer: str) -> pd.DataFrame:
    """One row per picture: file, path, caption, sha256, width, height, ratio, size, hashes, score (1 to 10), problem.

    `problem` is empty for a good picture, else why it cannot be used. Looks at each picture's content once ever.
    """
    return pd.DataFrame(list(_rows(data, cache, score, scorer)), columns=[
        "file", "path", "caption", "sha256", "width", "height", "ratio", "size", *HASHES, "score", "problem"])


def _rows(data: Data, cache: Cache, score: Scorer, scorer: str) -> Iterator[dict]:
    root = (Path(data.source) / "train").resolve()
    for picture in read_folder(data):
        row = {"file": picture.file, "path": str(picture.path), "caption": caption_of(picture.prompt, data.caption),
               "problem": ""}
        if not picture.path.resolve().is_relative_to(root):
            yield row | {"problem": "lies outside the data folder"}
        elif not picture.path.is_file():
            yield row | {"problem": "file is missing"}
        elif "{prompt}" in data.caption and not picture.prompt:
            yield row | {"problem": "caption is empty"}
        else:
            digest = sha256(picture.path)
            facts = cache.facts(("audit", AUDIT_VERSION, digest, scorer), partial(_look, picture.path, score))
            yield row | {"sha256": digest, "size": picture.path.stat().st_size} | facts


def _look(path: Path, score: Scorer) -> dict[str, str | int | float]:
    try:
        image = open_picture(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return {"problem": f"cannot be read: {type(error).__name__}"}
    hashes = {name: str(method(image)) for name, method in HASHES.items()}
    return {"width": image.width, "height": image.height, "ratio": image.width / image.height,
            "score": score(image), **hashes}

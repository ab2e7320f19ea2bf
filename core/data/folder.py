"""A folder of captioned images, in the usual layouts: with a table, or with a text file beside each image."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.caption_table import DataError, clean, read_table, some_of
from core.data.file_kind import kind_of
from core.data.image import ENDINGS
from core.folders import RUNS_MARK, shown_path
from core.trial.spec import PROMPT, Data

TABLES = tuple(
    Path(folder, table) for folder in ("train", "") for table in ("metadata.csv", "metadata.jsonl")
)
TEXT_ENDINGS = (".txt", ".caption")  # of captions beside an image, best first
TABLE_ENDINGS = (".csv", ".jsonl", ".tsv", ".json", ".parquet", ".xlsx")
LAYOUTS = (
    "metadata.csv or metadata.jsonl with file_name and text, or images with a .txt each, there or in train/"
)
LITTER_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX")  # made by NAS boxes, Windows and macOS
COMPANIONS = ("-masklabel", "-condlabel")  # OneTrainer's masks, beside the image that they belong to
# Hugging Face's names of splits that are not for training
HELD_OUT = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")
# sd-scripts: images in a folder N_name are drawn N times; four digits are a year
REPEATS = re.compile(r"(\d{1,3})_.+")
FILE_MISSING, OUTSIDE = "file is missing", "lies outside the data folder"


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image and its caption (`prompt`); `problem` says why it cannot be used, judged without opening it.

    `file` is its name in messages and tables. `repeats` is how often it is drawn per pass.
    """

    file: str
    path: Path
    prompt: str
    subset: str = ""
    problem: str = ""
    in_table: bool = True
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """All images of a data folder; each of `notes` is a line for the user, such as what was left out."""

    images: tuple[CaptionedImage, ...]
    notes: tuple[str, ...] = ()


def read_folder(data: Data) -> ImageFolder:
    """The images in the table's order, then those not in it; without a table by name. Raises DataError."""
    root = Path(data.source)
    if not root.is_dir():
        raise DataError(f"{shown_path(root)}: {why_no_folder(root)}")
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    return _from_table(table, data) if table else _from_files(root, data)


def why_no_folder(path: Path) -> str:
    """Why `path`, which is no folder, cannot be the data folder: a half sentence for a message."""
    if not path.is_file():
        return "there is no such folder"
    if path.suffix.lower() in ENDINGS:
        return "it is an image; name the folder that it lies in"
    try:
        return kind_of(path) or "it is a file, not a folder"
    except OSError:
        return "it is a file, not a folder"


def caption_of(prompt: str, template: str) -> str:
    """The caption that is trained with: `template` is the study's `caption`, `prompt` the image's own."""
    return template.replace(PROMPT, prompt)


def _from_table(table: Path, data: Data) -> ImageFolder:
    folder, real_root = table.parent, os.path.realpath(data.source)
    everything = _files(folder)
    files, notes = _without_litter(everything, folder)
    near = _Near(files, folder)
    images: list[CaptionedImage] = []
    named: set[str] = set()
    for row in read_table(table, data):
        path = folder / row.file
        problem = row.problem or _problem(path, real_root)
        if problem in (FILE_MISSING, OUTSIDE) and (guess := near.to(row.file, path)):
            problem += f"; did you mean {_distinguished(_name(guess, folder), row.file)}?"
            named.add(_absolute(guess))
        named.add(_absolute(path))
        subset = _folder_of(row.file) if row.subset is None else row.subset
        images.append(CaptionedImage(row.file, path, row.prompt, subset, problem))
    forgotten = {path: _name(path, folder) for path in files if _absolute(path) not in named}
    problem = f"{table.name} does not name it"
    images += [
        CaptionedImage(name, path, "", _folder_of(name), problem, in_table=False)
        for path, name in forgotten.items()
    ]
    if PROMPT in data.caption:
        texts = _texts(everything)
        unread = [text for path in files for text in _texts_of(path, texts)]
        notes += _say_beside_table(table, unread, Path(data.source))
    return ImageFolder(tuple(images), notes)


def _say_beside_table(table: Path, texts: Sequence[Path], root: Path) -> tuple[str, ...]:
    """A note if there are captions elsewhere than in the table that is read."""
    tables = [root / name for name in TABLES if (root / name).is_file()]
    others = [_name(path, root) for path in (*tables[1:], *dict.fromkeys(texts))]
    note = f"captions are read from {_name(table, root)}, not from {some_of(others, 1)}"
    return (note,) if others else ()


def _name(path: Path, folder: Path) -> str:
    """A file's name in messages and tables: its path under `folder`."""
    return clean(path.relative_to(folder).as_posix())


def _distinguished(name: str, written: str) -> str:
    """A file's name; says so if it looks the same as `written` but differs in its Unicode form."""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", written)
    return f"{name}, the same letters in another Unicode form" if same else name


class _Near:
    """Finds the file that a table probably means by a name that does not exist."""

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        found = [(key, path) for path in files for key in _loose(path.relative_to(folder).as_posix())]
        times = Counter(key for key, _ in found)
        self._files = {key: path for key, path in found if times[key] == 1}

    def to(self, written: str, path: Path) -> Path | None:
        """The file whose name is `written` but for case, Unicode form, ending, folder, blanks or slashes.

        None if there are several, or if it is the file at `path` itself.
        """
        found = next((self._files[key] for key in _loose(written) if key in self._files), None)
        return None if found is None or _absolute(found) == _absolute(path) else found


def _absolute(path: Path) -> str:
    """The path without `.` and `..`; unlike Path.resolve it keeps links and so the place they stand in."""
    return os.path.abspath(path)  # noqa: PTH100  see above


def _loose(name: str) -> list[str]:
    """Keys that a name shares with near misses of it, closest first, each once."""
    whole = unicodedata.normalize("NFC", clean(name)).casefold().replace("\\", "/").strip().removeprefix("./")
    last = whole.rpartition("/")[2]
    with_ending = (key for key in (whole, last) if Path(key).suffix in ENDINGS)
    keys = (whole, last, *(os.path.splitext(key)[0] for key in with_ending))  # noqa: PTH122  not a path
    return [key for key in dict.fromkeys(keys) if key]


def _from_files(root: Path, data: Data) -> ImageFolder:
    files = _files(root)
    paths, notes = _without_litter(files, root)
    if not paths:
        raise DataError("; ".join((f"{shown_path(root)}: holds no images (allowed: {LAYOUTS})", *notes)))
    train = root / "train"
    folder = train if all(path.is_relative_to(train) for path in paths) else root
    texts = _texts(files)
    texts_by_image = {path: _texts_of(path, texts) for path in paths}
    unread = _say_tables([path.relative_to(root) for path in files if path.suffix.lower() in TABLE_ENDINGS])
    if PROMPT in data.caption and not any(texts_by_image.values()):
        raise DataError(
            f"{shown_path(folder)}: holds images but no captions; write a .txt beside each, "
            f"or data.caption without {PROMPT}" + "".join(f"; {text}" for text in unread)
        )
    real_root = os.path.realpath(root)
    images = tuple(
        _from_file(path, next(iter(texts_by_image[path]), None), folder, real_root, PROMPT in data.caption)
        for path in paths
    )
    passed_over = (*unread, *_say_more_texts(texts_by_image, root)) if PROMPT in data.caption else ()
    return ImageFolder(images, (*notes, *passed_over, *_say_repeats(images)))


def _files(folder: Path) -> list[Path]:
    """All files in the folder and below, by name, but no hidden ones and none in a runs folder.

    Of linked folders only those at the top are entered, so that a cycle of links ends.
    """
    found = {*folder.rglob("*"), *folder.glob("*/*")}
    runs = [path.parent for path in folder.rglob(RUNS_MARK) if path.parent != folder]
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not any(path.is_relative_to(inner) for inner in runs)
    )


def _without_litter(files: Sequence[Path], folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The images that are meant for training, and a note of those that are left out."""
    images = {path: path.relative_to(folder) for path in files if path.suffix.lower() in ENDINGS}
    splits = {place.parent for inner in images.values() for place in inner.parents if place.name == "train"}
    numbered = any(REPEATS.fullmatch(inner.parent.name) for inner in images.values())
    litter = {path: kind for path, inner in images.items() if (kind := _litter(inner, splits, numbered))}
    counts = Counter(kind for path, kind in litter.items() if path.is_file())
    said = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
    note = (
        f"left out: {said}; to have such images, name them in a metadata.csv, or rename them or their folder"
    )
    return [path for path in images if path not in litter], (note,) if litter else ()


def _litter(image: Path, splits: set[Path], numbered: bool) -> str:
    """The kind of an image that is not for training, judged by its place; empty if it is for training.

    `splits` are folders that hold a `train/`, beside which held-out splits lie. `numbered`: folders are named
    as for sd-scripts, where `reg/` holds regularisation images.
    """
    folders = image.parts[:-1]
    if found := next((name for name in folders if name in LITTER_FOLDERS), None):
        return f"{found}/"
    if found := next((mark for mark in COMPANIONS if image.stem.endswith(mark)), None):
        return f"*{found}{image.suffix}"
    if numbered and "reg" in folders:
        return "reg/"
    held_out = (place for place in image.parents if place.name in HELD_OUT and place.parent in splits)
    return next((f"{place.as_posix()}/" for place in held_out), "")


def _texts(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Caption files by their path with a lower-case ending; several may differ in the ending's case."""
    texts: dict[str, list[Path]] = {}
    for path in files[::-1]:
        if (ending := path.suffix.lower()) in TEXT_ENDINGS:
            texts.setdefault(str(path.with_suffix(ending)), []).append(path)
    return texts


def _texts_of(path: Path, texts: dict[str, list[Path]]) -> list[Path]:
    """`1.txt`, `1.caption`, `1.png.txt`, `1.png.caption` beside `1.png`, endings in any case, best first."""
    names = (f"{stem}{ending}" for stem in (path.with_suffix(""), path) for ending in TEXT_ENDINGS)
    return [text for name in names for text in texts.get(name, ())]


def _say_tables(tables: Sequence[Path]) -> tuple[str, ...]:
    if not tables:
        return ()
    names = [clean(path.as_posix()) for path in sorted(tables, key=lambda path: path.stem != "metadata")]
    said = f"{some_of(names, 1)} {'is' if len(names) == 1 else 'are'} not read"
    return (f"{said}: a table is metadata.csv or metadata.jsonl in data.source itself or in its train/",)


def _say_more_texts(texts_by_image: dict[Path, list[Path]], root: Path) -> tuple[str, ...]:
    """A note if an image has more caption files than the one that is read."""
    several = [texts for texts in texts_by_image.values() if len(texts) > 1]
    if not several:
        return ()
    read, *others = (_name(text, root) for text in several[0])
    count = "an image has" if len(several) == 1 else f"{len(several)} images have"
    unread = f"{', '.join(others)} {'is' if len(others) == 1 else 'are'} not"
    more = ", and so on" if len(several) > 1 else ""
    return (f"{count} more than one text: {read} is read, {unread}{more}",)


def _from_file(
    path: Path, text: Path | None, folder: Path, real_root: str, has_prompt: bool
) -> CaptionedImage:
    name = _name(path, folder)
    if folder / name != path:
        return CaptionedImage(name, folder / name, "", _folder_of(name), "its name is not UTF-8")
    prompt, problem = "", ""
    if text and not _problem(text, real_root):
        try:
            prompt = text.read_text(encoding="utf-8-sig").strip()
            problem = "" if prompt else "caption is empty"
        except UnicodeDecodeError:
            problem = f"caption {text.name} is not UTF-8"
    else:
        problem = f"caption is missing (there is no {path.with_suffix('.txt').name})"
    repeats = _repeats_of(name)
    problem = (problem if has_prompt else "") or ("" if repeats else "its folder's name says 0 repeats")
    problem = problem or _problem(path, real_root)
    return CaptionedImage(name, path, prompt, _folder_of(name), problem, repeats=repeats)


def _repeats_of(file: str) -> int:
    found = REPEATS.fullmatch(Path(file).parent.name)
    return int(found[1]) if found else 1


def _say_repeats(images: Sequence[CaptionedImage]) -> tuple[str, ...]:
    """A note if images are not all drawn equally often."""
    folders = {image.subset or "the folder itself": image.repeats for image in images if image.repeats}
    if len(set(folders.values())) < 2:
        return ()
    said = some_of([f"{folder} ({repeats})" for folder, repeats in folders.items()], of_what=" folders")
    return (
        f"images are drawn as often as their folders' names say, as by sd-scripts: {said}; "
        f"without a number: once",
    )


def _folder_of(file: str) -> str:
    """The sub-folder that an image lies in, empty at the top."""
    parent = Path(file).parent.as_posix()
    return "" if parent == "." else parent


def _problem(path: Path, real_root: str) -> str:
    """Why a file cannot be used, judged by its path alone; empty if it can."""
    try:
        if not Path(os.path.realpath(path)).is_relative_to(real_root):
            return OUTSIDE
        if not path.exists():
            return FILE_MISSING
        return "" if path.is_file() else "is no file"
    except (OSError, ValueError):  # too long, or with a character that is not allowed in file names
        return "no file can have its name"

"""A folder of captioned pictures, in any layout of the field: a table beside them, or a text file beside
each.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.caption_table import DataError as DataError
from core.data.caption_table import clean, read_table
from core.data.file_kind import kind_of
from core.data.picture import ENDINGS
from core.folders import Runs, shown_path
from core.trial.spec import PROMPT, Data

TABLES = tuple(
    Path(folder, table) for folder in ("train", "") for table in ("metadata.csv", "metadata.jsonl")
)
TABLE_ENDINGS = (".csv", ".jsonl", ".tsv", ".json", ".parquet", ".xlsx")
LAYOUTS = (
    "metadata.csv or metadata.jsonl with file_name and text, or pictures with a .txt each, there or in train/"
)
LITTER_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX")  # of NAS boxes, Windows and macOS
COMPANIONS = ("-masklabel", "-condlabel")  # OneTrainer's masks, beside the picture that they belong to
# splits, as Hugging Face names them
HELD_OUT = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")
# sd-scripts: N_name has its pictures drawn N times; four digits are a year
REPEATS = re.compile(r"(\d{1,3})_.+")
FOLDERS_SHOWN = 5
FILE_MISSING, OUTSIDE = "file is missing", "lies outside the data folder"


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """`file` is its name for people; `problem` says why it cannot be used, as far as its content is not
    needed for that.

    `repeats` is how often it is drawn where others are drawn once.
    """

    file: str
    path: Path
    prompt: str
    subset: str = ""
    problem: str = ""
    in_table: bool = True
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """`notes` say in one line each what a user must know of the folder as a whole, such as what was left out."""

    pictures: tuple[CaptionedPicture, ...]
    notes: tuple[str, ...] = ()


def read_folder(data: Data) -> PictureFolder:
    """Every picture in the table's order, then those that it forgets; or all by name. Raises DataError."""
    root = Path(data.source)
    if not root.is_dir():
        raise DataError(f"{shown_path(root)}: {why_no_folder(root)}")
    table = next((root / name for name in TABLES if (root / name).is_file()), None)
    return _from_table(table, data) if table else _from_files(root, data)


def why_no_folder(path: Path) -> str:
    if not path.is_file():
        return "there is no such folder"
    if path.suffix.lower() in ENDINGS:
        return "it is a picture; name the folder that it lies in"
    try:
        return kind_of(path) or "it is a file, not a folder"
    except OSError:
        return "it is a file, not a folder"


def caption_of(prompt: str, template: str) -> str:
    return template.replace(PROMPT, prompt)


def _from_table(table: Path, data: Data) -> PictureFolder:
    folder, real_root = table.parent, os.path.realpath(data.source)
    everything = _files(folder)
    files, notes = _without_litter(everything, folder)
    near = _Near(files, folder)
    pictures: list[CaptionedPicture] = []
    named: set[str] = set()
    for row in read_table(table, data):
        path = folder / row.file
        problem = row.problem or _problem(path, real_root)
        if problem in (FILE_MISSING, OUTSIDE) and (guess := near.to(row.file, path)):
            problem += f"; did you mean {_told_apart(clean(guess.relative_to(folder).as_posix()), row.file)}?"
            named.add(os.path.abspath(guess))
        named.add(os.path.abspath(path))
        subset = _folder_of(row.file) if row.subset is None else row.subset
        pictures.append(CaptionedPicture(row.file, path, row.prompt, subset, problem))
    forgotten = (path for path in files if os.path.abspath(path) not in named)
    pictures += [
        CaptionedPicture(
            name := clean(path.relative_to(folder).as_posix()),
            path,
            "",
            _folder_of(name),
            f"{table.name} does not name it",
            in_table=False,
        )
        for path in forgotten
    ]
    if PROMPT in data.caption:
        texts = _texts(everything)
        notes += _say_beside_table(
            table, [text for path in files for text in _words_of(path, texts)], Path(data.source)
        )
    return PictureFolder(tuple(pictures), notes)


def _say_beside_table(table: Path, texts: Sequence[Path], root: Path) -> tuple[str, ...]:
    """A note of other captions than the table's."""
    tables = [root / name for name in TABLES if (root / name).is_file()]
    others = [clean(path.relative_to(root).as_posix()) for path in (*tables[1:], *dict.fromkeys(texts))]
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return tuple(
        f"captions are read from {table.relative_to(root).as_posix()}, not from {other}{more}"
        for other in others[:1]
    )


def _told_apart(name: str, written: str) -> str:
    """A file's name, with what nobody would see that it differs in."""
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", written)
    return f"{name}, the same letters in another Unicode form" if same else name


class _Near:
    """Finds the file that a table means by a name that is not quite its own."""

    def __init__(self, files: Sequence[Path], folder: Path) -> None:
        found = [(key, path) for path in files for key in _loose(path.relative_to(folder).as_posix())]
        times = Counter(key for key, _ in found)
        self._files = {key: path for key, path in found if times[key] == 1}

    def to(self, written: str, path: Path) -> Path | None:
        """The only other file of that path or name, but for case, Unicode form, ending, folder, blanks and
        slashes.
        """
        found = next((self._files[key] for key in _loose(written) if key in self._files), None)
        return None if found is None or os.path.abspath(found) == os.path.abspath(path) else found


def _loose(name: str) -> list[str]:
    """What a name and a near miss of it have in common, closest first, no word twice."""
    whole = unicodedata.normalize("NFC", clean(name)).casefold().replace("\\", "/").strip().removeprefix("./")
    last = whole.rpartition("/")[2]
    keys = (whole, last, *(os.path.splitext(key)[0] for key in (whole, last) if Path(key).suffix in ENDINGS))
    return [key for key in dict.fromkeys(keys) if key]


def _from_files(root: Path, data: Data) -> PictureFolder:
    files = _files(root)
    paths, notes = _without_litter(files, root)
    if not paths:
        raise DataError("; ".join((f"{shown_path(root)}: holds no pictures (allowed: {LAYOUTS})", *notes)))
    train = root / "train"
    folder = train if all(path.is_relative_to(train) for path in paths) else root
    texts = _texts(files)
    words = {path: _words_of(path, texts) for path in paths}
    unread = _say_tables([path.relative_to(root) for path in files if path.suffix.lower() in TABLE_ENDINGS])
    if PROMPT in data.caption and not any(words.values()):
        raise DataError(
            f"{shown_path(folder)}: holds pictures but no captions; write a .txt beside each, or data.caption "
            f"without {PROMPT}" + "".join(f"; {text}" for text in unread)
        )
    real_root = os.path.realpath(root)
    pictures = tuple(
        _from_file(path, next(iter(words[path]), None), folder, real_root, PROMPT in data.caption)
        for path in paths
    )
    passed_over = (*unread, *_say_more_texts(words, root)) if PROMPT in data.caption else ()
    return PictureFolder(pictures, (*notes, *passed_over, *_say_repeats(pictures)))


def _files(folder: Path) -> list[Path]:
    """All files in the folder and below, by name; not what a file manager hides there, nor what sweeps drew.

    Of linked folders only those at the top are entered, so that a circle of links ends.
    """
    found = {*folder.rglob("*"), *folder.glob("*/*")}
    runs = [path.parent for path in folder.rglob(Runs(Path()).tracking_lock.name) if path.parent != folder]
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not any(path.is_relative_to(ours) for ours in runs)
    )


def _without_litter(files: Sequence[Path], folder: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The pictures among the files that are there to be trained on, and a note of the others."""
    pictures = {path: path.relative_to(folder) for path in files if path.suffix.lower() in ENDINGS}
    splits = {place.parent for inner in pictures.values() for place in inner.parents if place.name == "train"}
    numbered = any(REPEATS.fullmatch(inner.parent.name) for inner in pictures.values())
    litter = {path: kind for path, inner in pictures.items() if (kind := _litter(inner, splits, numbered))}
    counts = Counter(kind for path, kind in litter.items() if path.is_file())
    said = ", ".join(f"{kind} ({count})" for kind, count in counts.items())
    note = f"left out: {said}; to have such pictures, name them in a metadata.csv, or rename them or their folder"
    return [path for path in pictures if path not in litter], (note,) if litter else ()


def _litter(picture: Path, splits: set[Path], numbered: bool) -> str:
    """What a picture is that is no example, by its place: more is beside a `train/`, or numbered for
    sd-scripts.
    """
    folders = picture.parts[:-1]
    if found := next((name for name in folders if name in LITTER_FOLDERS), None):
        return f"{found}/"
    if found := next((mark for mark in COMPANIONS if picture.stem.endswith(mark)), None):
        return f"*{found}{picture.suffix}"
    if numbered and "reg" in folders:
        return "reg/"
    held_out = (place for place in picture.parents if place.name in HELD_OUT and place.parent in splits)
    return next((f"{place.as_posix()}/" for place in held_out), "")


def _texts(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Texts by their paths with the ending in small letters; first the one that is written so."""
    texts: dict[str, list[Path]] = {}
    for path in files[::-1]:
        if (ending := path.suffix.lower()) in (".txt", ".caption"):
            texts.setdefault(str(path.with_suffix(ending)), []).append(path)
    return texts


def _words_of(path: Path, texts: dict[str, list[Path]]) -> list[Path]:
    """`1.txt`, `1.caption`, `1.png.txt` or `1.png.caption` beside `1.png`, their endings in any case; the
    first is read.
    """
    names = [
        name.with_name(name.name + ending)
        for name in (path.with_suffix(""), path)
        for ending in (".txt", ".caption")
    ]
    return [text for name in names for text in texts.get(str(name), ())]


def _say_tables(tables: Sequence[Path]) -> tuple[str, ...]:
    if not tables:
        return ()
    first = min(tables, key=lambda path: path.stem != "metadata")
    said = (
        f"{clean(first.as_posix())} is"
        if len(tables) == 1
        else f"{clean(first.as_posix())} and {len(tables) - 1} more are"
    )
    return (
        f"{said} not read: a table is metadata.csv or metadata.jsonl in data.source itself or in its train/",
    )


def _say_more_texts(words: dict[Path, list[Path]], root: Path) -> tuple[str, ...]:
    """A note where a picture has more texts than the one that is read."""
    several = [texts for texts in words.values() if len(texts) > 1]
    if not several:
        return ()
    read, *others = (clean(text.relative_to(root).as_posix()) for text in several[0])
    count = "a picture has" if len(several) == 1 else f"{len(several)} pictures have"
    return (
        f"{count} more than one text: {read} is read, {', '.join(others)} {'is' if len(others) == 1 else 'are'} not"
        + (", and so on" if len(several) > 1 else ""),
    )


def _from_file(
    path: Path, words: Path | None, folder: Path, real_root: str, has_prompt: bool
) -> CaptionedPicture:
    name = path.relative_to(folder).as_posix()
    if clean(name) != name:
        return CaptionedPicture(
            clean(name), folder / clean(name), "", _folder_of(clean(name)), "its name is not UTF-8"
        )
    prompt, problem = "", ""
    if words and not _problem(words, real_root):
        try:
            prompt = words.read_text(encoding="utf-8-sig").strip()
            problem = "" if prompt else "caption is empty"
        except UnicodeDecodeError:
            problem = f"caption {words.name} is not UTF-8"
    else:
        problem = f"caption is missing (there is no {path.with_suffix('.txt').name})"
    repeats = _repeats_of(name)
    problem = (problem if has_prompt else "") or ("" if repeats else "its folder's name says 0 repeats")
    return CaptionedPicture(
        name, path, prompt, _folder_of(name), problem or _problem(path, real_root), repeats=repeats
    )


def _repeats_of(file: str) -> int:
    found = REPEATS.fullmatch(Path(file).parent.name)
    return int(found[1]) if found else 1


def _say_repeats(pictures: Sequence[CaptionedPicture]) -> tuple[str, ...]:
    """A note where not all pictures are drawn equally often."""
    folders = {
        picture.subset or "the folder itself": picture.repeats for picture in pictures if picture.repeats
    }
    if len(set(folders.values())) < 2:
        return ()
    said = ", ".join(f"{folder} ({repeats})" for folder, repeats in list(folders.items())[:FOLDERS_SHOWN])
    more = f" and {len(folders) - FOLDERS_SHOWN} more folders" if len(folders) > FOLDERS_SHOWN else ""
    return (
        f"pictures are drawn as often as their folders' names say, as by sd-scripts: {said}{more}; without a number: once",
    )


def _folder_of(file: str) -> str:
    """The sub-folder that a picture lies in, empty at the top."""
    parent = Path(file).parent.as_posix()
    return "" if parent == "." else parent


def _problem(path: Path, real_root: str) -> str:
    """Why a file cannot be used, judged by its place alone."""
    try:
        if not Path(os.path.realpath(path)).is_relative_to(real_root):
            return OUTSIDE
        if not path.exists():
            return FILE_MISSING
        return "" if path.is_file() else "is no file"
    except (OSError, ValueError):  # too long, or with a character that no file has
        return "no file can have its name"

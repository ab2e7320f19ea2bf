"""One line for what is wrong in a study file: the file, the key, the value, why, what is allowed, the likely fix."""
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

SHOWN_CHARACTERS = 60
PLAIN_KEY = re.compile(r"[\w.-]{1,60}")
Key = str | int
Model = TypeVar("Model", bound=BaseModel)
_SAME = object()


class StudyError(ValueError):
    """The user's words were wrong; the message is exactly one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join("".join(c if c.isprintable() else " " for c in message).split()))


@dataclass(eq=False)
class Mistake(ValueError):
    """What a check found wrong, before the file and the key are known; `at` leads from the checked value inwards."""
    why: str
    allowed: str = ""
    guess: str | None = None
    at: tuple[Key, ...] = ()
    value: Any = _SAME


def parse(model: type[Model], values: Any, file: Path, **context: Any) -> Model:
    """Turn a file's values into `model`, or raise a StudyError that names the first mistake and counts the others."""
    try:
        return model.model_validate(values, context={"file": file, **context})
    except ValidationError as found:
        first, *others = found.errors(include_url=False)
        more = f" (and {len(others)} more)" if others else ""
        raise StudyError(_line(file, first) + more) from None


def shown(value: Any) -> str:
    """A value as one short piece of text, whatever it is."""
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case str():
            return repr(value if len(value) <= SHOWN_CHARACTERS else value[:SHOWN_CHARACTERS] + "...")
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict() | BaseModel():
            return "a mapping"
    return str(value)


def shown_path(path: Path) -> str:
    """Relative to the current folder where that is shorter."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def near(word: str, words: Iterable[str]) -> str | None:
    """The word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1)), None)


def _line(file: Path, error: ErrorDetails) -> str:
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, StudyError):  # a file that this one names has its own line
        return str(cause)
    mistake = cause if isinstance(cause, Mistake) else _from_pydantic(error)
    key = _path((*error["loc"], *mistake.at)) or "the file"
    value = shown(error["input"] if mistake.value is _SAME else mistake.value)
    what = "missing" if error["type"] == "missing" else value
    allowed = f" (allowed: {mistake.allowed})" if mistake.allowed else ""
    guess = f"; did you mean {mistake.guess}?" if mistake.guess else ""
    return f"{shown_path(file)}: {key} is {what}, but {mistake.why}{allowed}{guess}"


def _from_pydantic(error: ErrorDetails) -> Mistake:
    """Our own checks leave only the shapes of containers to pydantic."""
    match error["type"]:
        case "missing":
            return Mistake("it has no default and must be written")
        case "tuple_type" | "list_type":
            return Mistake("it must be a list", "[...] or one `- ` line for each entry")
        case "dict_type":
            return Mistake("it must be a mapping", "{key: value} or one `key: value` line for each")
    return Mistake(error["msg"][:1].lower() + error["msg"][1:])


def _path(loc: tuple[Key, ...]) -> str:
    """`scenes[3].seed`: entries count from 1, as the pictures do; pydantic's own tags (`<range>`) are left out."""
    path = ""
    for key in loc:
        if isinstance(key, int):
            path += f"[{key + 1}]"
        elif not key.startswith("<"):
            path += ("." if path else "") + (key if PLAIN_KEY.fullmatch(key) else shown(key))
    return path

"""Mistakes in a study file as one line each: the file, the key, the value, why it is wrong, what is allowed,
the likely fix.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar, cast

from pydantic import BaseModel, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails, InitErrorDetails

from core.errors import UserError
from core.folders import shown_path

SHOWN_CHARACTERS = 60
FOLLOWS = "default_factory_not_called"  # pydantic's error that only follows from a mistake in another key
PLAIN_KEY = re.compile(r"[\w.-]{1,60}")
Key = str | int
Model = TypeVar("Model", bound=BaseModel)
Checked = TypeVar("Checked")
_SAME = object()


class StudyError(UserError):
    """A study or story file is not valid; the message has exactly one line for each mistake."""

    def __init__(self, *mistakes: str) -> None:
        self.lines = tuple(
            " ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in mistakes
        )
        super().__init__("\n".join(self.lines))


@dataclass(eq=False)
class Mistake(ValueError):
    """What a check found wrong, raised before the file and the key are known. `at` is the path from the
    checked value to the wrong one, `value` the wrong one if it is not the checked one.
    """

    why: str
    allowed: str = ""
    guess: str | None = None
    at: tuple[Key, ...] = ()
    value: object = _SAME


class UnknownKey(Mistake):
    """A key that nothing reads; its value does not matter."""

    def __init__(
        self, key: Key, known: Iterable[str], guess: str | None, within: tuple[Key, ...] = ()
    ) -> None:
        super().__init__("there is no such key", ", ".join(known), guess, (*within, key))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where values were written: pydantic's context of their validation."""

    file: Path
    data_may_be_gone: bool = False

    @classmethod
    def of(cls, info: ValidationInfo) -> Self:
        """That of the values that are being validated."""
        assert isinstance(info.context, cls), "a study is made by load_study"
        return info.context


def parse(model: type[Model], values: object, origin: Origin) -> Model:
    """Validate `values` as `model`; a StudyError has a line for every mistake."""
    try:
        return model.model_validate(values, context=origin)
    except ValidationError as found:
        errors = [error for error in found.errors(include_url=False) if error["type"] != FOLLOWS]
        lines = [line for error in errors for line in _lines(origin.file, error)]
        raise StudyError(*dict.fromkeys(lines)) from None


def combined(errors: Iterable[Mistake | ValidationError]) -> ValidationError:
    """Several mistakes, of ours and of pydantic's, as a single error for a pydantic validator to raise."""
    details: list[InitErrorDetails] = []
    for error in errors:
        if isinstance(error, Mistake):
            details.append(InitErrorDetails(type="value_error", input=error.value, ctx={"error": error}))
        else:  # the error's own details, of which pydantic reads the same keys
            details += cast(list[InitErrorDetails], error.errors(include_url=False))
    return ValidationError.from_exception_data("study", details)


def all_checked(checks: Iterable[Callable[[], Checked]]) -> list[Checked]:
    """The results of all checks; if any of them raise mistakes, all of those as one ValidationError."""
    checked, errors = [], []
    for check in checks:
        try:
            checked.append(check())
        except (Mistake, ValidationError) as error:
            errors.append(error)
    if errors:
        raise combined(errors)
    return checked


def shown(value: object) -> str:
    """Any value as a short text for an error message."""
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


def near(written: str, known: Iterable[str]) -> str | None:
    """The one of the `known` names that was probably meant; None if none is similar."""
    return next(iter(difflib.get_close_matches(written, list(known), n=1)), None)


def sentence(mistake: Mistake, loc: tuple[Key, ...] = (), value: str = "") -> str:
    """A mistake as a sentence, such as
    `lora_rank is 3, but space.lora_rank does not reach it (allowed: 2, 4)`.

    `loc` is the path to the checked value in the file, `value` that value as text.
    """
    key = _path((*loc, *mistake.at)) or "the file"
    if isinstance(mistake, UnknownKey):
        hint = f"did you mean {mistake.guess}?" if mistake.guess else f"allowed: {mistake.allowed}"
        return f"unknown key {key} ({hint})"
    allowed = f" (allowed: {mistake.allowed})" if mistake.allowed else ""
    guess = f"; did you mean {mistake.guess}?" if mistake.guess else ""
    wrong = value if mistake.value is _SAME else shown(mistake.value)
    return f"{key} is {wrong}, but {mistake.why}{allowed}{guess}"


def _lines(file: Path, error: ErrorDetails) -> tuple[str, ...]:
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, StudyError):  # from another file that this one names
        return cause.lines
    mistake = cause if isinstance(cause, Mistake) else _from_pydantic(error)
    value = "missing" if error["type"] == "missing" else shown(error["input"])
    return (f"{shown_path(file)}: {sentence(mistake, error['loc'], value)}",)


def _from_pydantic(error: ErrorDetails) -> Mistake:
    """An error that pydantic itself found: these are only missing keys and wrong kinds of containers."""
    match error["type"]:
        case "missing":
            return Mistake("it has no default and must be written")
        case "tuple_type" | "list_type":
            return Mistake("it must be a list", "[...] or one `- ` line for each entry")
        case "dict_type":
            return Mistake("it must be a mapping", "{key: value} or one `key: value` line for each")
    return Mistake(error["msg"][:1].lower() + error["msg"][1:])


def _path(loc: tuple[Key, ...]) -> str:
    """A path such as `scenes[3].seed`: entries count from 1, as the images do; the tags of pydantic's unions
    (`<range>`) are left out.
    """
    path = ""
    for key in loc:
        if isinstance(key, int):
            path += f"[{key + 1}]"
        elif not key.startswith("<"):
            path += ("." if path else "") + (key if PLAIN_KEY.fullmatch(key) else shown(key))
    return path

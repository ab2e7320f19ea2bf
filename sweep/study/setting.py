"""What each value of a study file may be, for fixed values and for the ranges that are searched."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, MISSING, asdict, dataclass, fields, is_dataclass
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import Doc

from core.trial.spec import NOT_BLANK, Bounds, Filters, Form, Rendering, Training
from sweep.study.errors import Key, Mistake, UnknownKey, combined, near

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
MAX_SEED = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Setting:
    """A value in a study file: its kind, meaning and bounds, for pydantic's validation and JSON schema."""

    kind: type[Any]
    meaning: str
    _: KW_ONLY
    low: float = 0
    high: float = 0
    above: bool = False  # `low` itself is not allowed
    multiple_of: int = 1
    choices: tuple[str, ...] = ()
    pattern: str = ""
    form: str = ""  # the pattern described for the user
    optional: bool = False  # may be empty (YAML's null)

    @property
    def allowed(self) -> str:
        """The allowed values, for error lines and tables: `1 to 256`, `auto, on, off`, `text, or null`."""
        none = ", or null" if self.optional else ""
        if self.kind not in (int, float):
            return (", ".join(self.choices) or self.form or KINDS[self.kind]) + none
        bounds = f"more than {self.low}, up to {self.high}" if self.above else f"{self.low} to {self.high}"
        return bounds + (f" in steps of {self.multiple_of}" if self.multiple_of > 1 else "") + none

    @classmethod
    def of(cls, annotation: object) -> Self:
        """From a dataclass field's annotation: `Annotated[int | None, Bounds(1, 256), Doc("...")]`."""
        written, *marks = get_args(annotation)
        parts = get_args(written)  # of `int | None` both, of a Literal its choices
        choices = parts if get_origin(written) is Literal else ()
        rules = next((asdict(mark) for mark in marks if isinstance(mark, Bounds | Form)), {})
        kind = str if choices else parts[0] if parts else written
        assert kind not in (int, float) or "high" in rules, f"{annotation} has no Bounds"
        meaning = next(mark.documentation for mark in marks if isinstance(mark, Doc))
        return cls(kind, meaning, choices=choices, optional=NoneType in parts, **rules)

    def check(self, value: Any, *at: Key) -> Any:  # noqa: ANN401  anything from a file -> a value of `kind`
        """The value as `kind`, or None if `optional`. Raises Mistake; `at` is the path to the value."""
        if value is None and self.optional:
            return None
        if type(value) is not self.kind and not (self.kind is float and type(value) is int):
            bare = self.kind is str and isinstance(value, dict | list)  # YAML's own brackets
            guess = "text in quotes" if bare else None
            raise self._mistake(f"it must be {KINDS[self.kind]}", value, at, guess)
        if self.kind is str:
            return self._check_text(value, at)
        return value if self.kind is bool else self._check_number(value, at)

    def _check_text(self, text: str, at: tuple[Key, ...]) -> str:
        if self.choices and text not in self.choices:
            raise self._mistake("there is no such choice", text, at, near(text, self.choices))
        if UNPRINTABLE.search(text):
            raise self._mistake("it holds a control character", text, at)
        if self.pattern and not re.fullmatch(self.pattern, text, re.DOTALL):
            why = "it is not of that form" if text.strip() else "it must not be blank"
            raise self._mistake(why, text, at)
        return text

    def _check_number(self, number: float, at: tuple[Key, ...]) -> float:
        if isinstance(number, float) and not math.isfinite(number):
            raise self._mistake("it must be finite", number, at)
        if number < self.low or (self.above and number == self.low):
            raise self._mistake("it is too small", number, at)
        if number > self.high:
            raise self._mistake("it is too large", number, at)
        if self.multiple_of > 1 and (rest := number % self.multiple_of):
            nearest = (number - rest, number - rest + self.multiple_of)
            guess = " or ".join(str(n) for n in nearest if n and self.low <= n <= self.high)
            raise self._mistake(f"it is no multiple of {self.multiple_of}", number, at, guess)
        return float(number) if self.kind is float else number

    def _mistake(self, why: str, value: object, at: tuple[Key, ...], guess: str | None = None) -> Mistake:
        return Mistake(why, self.allowed, guess, at, value)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        kind: object = [JSON_TYPES[self.kind], "null"] if self.optional else JSON_TYPES[self.kind]
        json: dict[str, object] = {"description": self.meaning, "type": kind}
        if self.kind in (int, float):
            json |= {"exclusiveMinimum" if self.above else "minimum": self.low, "maximum": self.high}
        if self.multiple_of > 1:
            json["multipleOf"] = self.multiple_of
        if self.choices:
            json["enum"] = list(self.choices)
        if self.pattern:
            json["pattern"] = f"^(?:{self.pattern})$"
        return json


def text(meaning: str, *, optional: bool = False) -> Setting:
    """A setting for text that must not be blank."""
    return Setting(str, meaning, pattern=NOT_BLANK.pattern, optional=optional)


def check_template(template: str, slot: str, allowed: str) -> str:
    """The template itself; its only braces must be those of `slot`, such as {scene}. Raises Mistake for any
    other placeholder, which would not be filled in.
    """
    braces = re.findall(rf"\{{(?:{re.escape(slot)}|[^{{}}])*\}}", template)
    if wrong := next((found for found in braces if found != slot), None):
        raise Mistake(f"there is no {wrong} to fill in", allowed, slot)
    if found := re.search(r"[{}｛｝]", template.replace(slot, "")):
        raise Mistake(f"its {found[0]} is no part of a {slot}", allowed, slot)
    name = slot[1:-1]
    if found := re.search(
        rf"\$\{{?{name}\b\}}?|%\({name}\)s?|%{name}%|<{name}>|\[{name}\]|%s(?!\w)", template
    ):
        raise Mistake(f"{found[0]} is not filled in", allowed, slot)
    return template


SECTIONS = {"train": Training, "render": Rendering, "data.filters": Filters}
HOMES = {field.name: home for home, section in SECTIONS.items() for field in fields(section)}
SETTINGS = {field.name: Setting.of(field.type) for section in SECTIONS.values() for field in fields(section)}


class Section(BaseModel):
    """A mapping in a study file. An unknown key is a mistake, named with the known key that it resembles."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="wrap")
    @classmethod
    def _check_keys(cls, values: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raises the mistakes in the keys and those in the values as one error."""
        if isinstance(values, cls):
            return values
        if not isinstance(values, dict):
            raise Mistake("it must be a mapping", f"the keys {', '.join(cls.model_fields)}", value=values)
        mistakes = cls.mistaken_keys(values)
        # a misspelt key is read as the one that was meant, so that its value is checked too
        meant = {mistake.at[0]: mistake.guess for mistake in mistakes if isinstance(mistake, UnknownKey)}
        read = {meant[key]: value for key, value in values.items() if meant.get(key)} | values
        try:
            made = handler({key: value for key, value in read.items() if key in cls.model_fields})
        except ValidationError as found:
            raise combined([*mistakes, found]) from None
        if mistakes:
            raise combined(mistakes)
        return made

    @classmethod
    def mistaken_keys(cls, values: Mapping[str, object]) -> list[Mistake]:
        """A mistake for each unknown key."""
        known = cls.model_fields
        return [
            UnknownKey(key, known, near(key, known) or (f"{HOMES[key]}.{key}" if key in HOMES else None))
            for key in values
            if key not in known
        ]


class Checked:
    """Pydantic annotation for a dataclass with fields annotated as in core.trial.spec: validates a mapping of
    a study file and makes the dataclass of it. `further` has additional checks by field name."""

    def __init__(self, **further: Callable[..., Any]) -> None:
        self._further = further

    def model(self, section: type[Any]) -> type[Section]:
        """The dataclass as a pydantic model."""
        keys: dict[str, Any] = {
            field.name: (self._annotation(field.name, field.type), field.default) for field in fields(section)
        }
        keys |= {name: (kind, ...) for name, (kind, default) in keys.items() if default is MISSING}
        return create_model(section.__name__, __base__=Section, __doc__=section.__doc__, **keys)

    def _annotation(self, name: str, declared: Any) -> object:  # noqa: ANN401  an annotation
        if is_dataclass(declared.__origin__):  # it is annotated with its own Checked
            return declared
        check = Annotated[Any, Setting.of(declared)]
        return Annotated[check, AfterValidator(self._further[name])] if name in self._further else check

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda read: source(**dict(read)),
            handler.generate_schema(self.model(source)),
            serialization=core_schema.plain_serializer_function_ser_schema(asdict),
        )

"""The search space: the choices or the range of each setting that is searched. Does not import Optuna."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Annotated, Any, TypeGuard

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag

from core.trial.spec import Value
from sweep.study.errors import SHOWN_CHARACTERS, Mistake, UnknownKey, all_checked, near, shown
from sweep.study.setting import SETTINGS, Section, Setting

MAX_STEPS = 10**6
NEAR_EDGE = 0.05  # share of a range without steps that counts as its edge
ON_STEP = 1e-8  # tolerance, in steps, as in Optuna 5 (distributions.py)


class Choices(Section):
    """One of a few values, in no order."""

    choices: tuple[Any, ...] = Field(description="The values to choose from, each once")

    @property
    def start(self) -> Value:
        """The value that the base model's own story is rendered with: the first choice."""
        return self.value_at(0)

    @property
    def values(self) -> tuple[Any, ...]:
        """The values from which bounds are taken: all choices."""
        return self.choices

    def allows(self, value: object) -> bool:
        """Whether `value` is one of the choices."""
        return value in self.choices

    @property
    def count(self) -> float:
        """How many choices there are."""
        return len(self.choices)

    def position(self, value: object) -> int | None:
        """The index of a value, from 0; None if it is none of the choices."""
        return self.choices.index(value) if self.allows(value) else None

    def value_at(self, position: int) -> Value:
        """The choice at an index from 0."""
        choice: Value = self.choices[position]
        return choice

    def __str__(self) -> str:
        return ", ".join("null" if choice is None else shown(choice).strip("'") for choice in self.choices)


class Range(Section):
    """A number from `low` to `high`, both included."""

    low: Any = Field(description="The smallest number", json_schema_extra={"type": "number"})
    high: Any = Field(description="The largest number", json_schema_extra={"type": "number"})
    step: Any = Field(
        None,
        json_schema_extra={"type": ["number", "null"]},
        description="Distance between the numbers, from low on; by default 1, 64 for size_px, none for "
        "fractions",
    )
    log: Annotated[bool, Setting(bool, "Whether small numbers get as many trials as large ones")] = False

    @property
    def start(self) -> float:
        """The value that the base model's own story is rendered with: the smallest."""
        return self.value_at(0)

    @property
    def values(self) -> tuple[Any, ...]:
        """The values from which bounds are taken: both ends."""
        return self.low, self.high

    @property
    def distance(self) -> float | None:
        """From one number to the next; None for a range of real numbers."""
        return self.step or (1 if isinstance(self.low, int) else None)

    def allows(self, value: object) -> TypeGuard[float]:
        """Whether `value` is a number in the range and on a step."""
        if not isinstance(value, Real) or not self.low <= value <= self.high:
            return False
        steps: float = (value - self.low) / self.distance if self.distance else 0
        return abs(steps - round(steps)) < ON_STEP

    @property
    def count(self) -> float:
        """How many numbers there are; infinity for a range of real numbers."""
        if self.low == self.high:
            return 1
        return round((self.high - self.low) / self.distance) + 1 if self.distance else math.inf

    def position(self, value: object) -> int | None:
        """The number of steps from `low` to a value; None if the value is not allowed."""
        if not self.allows(value):
            return None
        return round((value - self.low) / self.distance) if self.distance else 0

    def value_at(self, position: int) -> float:
        """The number that is `position` steps above `low`."""
        number: float = self.low
        return min(self.high, number + position * self.distance) if position and self.distance else number

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (
            f" in steps of {self.step}" if self.step and self.step != 1 else ""
        )


def _has_choices(search: object) -> bool:
    return "choices" in search if isinstance(search, dict) else isinstance(search, Choices)


def _refuse_bare_list(search: object) -> object:
    if isinstance(search, list):
        written = yaml.safe_dump(search, default_flow_style=True, allow_unicode=True, width=10_000).strip()
        raise Mistake(
            "it must be a mapping", "choices, or low and high", f"{{choices: {written[:SHOWN_CHARACTERS]}}}"
        )
    return search


Search = Annotated[
    Annotated[Choices, Tag("<choices>")] | Annotated[Range, Tag("<range>")],
    Discriminator(lambda search: "<choices>" if _has_choices(search) else "<range>"),
    BeforeValidator(_refuse_bare_list),
]


Space = Mapping[str, Choices | Range]


def edges(space: Space, best: Mapping[str, object]) -> list[str]:
    """A line for each setting whose best value lies at an edge of its search, where a wider search is
    possible. `best` has the parameters of the best trial.
    """
    found = ((name, search, _edge(SETTINGS[name], search, best[name])) for name, search in space.items())
    return [
        f"the best {name}, {shown(best[name])}, is at the {edge} end of its search ({search}): "
        "a wider one may hold a better"
        for name, search, edge in found
        if edge
    ]


def _edge(setting: Setting, search: Choices | Range, value: object) -> str:
    """`lower`, `upper`, or "" if the value is at no edge. A bound of the setting itself is no edge, nor is
    either of two choices.
    """
    if setting.kind not in (int, float) or not isinstance(value, int | float) or None in search.values:
        return ""
    low, high = min(search.values), max(search.values)
    if low == high or (isinstance(search, Choices) and len(search.choices) < 3):
        return ""
    ends = (low, high, value)
    low, high, value = map(math.log, ends) if isinstance(search, Range) and search.log else ends
    margin = NEAR_EDGE * (high - low) if isinstance(search, Range) and not search.step else 0
    if value <= low + margin and min(search.values) > setting.low:
        return "lower"
    return "upper" if value >= high - margin and max(search.values) < setting.high else ""


def check_space(
    space: Mapping[str, object], read: Callable[[object], dict[str, Choices | Range]]
) -> dict[str, Choices | Range]:
    """The search of each setting, by `read` from what was written; raises all mistakes at once."""

    def check(name: str) -> Choices | Range:
        return check_search(name, read({name: space[name]})[name])

    names, searches = (partial(_check_name, name) for name in space), (partial(check, name) for name in space)
    checks: list[Callable[[], Choices | Range | None]] = [*searches, *names]
    checked = all_checked(checks)  # the names' results are None and come last
    return {name: search for name, search in zip(space, checked, strict=False) if search is not None}


def check_search(name: str, search: Choices | Range) -> Choices | Range:
    """The search with its values in the setting's own type. Raises Mistake if it allows a value that the
    setting does not.
    """
    _check_name(name)
    if isinstance(search, Choices):
        return _check_choices(name, SETTINGS[name], search)
    return _check_range(name, SETTINGS[name], search)


def _check_name(name: str) -> None:
    if name not in SETTINGS:
        raise UnknownKey(name, SETTINGS, near(name, SETTINGS))


def _check_choices(name: str, setting: Setting, search: Choices) -> Choices:
    choices = tuple(setting.check(value, name, "choices", i) for i, value in enumerate(search.choices))
    if not choices:
        raise Mistake("there must be something to choose", setting.allowed, at=(name, "choices"), value=[])
    for i, value in enumerate(choices):
        if value in choices[:i]:
            raise Mistake("it is there twice", "each value once", at=(name, "choices", i), value=value)
    return Choices(choices=choices)


def _check_range(name: str, setting: Setting, search: Range) -> Range:
    if setting.kind not in (int, float):
        raise Mistake("it has no order", setting.allowed, "choices: [...]", (name,), search)
    number = replace(setting, optional=False)
    low, high = number.check(search.low, name, "low"), number.check(search.high, name, "high")
    distance = replace(setting, low=0, above=True, optional=True)
    step = distance.check(search.step, name, "step")
    step = step or (setting.multiple_of if setting.multiple_of > 1 else None)
    if low > high:
        raise Mistake(f"low is {low}", f"{low} to {setting.high}", at=(name, "high"), value=high)
    if search.log and low <= 0:
        raise Mistake(
            "a logarithm needs more than 0", f"more than 0, up to {high}", at=(name, "low"), value=low
        )
    if step and high - low > MAX_STEPS * step:
        raise Mistake(
            "that makes more than a million steps", "a larger step, or none", at=(name, "step"), value=step
        )
    if search.log and step not in (None, 1):
        raise Mistake("a logarithmic range has no step", "log or step", at=(name, "log"), value=True)
    found = Range(low=low, high=high, step=step, log=search.log)
    if not found.allows(high):
        last = low + (high - low) // step * step
        allowed = f"{round(last, 10)} or {round(last + step, 10)}"
        raise Mistake(f"steps of {step} from {low} miss it", allowed, at=(name, "high"), value=high)
    return found

"""The search space: what may be chosen for each setting that the study searches. No Optuna."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Annotated, Any, Protocol

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag

from sweep.study.errors import SHOWN_CHARACTERS, Mistake, UnknownKey, all_checked, near, shown
from sweep.study.setting import SETTINGS, Section, Setting

MAX_STEPS = 10**6
NEAR_EDGE = 0.05  # of a range without steps
ON_STEP = 1e-8  # as exact as Optuna 5 is about a value being on a step (distributions.py)


class Choices(Section):
    """One of a few values, in no order."""

    choices: tuple[Any, ...] = Field(description="The values to choose from, each once")

    @property
    def start(self) -> Any:
        """The value that stands for the search where nothing is sampled."""
        return self.choices[0]

    @property
    def values(self) -> tuple[Any, ...]:
        """The values that bound the search."""
        return self.choices

    def allows(self, value: Any) -> bool:
        return value in self.choices

    @property
    def count(self) -> float:
        """How many values there are."""
        return len(self.choices)

    def position(self, value: Any) -> int | None:
        """Where a value stands among them, from 0; None where it is none of them."""
        return self.choices.index(value) if self.allows(value) else None

    def value_at(self, position: int) -> Any:
        return self.choices[position]

    def __str__(self) -> str:
        return ", ".join("null" if choice is None else shown(choice).strip("'") for choice in self.choices)


class Range(Section):
    """A number from `low` to `high`, both included."""

    low: Any = Field(description="The smallest number", json_schema_extra={"type": "number"})
    high: Any = Field(description="The largest number", json_schema_extra={"type": "number"})
    step: Any = Field(
        None,
        json_schema_extra={"type": ["number", "null"]},
        description="Distance between the numbers, from low on; by default 1, 64 for size_px, none for fractions",
    )
    log: Annotated[
        bool, Setting(kind=bool, meaning="Whether small numbers get as many trials as large ones")
    ] = False

    @property
    def start(self) -> Any:
        return self.low

    @property
    def values(self) -> tuple[Any, ...]:
        return self.low, self.high

    @property
    def distance(self) -> Any:
        """From one number to the next; None where there are fractions of any kind."""
        return self.step or (1 if isinstance(self.low, int) else None)

    def allows(self, value: Any) -> bool:
        if not isinstance(value, Real) or not self.low <= value <= self.high:
            return False
        steps: float = (value - self.low) / self.distance if self.distance else 0
        return abs(steps - round(steps)) < ON_STEP

    @property
    def count(self) -> float:
        """How many numbers there are; infinity where there are any."""
        if self.low == self.high:
            return 1
        return round((self.high - self.low) / self.distance) + 1 if self.distance else math.inf

    def position(self, value: Any) -> int | None:
        """Where a number stands among them, from 0; None where it is none of them."""
        if not self.allows(value):
            return None
        return round((value - self.low) / self.distance) if self.distance else 0

    def value_at(self, position: int) -> Any:
        return min(self.high, self.low + position * self.distance) if position else self.low

    def __str__(self) -> str:
        return f"{self.low} to {self.high}" + (
            f" in steps of {self.step}" if self.step and self.step != 1 else ""
        )


def _has_choices(search: Any) -> bool:
    return "choices" in search if isinstance(search, dict) else isinstance(search, Choices)


def _refuse_bare_list(search: Any) -> Any:
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


class Searched(Protocol):
    """What of a study is needed here."""

    @property
    def space(self) -> Space: ...


def edges(study: Searched, best: Mapping[str, Any]) -> list[str]:
    """In one line each, the settings whose best value lies at the edge of what is searched, where a wider
    search could go on.
    """
    found = (
        (name, search, _edge(SETTINGS[name], search, best[name])) for name, search in study.space.items()
    )
    return [
        f"the best {name}, {shown(best[name])}, is at the {edge} end of its search ({search}): a wider one may hold a better"
        for name, search, edge in found
        if edge
    ]


def _edge(setting: Setting, search: Choices | Range, value: Any) -> str:
    """`lower` or `upper`, or nothing. The end that the setting itself sets is no edge, nor is any of two
    choices.
    """
    if setting.kind not in (int, float) or value is None or None in search.values:
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
    space: dict[str, Any], read: Callable[[Any], dict[str, Choices | Range]]
) -> dict[str, Choices | Range]:
    """Each search as `read` makes it of what was written, in its setting's own type; all mistakes at once."""

    def check(name: str) -> Choices | Range:
        return check_search(name, read({name: space[name]})[name])

    names, searches = (partial(_check_name, name) for name in space), (partial(check, name) for name in space)
    return dict(zip(space, all_checked([*searches, *names]), strict=False))


def check_search(name: str, search: Choices | Range) -> Choices | Range:
    """The search with its values in the setting's own type; a Mistake where it could never give a good value."""
    _check_name(name)
    if isinstance(search, Choices):
        return _check_choices(name, SETTINGS[name], search)
    return _check_range(name, SETTINGS[name], search)


def _check_name(name: str) -> Any:
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
    step = distance.check(search.step, name, "step") or (
        setting.multiple_of if setting.multiple_of > 1 else None
    )
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

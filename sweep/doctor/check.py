"""One line of the doctor's answer."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What was found, and what to do about it; `missing` means that the study cannot run like this.

    `files` are those that are missing, where it is about files.
    """

    name: str
    state: Literal["OK", "warn", "missing"]
    found: str
    todo: str = ""
    files: tuple[str, ...] = ()

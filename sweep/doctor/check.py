"""The result of one check."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """What was found, and what to do about it; with state `missing` the study cannot run.

    `files` lists missing files, each with its size.
    """

    state: Literal["OK", "warn", "missing"]
    found: str
    todo: str = ""
    files: tuple[str, ...] = ()

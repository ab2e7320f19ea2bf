"""The two streams to the user: what nobody can take is lost, a character that does not fit is escaped, and
nothing ends for it.
"""

import io
import os
import sys
from typing import Any, TextIO

from rich.console import Console

from sweep.process.environment import NOT_PASSED_ON

LOG_WIDTH = 104  # a log or a pipe has no edge to fold at
# Colours and a live display are for terminals, whatever FORCE_COLOR says: notebooks and CI set it for all
# their children.
out = Console(highlight=False, force_terminal=os.isatty(1))
err = Console(highlight=False, force_terminal=os.isatty(2), stderr=True)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = LOG_WIDTH


def steady() -> None:
    """Make standard output and error so, also for what libraries print."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        # closed by whoever started us: the next file opened, such as a database, must not become our output
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    out.file = sys.stdout = _stream(1, sys.stdout)
    err.file = sys.stderr = _stream(2, sys.stderr)


def _stream(number: int, before: TextIO | None) -> TextIO:
    raw: io.RawIOBase = _Lossy(number, "w", closefd=False)
    encoding = before.encoding if before else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


class _Lossy(io.FileIO):
    """A pipe whose reader left, a full disk under a log, a terminal that hung up."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def say(line: str) -> None:
    """One line to people, whatever is in it."""
    out.print(line, markup=False, soft_wrap=True)


def warn(line: str) -> None:
    """The same on standard error."""
    err.print(line, markup=False, soft_wrap=True)


def complain(words: str) -> None:
    """What kept a command from its work, each line with the program's name."""
    for line in words.splitlines():
        warn(f"lora-sweep: {line}")


def say_not_passed_on() -> None:
    """Name the variables that are kept from the libraries, if there are any."""
    if NOT_PASSED_ON:
        say(
            f"note: environment variables not passed on to the libraries, because the study decides: {', '.join(NOT_PASSED_ON)}"
        )

"""Standard output and standard error: what cannot be written is dropped, a character that the encoding lacks
is escaped, and neither raises an error.
"""

import io
import os
import sys
from typing import TextIO

from rich.console import Console
from typing_extensions import Buffer

from sweep.process.environment import NOT_PASSED_ON

LOG_WIDTH = 104  # a log or a pipe has no edge to fold at
# Colours and a live display are for terminals, whatever FORCE_COLOR says: notebooks and CI set it for all
# their children.
out = Console(highlight=False, force_terminal=os.isatty(1))
err = Console(highlight=False, force_terminal=os.isatty(2), stderr=True)
if not out.is_terminal and "COLUMNS" not in os.environ:
    out.width = LOG_WIDTH


def steady() -> None:
    """Replace sys.stdout and sys.stderr by streams that never raise, also for what libraries print."""
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
    """Drops what cannot be written: to a closed pipe, to a log on a full disk, to a terminal that hung up."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def say(line: str) -> None:
    """Print one line on standard output as it is, without markup and without folding."""
    out.print(line, markup=False, soft_wrap=True)


def warn(line: str) -> None:
    """Print one line on standard error as it is, without markup and without folding."""
    err.print(line, markup=False, soft_wrap=True)


def complain(message: str) -> None:
    """Print an error message on standard error, each line after the program's name."""
    for line in message.splitlines():
        warn(f"lora-sweep: {line}")


def say_not_passed_on() -> None:
    """Print the environment variables that are kept from the libraries, if there are any."""
    if NOT_PASSED_ON:
        say(
            "note: environment variables not passed on to the libraries, because the study decides: "
            f"{', '.join(NOT_PASSED_ON)}"
        )

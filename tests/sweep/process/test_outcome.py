"""How a command ends, by what was raised."""

import errno

import pytest

from core.errors import LoraSweepError, UserError
from sweep.driver import SweepRefused
from sweep.process.outcome import outcome
from sweep.resume.lock import CannotWrite, StudyBusy
from sweep.study.errors import StudyError

ENDS = [
    (LoraSweepError("why"), ("why", 1)),
    (CannotWrite("why"), ("why", 1)),
    (UserError("why"), ("why", 2)),
    (StudyError("why"), ("why", 2)),
    (StudyBusy("why"), ("why", 2)),
    (SweepRefused("why"), ("why", 2)),
    (OSError(errno.ENOSPC, "No space left", "runs"), ("runs: No space left", 1)),
]


def ending(error: Exception) -> tuple[str, int]:
    def command() -> None:
        raise error

    return outcome(command)


@pytest.mark.parametrize(("error", "end"), ENDS, ids=[type(error).__name__ for error, _ in ENDS])
def test_what_is_meant_for_the_user_is_a_line_and_an_exit_code(
    error: Exception, end: tuple[str, int]
) -> None:
    assert ending(error) == end


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("x"), NotImplementedError("x"), KeyError("x")]
)
def test_what_a_library_raises_is_a_bug_and_is_not_told_as_the_user_s_mistake(error: Exception) -> None:
    with pytest.raises(type(error)):
        ending(error)

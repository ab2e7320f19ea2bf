"""Errors that a command reports to the user in one line; any other exception is a bug."""


class LoraSweepError(Exception):
    """A command failed for a reason outside the program; the message is for the user and says what to do."""

    exit_code = 1


class UserError(LoraSweepError, ValueError):
    """A value that the user wrote or chose is not allowed.

    A ValueError too, so that pydantic reports one that a validator raised.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 500 characters; its class where it has none."""
    return next(iter(str(error).splitlines()), "")[:500] or type(error).__name__

"""What a command may end with in one line for the user; any other exception is a bug, and is shown with its
traceback.
"""


class LoraSweepError(Exception):
    """It could not be done here and now; the message is for the user and says what to do."""

    exit_code = 1


class UserError(LoraSweepError, ValueError):
    """Something that the user wrote or chose cannot be. A ValueError too, so that pydantic reports one raised
    in a validator.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 500 characters; its class where it says nothing."""
    return next(iter(str(error).splitlines()), "")[:500] or type(error).__name__

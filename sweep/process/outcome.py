"""How a command ends: its exit code, and one line for whatever went wrong."""

from collections.abc import Callable

import typer
import typer.exceptions

from core.errors import LoraSweepError


def outcome(command: Callable[[], int | None]) -> tuple[str, int]:
    """Run `command` -> a line for the user, or "", and the exit code: 0 done, 1 failed, 2 wrong arguments or
    settings, 130 interrupted (the same command resumes).
    """
    try:
        code = command() or 0
        if code == 130:  # typer 0.29 answers Ctrl-C with this number and no message
            raise KeyboardInterrupt
        return "", code
    except typer.Exit as exit_:
        return "", exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return "interrupted; the same command goes on from here", 130
    except typer.exceptions.TyperException as error:
        return " ".join(error.format_message().split()), 2
    except LoraSweepError as error:
        return str(error), error.exit_code
    except OSError as error:
        return f"{error.filename or 'a file'}: {error.strerror or error}", 1

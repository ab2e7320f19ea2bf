"""How a command ends: its exit code, and one line for whatever went wrong."""
from collections.abc import Callable
from pathlib import Path

import typer
import typer.exceptions

OURS = tuple(Path(__file__).parents[1] / package for package in ("sweep", "core", "reports"))
REFUSALS = ("StudyBusy", "SweepRefused")  # by name: to import them would cost `--help` a second


def outcome(command: Callable[[], int | None]) -> tuple[str, int]:
    """Carry it out -> the line, if any, and 0 done, 1 it failed, 2 the words were wrong, 130 interrupted and resumable."""
    try:
        code = command() or 0
        if code == 130:  # typer 0.29 answers Ctrl-C with this number and no word
            raise KeyboardInterrupt
        return "", code
    except typer.Exit as exit_:
        return "", exit_.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return "interrupted; the same command goes on from here", 130
    except typer.exceptions.TyperException as error:
        return " ".join(error.format_message().split()), 2
    except ValueError as error:  # StudyError, ExportError: the user's words
        if not _ours(error):
            raise
        return str(error), 2
    except RuntimeError as error:
        if not _ours(error) or type(error) is RuntimeError:
            raise
        return str(error), 2 if type(error).__name__ in REFUSALS else 1
    except OSError as error:
        return f"{error.filename or 'a file'}: {error.strerror or error}", 1


def _ours(error: Exception) -> bool:
    """Whether our own code raised it, to tell the user something; what a library raises is a bug, and is shown whole."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    return traceback is not None and any(Path(traceback.tb_frame.f_code.co_filename).is_relative_to(folder) for folder in OURS)

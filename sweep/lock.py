"""One driver per study: a lock that dies with its process, and a note of who holds it."""
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import filelock

from core.files import read_json
from core.folders import StudyFolder


class StudyBusy(RuntimeError):
    """Another driver works on this study."""


class CannotWrite(RuntimeError):
    """The study's folder cannot be written."""


@contextmanager
def study_lock(folder: StudyFolder) -> Iterator[None]:
    """Hold the study. The system drops the lock of a dead process. Raises StudyBusy, CannotWrite."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.lock)
        lock.acquire(timeout=0.5)  # `status` takes it for an instant to look
        folder.driver.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
    except filelock.Timeout:
        raise StudyBusy(f"another lora-sweep{_holder(folder)} works on {folder.path} right now; "
                        f"wait for it or stop it first") from None
    except OSError as error:
        raise CannotWrite(f"{folder.path}: cannot be written ({error.strerror}); choose another folder with --runs") from None
    try:
        yield
    finally:
        with suppress(OSError):
            folder.driver.unlink(missing_ok=True)
        lock.release()


def is_locked(folder: StudyFolder) -> bool:
    if not folder.lock.exists():
        return False
    try:
        with filelock.FileLock(folder.lock, timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True


def _holder(folder: StudyFolder) -> str:
    try:
        holder = read_json(folder.driver)
        return f" (process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, KeyError):
        return ""

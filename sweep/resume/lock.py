"""One driver per study: a file lock that ends with its process, and a file that names the process."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from core.errors import LoraSweepError, UserError
from core.files.files import read_json, write_json
from core.folders import StudyFolder

WAIT_S, LOOK_S = 0.5, 0.05  # `status` holds the lock for an instant when it checks it
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class StudyBusy(UserError):
    """Another driver works on this study."""


class CannotWrite(LoraSweepError):
    """The study's folder cannot be written."""


@contextmanager
def study_lock(folder: StudyFolder) -> Iterator[None]:
    """Hold the study's lock. The kernel releases the lock of a dead process. Raises StudyBusy, CannotWrite.

    A file system without such locks is refused (CannotWrite): any other lock would outlive a killed process.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = folder.lock.open("ab")
        if not _taken(lock):
            raise StudyBusy(
                f"another lora-sweep{_holder(folder)} works on {folder.path} right now; "
                f"wait for it or stop it first"
            )
        write_json(folder.driver, {"pid": os.getpid(), "host": socket.gethostname()})
    except OSError as error:
        why = "its file system cannot lock files" if error.errno in NO_LOCKS else "cannot be written"
        raise CannotWrite(
            f"{folder.path}: {why} ({error.strerror}); choose another folder with --runs"
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            folder.driver.unlink(missing_ok=True)
        lock.close()


def is_locked(folder: StudyFolder) -> bool:
    """Whether a driver works on the study; only reads, as the folder may belong to another user.

    False where the file system has no locks: no driver can work there.
    """
    try:
        with folder.lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _taken(lock: IO[bytes]) -> bool:
    end = time.monotonic() + WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(LOOK_S)


def _holder(folder: StudyFolder) -> str:
    try:
        holder = read_json(folder.driver, dict[str, object])
        return f" (process {holder['pid']} on {holder['host']})"
    except (OSError, ValueError, KeyError):
        return ""

"""SQLite connections that wait while another process has locked the file, and react to Ctrl-C meanwhile.

SQLite's own timeout waits inside a C function, where Python handles no signal.
"""

import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from core.errors import LoraSweepError

BUSY_S = 90.0  # how long to wait: a backup or a dashboard may hold the file for a while
PAUSE_S = 0.05  # between retries, for locks that SQLite does not wait for
TRY_S = 1.0  # SQLite's own timeout; signals are handled between its ends
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
Answer = TypeVar("Answer")


class StoreError(LoraSweepError):
    """study.db cannot be used; the message is one line for the user."""


class BusyRetry:
    """How long a study's connections wait for a locked file: `busy_s` seconds, or until `stop_asked` returns
    true, which raises KeyboardInterrupt.
    """

    def __init__(self, busy_s: float = BUSY_S) -> None:
        self._busy_s = busy_s
        self.stop_asked: Callable[[], object] = lambda: False

    @property
    def connect_args(self) -> dict[str, Any]:
        """Keyword arguments for sqlite3.connect that make it return a connection which waits."""
        return {"timeout": TRY_S, "factory": partial(_Connection, self)}

    def retry(self, work: Callable[..., Answer], *args: object) -> Answer:
        """Call `work` until the file is not locked -> its result. Raises sqlite3.OperationalError for any
        other error or after `busy_s`, and KeyboardInterrupt once `stop_asked`.
        """
        end = time.monotonic() + self._busy_s
        while True:
            try:
                return work(*args)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in LOCKED:
                    raise
                if self.stop_asked():
                    raise KeyboardInterrupt from None
                if time.monotonic() >= end:
                    raise
                time.sleep(PAUSE_S)


class _Connection(sqlite3.Connection):
    def __init__(self, busy_retry: BusyRetry, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  sqlite3's own
        super().__init__(*args, **kwargs)
        self._busy_retry = busy_retry

    def cursor(self, *_: object) -> "_Cursor":  # type: ignore[override]  # nobody asks for another kind
        return _Cursor(self, self._busy_retry)

    def commit(self) -> None:
        self._busy_retry.retry(super().commit)


class _Cursor(sqlite3.Cursor):
    def __init__(self, connection: _Connection, busy_retry: BusyRetry) -> None:
        super().__init__(connection)
        self._busy_retry = busy_retry

    def execute(self, *args: object) -> "_Cursor":
        self._busy_retry.retry(super().execute, *args)
        return self

    def executemany(self, *args: object) -> "_Cursor":
        self._busy_retry.retry(super().executemany, *args)
        return self

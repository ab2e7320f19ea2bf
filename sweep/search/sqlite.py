"""SQLite connections that wait for a file that somebody else has locked, and hear Ctrl-C meanwhile.

SQLite's own timeout waits inside a C function, where no signal is answered.
"""

import sqlite3
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from core.errors import LoraSweepError

BUSY_S = 90.0  # a backup or a dashboard may hold the file for a while: rather wait than lose a night
PAUSE_S = 0.05  # where SQLite does not wait at all
TRY_S = 1.0  # SQLite's own wait; signals are answered in between
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
Answer = TypeVar("Answer")


class StoreError(LoraSweepError):
    """study.db cannot be used; the message is one line for the user."""


class Patience:
    """How long a study's connections wait; `stop_asked` says whether to give up, which raises
    KeyboardInterrupt.
    """

    def __init__(self, busy_s: float = BUSY_S) -> None:
        self._busy_s = busy_s
        self.stop_asked: Callable[[], object] = lambda: False

    @property
    def connect_args(self) -> dict[str, Any]:
        """For sqlite3.connect."""
        return {"timeout": TRY_S, "factory": partial(_Connection, self)}

    def insist(self, work: Callable[..., Answer], *words: Any) -> Answer:
        """Do it again until the file is free. Raises sqlite3.OperationalError, KeyboardInterrupt."""
        end = time.monotonic() + self._busy_s
        while True:
            try:
                return work(*words)
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in LOCKED:
                    raise
                if self.stop_asked():
                    raise KeyboardInterrupt from None
                if time.monotonic() >= end:
                    raise
                time.sleep(PAUSE_S)


class _Connection(sqlite3.Connection):
    def __init__(self, patience: Patience, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more)
        self._patience = patience

    def cursor(self, *_: Any) -> "_Cursor":  # type: ignore[override]  # nobody asks for another kind
        return _Cursor(self, self._patience)

    def commit(self) -> None:
        self._patience.insist(super().commit)


class _Cursor(sqlite3.Cursor):
    def __init__(self, connection: _Connection, patience: Patience) -> None:
        super().__init__(connection)
        self._patience = patience

    def execute(self, *words: Any) -> "_Cursor":
        self._patience.insist(super().execute, *words)
        return self

    def executemany(self, *words: Any) -> "_Cursor":
        self._patience.insist(super().executemany, *words)
        return self

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from sweep.search import sqlite
from sweep.search.sqlite import BusyRetry


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sqlite, "TRY_S", 0.1)
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE numbers (number INTEGER)")
    return path


@contextmanager
def locked(path: Path, for_s: float = 60.0) -> Iterator[None]:
    other = sqlite3.connect(path, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(for_s, other.rollback)
    timer.start()
    yield
    timer.cancel()
    timer.join()
    other.close()


def write(path: Path, busy_retry: BusyRetry) -> int:
    with closing(sqlite3.connect(path, **busy_retry.connect_args)) as ours:
        cursor = ours.cursor()
        cursor.execute("INSERT INTO numbers VALUES (1)")
        ours.commit()
        return cursor.execute("SELECT count(*) FROM numbers").fetchone()[0]


def test_a_locked_file_is_waited_for_longer_than_one_try(database: Path) -> None:
    started = time.monotonic()
    with locked(database, for_s=0.7):
        assert write(database, BusyRetry()) == 1
    assert time.monotonic() - started >= 0.7


def test_a_reader_delays_a_commit_and_nothing_is_written_twice(database: Path) -> None:
    with closing(sqlite3.connect(database, check_same_thread=False)) as reader:
        reader.execute("INSERT INTO numbers VALUES (0)")
        reader.commit()
        # not read to its end: a shared lock
        rows = reader.execute("SELECT * FROM numbers UNION ALL SELECT * FROM numbers")
        rows.fetchone()
        threading.Timer(0.5, rows.close).start()
        assert write(database, BusyRetry()) == 2


def test_patience_ends(database: Path) -> None:
    with locked(database), pytest.raises(sqlite3.OperationalError, match="locked"):
        write(database, BusyRetry(busy_s=0.3))


def test_being_asked_to_stop_ends_it_at_once(database: Path) -> None:
    busy_retry = BusyRetry()
    started = time.monotonic()
    busy_retry.stop_asked = lambda: time.monotonic() - started > 0.3
    with locked(database), pytest.raises(KeyboardInterrupt):
        write(database, busy_retry)
    assert time.monotonic() - started < 5


def test_other_mistakes_are_told_at_once(database: Path) -> None:
    with (
        closing(sqlite3.connect(database, **BusyRetry().connect_args)) as ours,
        pytest.raises(sqlite3.OperationalError, match="no such table"),
    ):
        ours.cursor().execute("SELECT * FROM letters")

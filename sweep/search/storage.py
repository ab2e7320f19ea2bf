"""study.db as Optuna's storage: opened, and checked before a start."""

import shlex
import sqlite3
import sys
from pathlib import Path

import optuna
import sqlalchemy.exc

from core.folders import shown_path
from sweep.search.sqlite import TRY_S, BusyRetry, StoreError
from sweep.study.errors import StudyError
from sweep.tracking.uri import sqlite_address


def check_held(path: Path, name: str) -> None:
    """Raise the StoreError or StudyError that a start would raise for the file at `path`; only reads it."""
    if not path.exists() or not path.stat().st_size:
        return
    try:
        storage = open_storage(path, None)
        try:
            check_name(storage, path, name)
        finally:
            storage.engine.dispose()
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError):
        # Locked, or left half written by a driver that died: a start, which may write, waits for it, repairs
        # it, or reports why it cannot.
        pass


def check_name(storage: optuna.storages.RDBStorage, path: Path, name: str) -> None:
    """Raise a StudyError if the file at `path` holds a study of another name."""
    held = optuna.get_all_study_names(storage)
    if held and name not in held:
        raise StudyError(
            f"{shown_path(path)}: it holds study {held[0]}, and a study that was started cannot be renamed "
            f"or copied under another name ({name}): call study and folder {held[0]} again, or move "
            f"{shown_path(path.parent)} away to start study {name} from nothing"
        )


def open_storage(path: Path, busy_retry: BusyRetry | None) -> optuna.storages.RDBStorage:
    """The storage, read-only without `patience`. Raises StoreError if another version of Optuna made it."""
    address = sqlite_address(path)
    read_only = {
        "creator": lambda: sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", timeout=TRY_S, uri=True)
    }
    try:
        return optuna.storages.RDBStorage(
            address,
            skip_table_creation=busy_retry is None,
            engine_kwargs=read_only if busy_retry is None else {"connect_args": busy_retry.connect_args},
        )
    # raised by Optuna 5.0 if the tables are of another version
    except RuntimeError as error:
        older = "storage upgrade" in str(error)
        command = shlex.join(
            [str(Path(sys.executable).with_name("optuna")), "storage", "upgrade", "--storage", address]
        )
        raise StoreError(
            f"{shown_path(path)}: its tables are those of {'an older' if older else 'a newer'} Optuna "
            f"than the installed {optuna.__version__}; "
            f"{f'copy it, then {command}' if older else 'go on with the installation that made it'}"
        ) from None

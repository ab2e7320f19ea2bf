"""What takes seconds is made once for all test processes: encoded images and texts, MLflow's tables."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from core.folders import Runs

# MLflow copies a file under this name before it renames it: killed meanwhile, it leaves that behind
HALF_UPLOADED = ".artifact.uploading."
EMPTY_STORE = "empty.db"  # an MLflow database with its tables, before any study


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first test process in need of it fills by `make`."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / name
    with filelock.FileLock(shared / f"{name}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "done").touch()
    return folder


def make_empty_store(folder: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder / EMPTY_STORE}")


def prepare(runs: Runs, made: Path, cache: bool = True) -> Runs:
    """Copy MLflow's tables from `made`, a folder with an empty store, and the cache of its runs folder."""
    runs.path.mkdir(parents=True, exist_ok=True)
    shutil.copy(made / EMPTY_STORE, runs.tracking_db)
    if cache:
        shutil.copytree(Runs(made / "runs").cache, runs.cache)
    return runs

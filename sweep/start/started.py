"""Find a study that was started before."""

import sqlite3
from pathlib import Path

from core.errors import UserError
from core.folders import Runs, StudyFolder
from sweep.process.console import say, warn
from sweep.start.here import command
from sweep.study.study import load_study
from sweep.tracking.moved_store import mend_artifact_places


def started(study: str, runs: Path) -> StudyFolder:
    """The folder of a study that was started: by its name under `runs`, or by its file. Raises UserError."""
    named = Runs(runs).study(study) if study == Path(study).name else None
    if named and named.frozen.exists():
        return named
    name = load_study(study).name
    folder = Runs(runs).study(name)
    if not folder.frozen.exists():
        raise UserError(
            f"study {name} was not started under {runs} yet (try: {command(f'run {study}', runs)})"
        )
    return folder


def mend_places(runs: Path) -> None:
    """Correct artifact paths in MLflow's database after the runs folder was moved or copied, and say so."""
    try:
        if line := mend_artifact_places(Runs(runs)):
            say(line)
    except sqlite3.Error as error:  # locked for too long, or no MLflow database
        warn(
            f"{Runs(runs).tracking_db}: cannot be read ({error}); if the folder was moved, MLflow does not "
            "find its images"
        )

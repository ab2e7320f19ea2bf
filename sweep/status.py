"""Where a study stands, read from its folder alone: no torch, no Optuna, no MLflow."""
from dataclasses import dataclass
from pathlib import Path

import filelock

from core.folders import Runs, StudyFolder
from core.settings import Result
from reports.table import winner
from sweep.study import load_frozen


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """`left_s` is an estimate from the mean duration of the trials so far; None before the first."""
    name: str
    running: bool
    target: int
    done: int
    passed: int
    failed: int
    best: Result | None
    left_s: float | None


def study_status(folder: StudyFolder) -> Status:
    results = folder.results()
    target = load_frozen(folder.frozen).budget.trials
    complete = [result for result in results if result.state == "complete"]
    mean_s = sum(result.duration_s for result in complete) / len(complete) if complete else None
    return Status(
        name=folder.path.name, running=is_locked(folder.lock), target=target, done=len(results),
        passed=sum(result.passed_gate for result in results), failed=len(results) - len(complete),
        best=winner(folder), left_s=None if mean_s is None else mean_s * max(0, target - len(results)),
    )


def study_folders(runs: Runs) -> list[StudyFolder]:
    """Every study under `runs`, by name."""
    return [StudyFolder(path.parent) for path in sorted(runs.path.glob("*/study.yaml"))]


def is_locked(path: Path) -> bool:
    """Whether a driver holds this lock now; a lock file that nobody holds means nothing."""
    if not path.exists():
        return False
    try:
        with filelock.FileLock(path, timeout=0):
            return False
    except (filelock.Timeout, OSError):
        return True

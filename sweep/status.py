"""Where a study stands, read from its folder alone: no torch, no Optuna study, no MLflow."""
from dataclasses import dataclass
from math import isinf

from core.files import read_json
from core.folders import Runs, StudyFolder
from core.gate import notes_on_gate
from core.settings import Result
from reports.table import passed
from sweep.failures import failure
from sweep.grid import Grid
from sweep.lock import is_locked
from sweep.space import distributions, edges
from sweep.study import Study, load_frozen
from sweep.study_errors import StudyError

BASE_PASSES = "the base model's own story passes the gate already: compare a story with that mean, not with the gate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """`left_s` is an estimate from the mean duration of the trials so far; None before the first.

    `recovered` is what the last start found unfinished, and did about it.
    """
    name: str
    running: bool
    target: int
    done: int
    passed: int
    failed: int
    best: Result | None
    left_s: float | None
    recovered: tuple[str, ...] = ()


def study_status(folder: StudyFolder) -> Status:
    results, passing = folder.results(), passed(folder)
    left = max(0, _left(load_frozen(folder.frozen), results, folder.compares_from()))
    complete = [result for result in results if result.state == "complete"]
    timed = [result for result in complete if result.same_as is None]  # a repeat takes no time
    mean_s = sum(result.duration_s for result in timed) / len(timed) if timed else None
    return Status(
        name=folder.path.name, running=is_locked(folder), target=len(results) + left, done=len(results),
        passed=len(passing), failed=len(results) - len(complete),
        best=next(iter(passing), None), left_s=None if mean_s is None else mean_s * left,
        recovered=_recovered(folder),
    )


def _left(study: Study, results: list[Result], since: int) -> int:
    """Trials still to be done: of the budget, or of the untried points of a space that has no more."""
    grid = Grid(distributions(study))
    tried = grid.tried((result.spec.params(), result.state == "failed" and not failure(result.reason).by_parameters)
                       for result in results if result.spec.number >= since)
    left = study.budget.trials - len(results)
    return left if isinf(grid.size) else min(left, int(grid.size) - len(tried))


def findings(folder: StudyFolder) -> list[str]:
    """What the results say of the study itself, in one line each; no study file keeps anyone from looking at results."""
    try:
        study = load_frozen(folder.frozen)
    except StudyError as error:
        return [f"nothing is said of base story, gate and ranges: {next(iter(str(error).splitlines()))}"]
    base = folder.base.read_result()
    return ([BASE_PASSES] if base and base.passed_gate else []) + notes_on_gate(study.objective.gate) + at_edges(study, folder)


def at_edges(study: Study, folder: StudyFolder) -> list[str]:
    """Where the best value of a setting lies at the end of its search."""
    best = next(iter(passed(folder)), None)
    return edges(study, best.spec.params()) if best else []


def study_folders(runs: Runs) -> list[StudyFolder]:
    """Every study under `runs`, by name."""
    return [StudyFolder(path.parent) for path in sorted(runs.path.glob("*/study.yaml"))]


def _recovered(folder: StudyFolder) -> tuple[str, ...]:
    try:
        return tuple(read_json(folder.recovered)["notes"])
    except (OSError, ValueError, KeyError, TypeError):
        return ()

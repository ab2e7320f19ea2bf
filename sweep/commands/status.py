"""Where a study stands, read from its folder alone: no torch, no Optuna, no MLflow."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from core.errors import first_line
from core.files.files import from_json, read_json
from core.folders import Runs, StudyFolder, shown_path, study_folders
from core.trial.result import Result
from core.verdict import BASE_PASSES, Verdict, notes_on_gate
from reports.console import leaderboard_table
from reports.leaderboard import leaderboard
from reports.units import duration
from sweep.failures import failure
from sweep.process.console import out, say
from sweep.resume.lock import is_locked
from sweep.search.grid import Grid
from sweep.start.here import command
from sweep.start.started import started
from sweep.study.errors import StudyError
from sweep.study.space import edges
from sweep.study.study import Study, load_frozen
from sweep.tracking.uri import shown_place


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What the results alone do not say; `left_s` is estimated by the mean duration of complete trials, None
    before the first.

    `recovered` has a line for each thing that the last start found unfinished, and what it did about it.
    """

    running: bool
    target: int
    left_s: float | None
    recovered: tuple[str, ...] = ()


def study_status(folder: StudyFolder, verdict: Verdict) -> Status:
    """Where the study stands. Raises StudyError where its frozen file cannot be read."""
    left = max(0, _left(load_frozen(folder.frozen), verdict))
    # a repeat takes no time
    timed_s = [it.duration_s for it in verdict.results if it.state == "complete" and it.same_as is None]
    return Status(
        running=is_locked(folder),
        target=len(verdict.results) + left,
        left_s=mean(timed_s) * left if timed_s else None,
        recovered=_recovered(folder),
    )


def _left(study: Study, verdict: Verdict) -> int:
    """Trials left: in the budget, or in the space if it has fewer untried points."""
    trials = (
        (result.spec.params(), result.state == "failed" and not failure(result.reason).by_parameters)
        for result in verdict.results
        if result.spec.number >= verdict.comparable_since
    )
    return int(min(study.budget.trials - len(verdict.results), Grid(study.space).left(trials)))


def findings(folder: StudyFolder, verdict: Verdict) -> list[str]:
    """Notes on gate, base story and ranges of a study, by its results; never fails for its frozen file."""
    try:
        study = load_frozen(folder.frozen)
    except StudyError as error:
        return [f"nothing is said of base story, gate and ranges: {first_line(error)}"]
    base_passes = [BASE_PASSES] if verdict.base and verdict.base.passed_gate else []
    return base_passes + notes_on_gate(study.objective.gate) + at_edges(study, verdict.winner)


def at_edges(study: Study, winner: Result | None) -> list[str]:
    """Notes on settings whose value in the winner is at an end of the searched range."""
    return edges(study.space, winner.spec.params()) if winner else []


def _recovered(folder: StudyFolder) -> tuple[str, ...]:
    try:
        return from_json(read_json(folder.recovered, dict[str, object]).get("notes"), tuple[str, ...])
    except (OSError, ValueError):
        return ()


def show_status(study: str | None, runs: Path) -> None:
    """Print one line for each study, or for one study its notes, leaderboard and folders too."""
    folders = [started(study, runs)] if study else study_folders(Runs(runs))
    if not folders:
        say(f"no study was started under {runs} yet (try: {command('run demo', runs)})")
    for folder in folders:
        verdict = folder.verdict()
        now = study_status(folder, verdict)
        failed = sum(result.state == "failed" for result in verdict.results)
        winner = verdict.winner
        best = f", best {winner.aesthetic_mean:.2f} (trial {winner.spec.number})" if winner else ""
        left = f", about {duration(now.left_s)} left" if now.left_s else ""
        out.print(
            f"{folder.path.name}: {'running' if now.running else 'not running'}, {len(verdict.results)} of "
            f"{now.target} trials done, {len(verdict.passed)} passed the gate, {failed} failed{best}{left}",
            markup=False,
            soft_wrap=True,
        )
        if study:
            for note in now.recovered:
                say(f"found at its last start: {note}")
            for note in findings(folder, verdict):
                say(f"note: {note}")
            out.print(leaderboard_table(leaderboard(verdict), out.width))
            _say_where(folder, runs)


def _say_where(folder: StudyFolder, runs: Path) -> None:
    places = {"trials": folder.trials, "report": folder.report, "tracking": shown_place(Runs(runs))}
    for word, place in places.items():
        if isinstance(place, str) or place.exists():
            say(f"{word:10}{place if isinstance(place, str) else shown_path(place)}")

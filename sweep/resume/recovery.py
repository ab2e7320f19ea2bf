"""Resumes a study after an earlier start: decides once per trial what to do, from what Optuna and the disk
have, and makes MLflow agree.
"""

import shutil
import time
from dataclasses import dataclass
from enum import Enum

from optuna.trial import FrozenTrial, Trial

from core.files.files import read_json, write_json
from core.folders import StudyFolder, TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec, Value
from sweep.events import Attempt
from sweep.failures import KILLED, NOT_ALLOWED
from sweep.progress import Progress
from sweep.search.optuna_study import Store
from sweep.study.errors import Mistake, sentence
from sweep.study.setting import SETTINGS
from sweep.study.study import Study
from sweep.tracking.tracking import Tracking


class Step(Enum):
    """What to do with a trial of an earlier start; the value ends the sentence `trial 7 ...` for the user."""

    ADOPT = "was finished but not recorded yet; its result is taken over"
    GO_ON = "was interrupted; it resumes from its last whole checkpoint"
    AGAIN = "has no checkpoint; it starts again with the same settings"
    RESTORE = "has lost its result.json; it is written again from Optuna's copy"
    FAIL = "fails, for its settings are not allowed any more"
    LOST = "has lost its result.json; Optuna and MLflow keep what they have"
    SET_ASIDE = "is unknown to Optuna; its folder is moved aside"
    NOTHING = "all agree"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What Optuna and the disk have of one trial."""

    known: bool  # Optuna has a trial of this number
    allowed: bool  # its settings are still known and allowed
    finished: bool  # Optuna has its outcome
    stored: bool  # Optuna has a copy of its result
    result: bool  # its folder has a complete result.json
    checkpoint: bool  # its folder has a checkpoint


def reconcile(found: Found) -> Step:
    """The decision table. MLflow is no input: it is made equal to the disk afterwards in every case."""
    if not found.known:
        return Step.SET_ASIDE
    if found.finished:
        if found.result:
            return Step.NOTHING
        return Step.RESTORE if found.stored else Step.LOST
    if found.result:
        return Step.ADOPT
    if not found.allowed:
        return Step.FAIL
    return Step.GO_ON if found.checkpoint else Step.AGAIN


def recover(
    study: Study, store: Store, folder: StudyFolder, tracking: Tracking, progress: Progress
) -> list[Trial]:
    """Make Optuna, the disk and MLflow agree -> the unfinished trials to run, by number."""
    store.finish_asks()
    asked = {trial.number: trial for trial in store.running()}
    finished = {trial.number: trial for trial in store.finished()}
    notes: list[str] = []
    again: list[Trial] = []
    for number in sorted(finished.keys() | asked.keys() | folder.numbers()):
        trial, waiting, done = folder.trial(number), asked.get(number), finished.get(number)
        why = _why_not_allowed(store, waiting) if waiting else None
        if waiting and why is None:
            _take_back_retried(study.spec(number, waiting.params), trial)
        result = trial.read_result()
        stored = None if result or done is None else store.stored(done, _spec(study, done, trial))
        step = reconcile(
            Found(
                known=number in finished or number in asked,
                allowed=why is None,
                finished=done is not None,
                result=result is not None,
                stored=stored is not None,
                checkpoint=trial.checkpoint.exists(),
            )
        )
        if step is Step.NOTHING:
            continue
        notes.append(f"trial {number} {step.value}")
        if step is Step.SET_ASIDE:
            shutil.move(trial.path, trial.path.with_name(f"aside-{trial.path.name}-{int(time.time())}"))
        elif step is Step.RESTORE:
            write_json(trial.result, stored)
        elif waiting and step in (Step.GO_ON, Step.AGAIN):
            again.append(waiting)
        elif waiting and result:  # to adopt
            store.tell(waiting, result)
            trial.checkpoint.unlink(missing_ok=True)
        elif waiting and why:
            result = not_allowed(study, number, store.wanted(waiting), why)
            write_json(trial.result, result)
            store.tell(waiting, result)
    _say(notes, folder, progress)
    sent = tracking.sent()
    for frozen in store.finished():
        if frozen.number not in sent:
            _track(study, frozen, folder.trial(frozen.number), tracking)
    return again


def _why_not_allowed(store: Store, asked: Trial) -> str | None:
    """Why an unfinished trial cannot be run: it was queued with values that the study does not allow, or an
    older version asked for settings that are not allowed any more. None if it can.
    """
    if why := store.why_not_allowed(asked):
        return why
    for name, value in asked.params.items():
        if name not in SETTINGS:
            return f"there is no setting {name}"
        try:
            SETTINGS[name].check(value, name)
        except Mistake as mistake:
            return sentence(mistake)
    return None


def not_allowed(study: Study, number: int, wanted: dict[str, Value], why: str) -> Result:
    """The result of a trial that cannot be run with the settings `wanted`; its spec has those of them that
    are valid.
    """
    valid = {name: value for name, value in wanted.items() if _is_valid(name, value)}
    return Result(state="failed", spec=study.spec(number, valid), reason=NOT_ALLOWED.name, message=why)


def _is_valid(name: str, value: object) -> bool:
    try:
        return name in SETTINGS and SETTINGS[name].check(value) == value
    except Mistake:
        return False


def _take_back_retried(spec: TrialSpec, trial: TrialFolder) -> None:
    """Delete the result of a failed attempt whose retry was due when the driver died."""
    result, attempt = trial.read_result(), Attempt.load(trial.attempt, spec.batch_size)
    # the retry is recorded already, only the result is not deleted yet
    if result and attempt.retried == (*result.retried, result.reason):
        trial.result.unlink()
        return
    again = attempt.after(result.reason) if result else None
    if again:
        again.save(trial.attempt)
        trial.result.unlink()


def _spec(study: Study, frozen: FrozenTrial, trial: TrialFolder) -> TrialSpec:
    """The spec in the trial's folder, for the study may have changed since; else that of the study."""
    try:
        return read_json(trial.spec, TrialSpec)
    except (OSError, ValueError):
        return study.spec(frozen.number, frozen.params)


def _say(notes: list[str], folder: StudyFolder, progress: Progress) -> None:
    """Show the notes now, and write them to the folder for `status`."""
    for note in notes:
        progress.note(note)
    if notes:
        write_json(folder.recovered, {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "notes": notes})
    else:
        folder.recovered.unlink(missing_ok=True)


def _track(study: Study, frozen: FrozenTrial, trial: TrialFolder, tracking: Tracking) -> None:
    """Send MLflow a finished trial that an earlier start did not send."""
    result = trial.read_result() or Result(
        state="failed",
        spec=_spec(study, frozen, trial),
        reason=frozen.user_attrs.get("reason", KILLED.name),
        message=frozen.user_attrs.get("message", "its result is gone"),
    )
    tracking.log_trial(result.spec, frozen.params, result)

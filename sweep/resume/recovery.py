"""What to do with what an earlier run left: decided once per trial, from what Optuna, the disk and MLflow
say.
"""

import shutil
import time
from dataclasses import dataclass
from enum import Enum
from typing import Any

from optuna.trial import FrozenTrial, Trial

from core.files.files import read_json, write_json
from core.folders import StudyFolder, TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.events import Attempt
from sweep.failures import KILLED, NOT_ALLOWED
from sweep.progress import Progress
from sweep.search.optuna_study import Store
from sweep.study.errors import Mistake, sentence
from sweep.study.setting import SETTINGS
from sweep.study.study import Study
from sweep.tracking.tracking import Tracking


class Step(Enum):
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
    """One trial as three witnesses tell it."""

    known: bool  # Optuna asked for a trial of this number
    allowed: bool  # with settings that today's version still knows and allows
    told: bool  # and its outcome
    stored: bool  # Optuna keeps a copy of its result
    result: bool  # a whole result.json lies in its folder
    checkpoint: bool  # and a checkpoint


def reconcile(found: Found) -> Step:
    """The one table. MLflow has no row of its own: it is made equal to the disk afterwards, whatever the step
    was.
    """
    if not found.known:
        return Step.SET_ASIDE
    if found.told:
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
    """Make Optuna, the disk and MLflow tell the same story -> the trials to go on with, by number."""
    store.finish_asks()
    asked = {trial.number: trial for trial in store.running()}
    told = {trial.number: trial for trial in store.told()}
    notes: list[str] = []
    again: list[Trial] = []
    for number in sorted(told.keys() | asked.keys() | folder.numbers()):
        trial = folder.trial(number)
        refused = _refused(store, asked[number]) if number in asked else None
        if number in asked and refused is None:
            _take_back_retried(study.spec(number, asked[number].params), trial)
        step = reconcile(
            Found(
                known=number in told or number in asked,
                allowed=refused is None,
                told=number in told,
                result=trial.read_result() is not None,
                stored=number in told and "result" in told[number].user_attrs,
                checkpoint=trial.checkpoint.exists(),
            )
        )
        if step is Step.NOTHING:
            continue
        notes.append(f"trial {number} {step.value}")
        if step is Step.SET_ASIDE:
            shutil.move(trial.path, trial.path.with_name(f"aside-{trial.path.name}-{int(time.time())}"))
        elif step is Step.RESTORE:
            _restore(store, told[number], _spec(study, told[number], trial), trial)
        elif step is Step.ADOPT:
            _adopt(store, asked[number], trial)
        elif step is Step.FAIL:
            assert refused
            result = not_allowed(study, number, store.wanted(asked[number]), refused)
            write_json(trial.result, result.to_json())
            store.tell(asked[number], result)
        elif step in (Step.GO_ON, Step.AGAIN):
            again.append(asked[number])
    _say(notes, folder, progress)
    tracking.keep_only(told.keys() | asked.keys())
    sent = tracking.sent()
    for frozen in store.told():
        if frozen.number not in sent:
            _track(study, frozen, folder.trial(frozen.number), tracking)
    return again


def _refused(store: Store, asked: Trial) -> str | None:
    """Why a trial cannot be carried out: it was queued with other values than the study allows, or by an
    older version.
    """
    if why := store.refused(asked):
        return why
    for name, value in asked.params.items():
        if name not in SETTINGS:
            return f"there is no setting {name}"
        try:
            SETTINGS[name].check(value, name)
        except Mistake as mistake:
            return sentence(mistake)
    return None


def not_allowed(study: Study, number: int, wanted: dict[str, Any], why: str) -> Result:
    """How a trial ends that cannot be carried out with the settings `wanted`; those that make sense stay in
    the tables.
    """
    sense = {name: value for name, value in wanted.items() if _is_one(name, value)}
    return Result(state="failed", spec=study.spec(number, sense), reason=NOT_ALLOWED.name, message=why)


def _is_one(name: str, value: Any) -> bool:
    try:
        return name in SETTINGS and SETTINGS[name].check(value) == value
    except Mistake:
        return False


def _take_back_retried(spec: TrialSpec, trial: TrialFolder) -> None:
    """A failure that was to be tried once more when the driver died is not the trial's end."""
    result, attempt = (
        trial.read_result(),
        Attempt.load(trial.attempt, spec.train.batch_size if spec.train else 1),
    )
    # it was noted, but the result was not yet taken away
    if result and attempt.retried == (*result.retried, result.reason):
        trial.result.unlink()
        return
    again = attempt.after(result.reason) if result else None
    if again:
        again.save(trial.attempt)
        trial.result.unlink()


def _spec(study: Study, frozen: FrozenTrial, trial: TrialFolder) -> TrialSpec:
    """What the trial was told, which an accepted change of the study's fixed settings does not change."""
    try:
        return TrialSpec.from_json(read_json(trial.spec))
    except (OSError, ValueError, KeyError, TypeError):
        return study.spec(frozen.number, frozen.params)


def _restore(store: Store, frozen: FrozenTrial, spec: TrialSpec, trial: TrialFolder) -> None:
    stored = store.stored(frozen, spec)
    assert stored is not None
    write_json(trial.result, stored.to_json())


def _adopt(store: Store, asked: Trial, trial: TrialFolder) -> None:
    result = trial.read_result()
    assert result is not None
    store.tell(asked, result)
    trial.checkpoint.unlink(missing_ok=True)


def _say(notes: list[str], folder: StudyFolder, progress: Progress) -> None:
    """Now, and to whoever asks `status` later."""
    for note in notes:
        progress.note(note)
    if notes:
        write_json(folder.recovered, {"at": time.strftime("%Y-%m-%d %H:%M:%S"), "notes": notes})
    else:
        folder.recovered.unlink(missing_ok=True)


def _track(study: Study, frozen: FrozenTrial, trial: TrialFolder, tracking: Tracking) -> None:
    """Have MLflow told what Optuna was told before an earlier run was killed."""
    result = trial.read_result() or Result(
        state="failed",
        spec=_spec(study, frozen, trial),
        reason=frozen.user_attrs.get("reason", KILLED.name),
        message=frozen.user_attrs.get("message", "its result is gone"),
    )
    tracking.start_trial(result.spec, frozen.params)
    tracking.finish_trial(result, trial)

"""The sweep: asks Optuna, hands trials to the worker, tells outcomes, writes MLflow. Imports no torch.

While the worker trains one trial, the driver logs the one before: the device never waits for bookkeeping.
"""
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
from optuna.trial import FrozenTrial, Trial

from core.files import write_json, write_text
from core.folders import Runs, StudyFolder
from core.gate import PARAMETER_FAILURES
from core.settings import Result, TrialSpec
from reports.table import winner
from sweep.local_worker import LocalWorker, WorkerDied
from sweep.progress import Progress
from sweep.recovery import Step, reconcile
from sweep.space import distributions
from sweep.store import Store
from sweep.study import Study
from sweep.tracking import Tracking

log = logging.getLogger(__name__)
MAX_FAILURES_IN_A_ROW = 3


class SweepError(RuntimeError):
    """The sweep cannot go on; the message is one line for the user."""


class SweepBusy(SweepError):
    """Another driver works on this study."""


class SweepRefused(SweepError):
    """The study cannot run on this machine as it is written."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one call of `run` came to."""
    told: int
    new: int
    wall_s: float
    driver_cpu_s: float
    idle_s: list[float] = field(default_factory=list)  # the worker's waits between trials


def run_sweep(study: Study, runs: Runs, trials: int, device: str, progress: Progress) -> Summary:
    """Work until `trials` trials are told in all, or go on where a killed run left off. Raises SweepError.

    KeyboardInterrupt passes through after everything is left resumable.
    """
    folder = runs.study(study.name)
    with _locked(folder):
        _freeze(study, folder)
        store = Store(folder.db, study.name, distributions(study), seed=study.seed, startup_trials=study.sampler.startup_trials)
        store.enqueue(study.first)
        sweep = Sweep(study, runs, folder, store, progress)
        return sweep.run(trials, device)


class Sweep:
    """One driver at work on one study."""

    def __init__(self, study: Study, runs: Runs, folder: StudyFolder, store: Store, progress: Progress) -> None:
        self.study, self.runs, self.folder, self.store, self.progress = study, runs, folder, store, progress
        self._again: list[Trial] = []
        self._failures_in_a_row = 0
        self._finished_at: float | None = None
        self._idle_s: list[float] = []
        self._worker: LocalWorker | None = None

    def run(self, target: int, device: str) -> Summary:
        started = time.monotonic()
        told_before = len(self.store.told())
        status = "FAILED"
        if told_before < target or self.store.running():
            self._start_worker(device)  # its imports run while MLflow's do
        self.tracking = Tracking(self.runs, self.study.name)
        try:
            self.tracking.start_study(self._study_params(), self.folder.frozen)
            self._reconcile()
            cpu_before = time.process_time()  # opening the stores (imports, schema) is paid once, not per trial
            self._work(target, device)
            driver_cpu_s = time.process_time() - cpu_before
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            if self._worker:
                self._worker.close()
            best = winner(self.folder)
            self.tracking.finish_study(status, best.spec.number if best else None)
        told = len(self.store.told())
        return Summary(told=told, new=told - told_before, wall_s=time.monotonic() - started,
                       driver_cpu_s=driver_cpu_s, idle_s=self._idle_s)

    def _work(self, target: int, device: str) -> None:
        self.progress.start(self.study.name, len(self.store.told()), target)
        if self._worker:
            self._tell_base_story()
        trial = self._next(target)
        while trial:
            result = self._carry_out(trial, device)
            self.store.tell(trial, result)
            following = self._next(target)
            if following and self._worker:
                self._send(following)
            self.tracking.finish_trial(result, self.folder.trial(trial.number))
            self.progress.trial_finished(result, trial.params)
            self._count_failure(result)
            trial = following

    def _next(self, target: int) -> Trial | None:
        """A trial to go on with, or a new one; exact repeats are answered here and cost nothing."""
        if self._again:
            return self._again.pop(0)
        while len(self.store.told()) < target:
            trial = self.store.ask()
            twin = self.store.twin(trial)
            if twin is None:
                return trial
            self.store.tell_twin(trial, twin)
            self._log_twin(trial, twin.number)
        return None

    def _carry_out(self, trial: Trial, device: str) -> Result:
        """Have the worker do one trial; its death becomes the trial's failed result and a new worker starts."""
        spec = self.study.spec(trial.number, trial.params)
        try:
            if trial.number not in self._sent:
                self._send(trial)
            self.tracking.start_trial(spec, trial.params)
            self._follow(spec)
        except WorkerDied as death:
            log.warning("trial %d: %s", trial.number, death)
            self._start_worker(device)
            lost = Result(state="failed", spec=spec, reason="killed", message=str(death))
            write_json(self.folder.trial(trial.number).result, lost.to_json())  # in the worker's place: tables read the disk
            return lost
        result = self.folder.trial(trial.number).read_result()
        assert result is not None, "a worker reports a trial finished only after writing its result"
        return result

    def _follow(self, spec: TrialSpec) -> None:
        """Pass the worker's events on until this trial is finished."""
        assert self._worker
        step = 0
        for event in self._worker.events():
            kind = event["event"]
            if kind == "ready":
                self.progress.worker_ready(event)
            elif kind == "refused":
                raise SweepRefused(event["message"])
            elif kind == "started" and self._finished_at is not None:
                self._idle_s.append(event["time"] - self._finished_at)
            elif kind == "epoch":
                step += len(event["losses"])
                self.progress.epoch(spec, event["epoch"], step, event["losses"])
                self.tracking.log_losses(spec.number, step, event["losses"])
            elif kind == "picture":
                self.progress.picture(spec, event["picture"])
            elif kind == "finished":
                self._finished_at = event["time"]
                return

    def _send(self, trial: Trial) -> None:
        assert self._worker
        spec = self.study.spec(trial.number, trial.params)
        folder = self.folder.trial(trial.number)
        shutil.rmtree(folder.path, ignore_errors=True)  # what an unfinished attempt left
        with suppress(WorkerDied):  # noticed, classified and answered when its events are read
            self._worker.send([spec], [folder.path])
        self._sent.add(trial.number)

    def _tell_base_story(self) -> None:
        """The base model's own story, once per study: the row that every trial is compared with."""
        assert self._worker
        if not self.folder.base.result.exists():
            spec = self.study.base_spec()
            try:
                self._worker.send([spec], [self.folder.base.path])
                self._follow(spec)
            except WorkerDied as death:
                raise SweepError(f"the base model's own story could not be made: {death}; see {self.folder.worker_log}") from None
        result = self.folder.base.read_result()
        assert result is not None
        if result.state == "failed":
            self.folder.base.result.unlink()
            raise SweepError(f"the base model's own story failed ({result.reason}): {result.message}; "
                             f"see {self.folder.worker_log}")
        self.tracking.log_base(result, self.folder.base)
        self.progress.base(result)

    def _reconcile(self) -> None:
        """Adopt or restart what a killed run left, before anything new is asked for."""
        for trial in self.store.running():
            folder = self.folder.trial(trial.number)
            result = folder.read_result()
            if reconcile(told=False, result=result, run_open=True) is Step.ADOPT:
                assert result is not None
                self.store.tell(trial, result)
                self.tracking.start_trial(result.spec, trial.params)
                self.tracking.finish_trial(result, folder)
                self.progress.note(f"trial {trial.number}: adopted the finished result of an earlier run")
            else:
                self._again.append(trial)
                self.progress.note(f"trial {trial.number}: left unfinished by an earlier run, starts again")
        logged = self.tracking.known() - set(self.tracking.unfinished())
        for frozen in self.store.told():
            result = self.folder.trial(frozen.number).read_result()
            if reconcile(told=True, result=result, run_open=frozen.number not in logged) is Step.LOG:
                self._log_told(frozen, result)

    def _log_told(self, frozen: FrozenTrial, result: Result | None) -> None:
        """Write to MLflow what Optuna was told before an earlier run was killed."""
        if "same_as" in frozen.user_attrs:
            self._log_twin(frozen, frozen.user_attrs["same_as"])
            return
        result = result or Result(
            state="failed", spec=self.study.spec(frozen.number, frozen.params),
            reason=frozen.user_attrs.get("reason", "killed"), message=frozen.user_attrs.get("message", "its result is gone"))
        self.tracking.start_trial(result.spec, frozen.params)
        self.tracking.finish_trial(result, self.folder.trial(frozen.number))

    def _log_twin(self, trial: Trial | FrozenTrial, twin: int) -> None:
        """An exact repeat gets a run of its own with the stored result, tagged same_as."""
        stored = self.folder.trial(twin).read_result()
        if stored is None:
            return
        result = replace(stored, spec=replace(stored.spec, number=trial.number))
        self.tracking.start_trial(result.spec, trial.params)
        self.tracking.finish_trial(result, self.folder.trial(twin), {"same_as": str(twin)})
        self.progress.note(f"trial {trial.number}: an exact repeat of trial {twin}, told its result")

    def _count_failure(self, result: Result) -> None:
        if result.state == "complete" or result.reason in PARAMETER_FAILURES:
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row == MAX_FAILURES_IN_A_ROW:
            raise SweepError(f"{MAX_FAILURES_IN_A_ROW} trials in a row failed, the last as {result.reason}: "
                             f"{result.message}; see {self.folder.worker_log}")

    def _start_worker(self, device: str) -> None:
        if self._worker:
            self._worker.close()
        self._sent: set[int] = set()
        self._worker = LocalWorker(self.folder.worker_log, self.runs.cache, device)

    def _study_params(self) -> dict[str, Any]:
        return {"backbone": self.study.backbone, "precision": self.study.precision, "seed": self.study.seed,
                "story": self.study.story_value.title, "gate": self.study.objective.gate,
                "data": Path(self.study.data_value.source).name}


@contextmanager
def _locked(folder: StudyFolder) -> Iterator[None]:
    """One driver per study. Raises SweepBusy, or SweepError if the folder cannot be written."""
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.lock)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise SweepBusy(f"another lora-sweep works on {folder.path} right now; wait for it or stop it first") from None
    except OSError as error:
        raise SweepError(f"{folder.path}: cannot be written ({error.strerror}); choose another folder with --runs") from None
    try:
        yield
    finally:
        lock.release()


def _freeze(study: Study, folder: StudyFolder) -> None:
    """Keep the words a study was started with; refuse to go on under others, for scores would not compare."""
    if not folder.frozen.exists():
        write_text(folder.frozen, study.to_yaml())
        return
    changes = study.changes(folder.frozen)
    if changes:
        raise SweepError(f"{study.file}: changed since the study was started ({'; '.join(changes)}); "
                         f"undo that, or give the study another name")

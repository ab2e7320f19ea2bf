"""The sweep: asks Optuna for trials, has workers run them, reports results to Optuna and MLflow. No torch.

While the worker trains one trial, the driver logs the previous one: the device never waits for bookkeeping.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import optuna
import sqlalchemy.exc
from optuna.trial import Trial

from core.errors import LoraSweepError, UserError, first_line
from core.files.fail_point import fail_point
from core.files.files import write_json
from core.folders import Runs, StudyFolder
from core.trial.result import Result
from core.trial.spec import Filters, TrialSpec, Value, setting_names
from reports.units import describe, duration, numbered
from sweep import events
from sweep.disk_room import ensure_room
from sweep.events import Message, Ready, Setup
from sweep.failures import NO_IMAGES, failure
from sweep.plan.pace import Pace
from sweep.progress import Progress, Summary
from sweep.resume.fingerprint import Fingerprint, record_start
from sweep.resume.lock import study_lock
from sweep.resume.recovery import not_allowed, recover
from sweep.search.optuna_study import Store
from sweep.stop import Hour, Stopped, StopRequest, asked_by_signal
from sweep.study.errors import StudyError
from sweep.study.study import Study, load_frozen
from sweep.tracking.experiment import StudyFacts
from sweep.tracking.tracking import open_tracking
from sweep.worker.supervisor import Job, Supervisor

log = logging.getLogger(__name__)
MAX_FAILURES_IN_A_ROW = 3


class SweepError(LoraSweepError):
    """The sweep cannot go on; the message is one line for the user."""


class SweepRefused(UserError):
    """The study cannot run on this machine as it is written."""


def run_sweep(
    study: Study,
    runs: Runs,
    device: str,
    progress: Progress,
    accept: Iterable[str] = (),
    until: Hour | None = None,
) -> Summary:
    """Run trials until the study's budget is finished, resuming an earlier start of the study.

    Raises SweepError, StudyBusy, CannotWrite, NoRoom; StudyError where scores would not compare with earlier
    ones (`accept`: fields that may change). Asked to stop, or at the hour `until`, it leaves everything
    resumable and says so in the summary.
    """
    folder = runs.study(study.name)
    with study_lock(folder):
        fail_point("locked")
        try:
            return _locked_sweep(study, runs, folder, device, progress, accept, until)
        except (OSError, optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            log.debug("the driver cannot go on", exc_info=True)  # a higher level would print a traceback
            line = first_line(error.__cause__ or error)
            raise SweepError(
                f"{folder.path}: its files cannot be read or written ({line}); fix that and run the same "
                "command again"
            ) from None


def _locked_sweep(
    study: Study,
    runs: Runs,
    folder: StudyFolder,
    device: str,
    progress: Progress,
    accept: Iterable[str],
    until: Hour | None,
) -> Summary:
    store = Store(
        folder.db,
        study.name,
        study.space,
        seed=study.seed,
        startup_trials=study.sampler.startup_trials,
        allow=study.allowed,
    )
    if folder.frozen.exists():
        with suppress(StudyError):  # unreadable for this version: then what it queued runs as it is
            store.claim(load_frozen(folder.frozen).first)
    fingerprint = record_start(study, folder, accept, store.after_finished(), progress.note)
    fail_point("frozen")
    for params in store.enqueue(study.first):
        progress.note(f"not run, for it was taken out of first: {describe(params)}")
    fail_point("enqueued")
    return Sweep(study, runs, folder, store, fingerprint, progress, device, until).run(study.budget.trials)


@dataclass(kw_only=True)
class TrialJob(Job):
    """A job with its Optuna trial."""

    trial: Trial


class Sweep:
    """One start of a sweep: `run` is called once."""

    def __init__(
        self,
        study: Study,
        runs: Runs,
        folder: StudyFolder,
        store: Store,
        fingerprint: Fingerprint,
        progress: Progress,
        device: str,
        until: Hour | None,
    ) -> None:
        self.fingerprint, self._until = fingerprint, until
        self.study, self.runs, self.folder, self.store, self.progress = study, runs, folder, store, progress
        setup = Setup(
            cache=runs.cache,
            base=folder.base.path,
            device=device,
            checkpoint_every_s=study.storage.checkpoint_every_s,
        )
        self.supervisor = Supervisor(folder.worker_log, setup, until)
        self._again: list[Trial] = []
        self._noted: set[str] = set()
        self._failures_in_a_row = 0

    def run(self, target: int) -> Summary:
        """Run trials until `target` are finished in all. Raises as `run_sweep` does."""
        started, cpu_before = time.monotonic(), 0.0
        finished_before = len(self.store.finished())
        status = "FAILED"
        if self._wants_more(target) or self.store.running():
            self.supervisor.start()  # its imports run while MLflow's do
        with asked_by_signal(self.supervisor.ask_to_stop):
            self.store.wait_unless(lambda: self.supervisor.stop_asked_by_signal)
            try:
                self.tracking = open_tracking(
                    self.runs, self.study.name, lambda: self.supervisor.stop_asked_by_signal
                )
            except BaseException:
                self.supervisor.close()
                raise
            try:
                self._log_study()
                fail_point("tracked")
                self._again = recover(self.study, self.store, self.folder, self.tracking, self.progress)
                # Opening the stores (imports, schema) happens once: not part of the CPU time per trial.
                cpu_before = time.process_time()
                self._work(target)
                status = "KILLED" if self._stopped(target) else "FINISHED"
            except (Stopped, KeyboardInterrupt):
                status = "KILLED"
            finally:
                self.supervisor.close()
                verdict = self.folder.verdict()
                fail_point("finish_study")
                self.tracking.finish_study(status, [result.spec.number for result in verdict.passed])
        finished = len(self.store.finished())
        return Summary(
            study=self.study.name,
            winner=verdict.winner,
            finished=finished,
            new=finished - finished_before,
            wall_s=time.monotonic() - started,
            driver_cpu_s=time.process_time() - cpu_before,
            idle_s=self.supervisor.idle_s,
            stopped=self._stopped(target),
            queued=self.store.queued(),
            points=self.store.exhausted(self.fingerprint.since) if finished < target else None,
        )

    def _stopped(self, target: int) -> StopRequest | None:
        """Why this start ended before its work was done; None if it was done."""
        unfinished = self._wants_more(target) or self._again or self.store.running()
        return self.supervisor.stop_asked if unfinished else None

    def _work(self, target: int) -> None:
        best, finished = self.folder.verdict().winner, len(self.store.finished())
        self.progress.start(
            self.study.name,
            finished,
            max(target, finished + len(self._again)),
            best.aesthetic_mean if best else None,
        )
        self._render_base_story(wanted=self._wants_more(target) or bool(self._again))
        job = self._next(target)
        while job:
            result = self._carry_out(job)
            fail_point("tell")
            self.store.tell(job.trial, result)
            fail_point("told")
            try:
                self._check_filters(result)
                following = self._next(target)
                if following:
                    self.supervisor.send(following)
            finally:
                self.tracking.log_trial(result.spec, job.trial.params, result)
            fail_point("logged")
            self.progress.trial_finished(result, job.trial.params)
            self._count_failure(result)
            job = following

    def _next(self, target: int) -> TrialJob | None:
        """An unfinished trial, or a new one; None if there is no more to do.

        Exact repeats and trials that the study does not allow get their results here, without a worker.
        """
        while not self.supervisor.stop_asked and (self._again or self._wants_more(target)):
            if self._again:
                trial = self._again.pop(0)
            else:
                trial = self.store.ask(self.fingerprint.since)
                fail_point("asked")
            if why := self.store.why_not_allowed(trial):
                self._answer(trial, not_allowed(self.study, trial.number, self.store.wanted(trial), why))
                continue
            repeated = self.store.same_params_as(trial, self.fingerprint.since)
            stored = repeated and self.folder.trial(repeated.number).read_result()
            if not stored:
                return self._startable(
                    TrialJob(spec=self._spec(trial), folder=self.folder.trial(trial.number), trial=trial)
                )
            self._repeat(trial, stored)
        return None

    def _wants_more(self, target: int) -> bool:
        return len(self.store.finished()) < target and not self.store.exhausted(self.fingerprint.since)

    def _startable(self, job: TrialJob) -> TrialJob | None:
        """The job, if it can finish by the hour; else None: the next start begins with it. Raises NoRoom."""
        removed = ensure_room(
            self.folder,
            job.spec,
            self.study.storage.keep,
            self.study.storage.limit_gb,
            self.store.enqueued(),
            self.tracking.sent(),
        )
        if removed:
            self.progress.note(
                f"to make room, the LoRAs of {numbered(removed)} were removed; their images stay"
            )
        pace = Pace.of(self.folder.results()) if self._until else None
        if self._until is None or pace is None:
            return job
        takes_s = pace.left_s(job.spec, job.folder)
        if self._until.left_s >= takes_s:
            return job
        self._again.insert(0, job.trial)
        self.supervisor.ask_to_stop(StopRequest(self._until.name, by_signal=False))
        self.progress.note(
            f"{job.spec.name} takes about {duration(takes_s)} and would not finish before "
            f"{self._until.name}: the next start begins with it"
        )
        return None

    def _carry_out(self, job: TrialJob) -> Result:
        # Sent first, so that the worker is busy while MLflow opens the run.
        self.supervisor.send(job)
        fail_point("sent")
        self.tracking.log_trial(job.spec, job.trial.params)
        fail_point("opened")
        return self.supervisor.carry_out(job, partial(self._hear, job))

    def _hear(self, job: Job, message: Message) -> None:
        """Pass one event of a trial on to the user and MLflow. Raises SweepRefused."""
        spec = job.spec
        match message.event:
            case Ready() as ready:
                self._hear_ready(ready)
            case events.Refused(message=why):
                raise SweepRefused(why)
            case events.Resumed(step):
                self.progress.note(f"{spec.name}: resumes from step {step}")
            case events.Again(reason=reason, message=why):
                job.steps = 0
                self.progress.note(f"{spec.name}: {reason} ({why}); retrying once in a fresh worker")
            case events.Looking(image=number, total=total):
                self.progress.looking(spec, number, total)
            case events.Note(text):
                self._note_once(text)
            case events.Epoch(epoch=epoch, losses=losses):
                job.steps += len(losses)
                fail_point("heard_epoch")
                self.progress.epoch(spec, epoch, job.steps, losses)
                assert isinstance(job, TrialJob)  # the base model's story trains nothing
                self.tracking.log_trial(spec, job.trial.params)
            case events.Image(number):
                self.progress.image(spec, number)

    def _hear_ready(self, ready: Ready) -> None:
        self.fingerprint.record_worker(ready)
        self._log_study()
        self.progress.worker_ready(ready)
        if note := other_threads(self.folder.results(), ready):
            self._note_once(note)

    def _note_once(self, text: str) -> None:
        """Show a note unless it was shown before: each trial notices the same unreadable image again."""
        if text not in self._noted:
            self._noted.add(text)
            self.progress.note(text)

    def _render_base_story(self, wanted: bool) -> None:
        """Once per study, make and log the base model's own story, which every trial is compared with."""
        result = self.folder.base.read_result()
        if not wanted and (result is None or result.state == "failed"):
            return
        if result is None or result.state == "failed":
            job = Job(spec=self.study.base_spec(), folder=self.folder.base)
            result = self.supervisor.carry_out(job, partial(self._hear, job))
            self.folder.base.attempt.unlink(missing_ok=True)  # the next start may try as often again
        if result.state == "failed":
            raise SweepError(
                f"the base model's own story could not be made ({result.reason}): {result.message}; "
                f"see {self.folder.worker_log}"
            )
        self._log_study()
        self.progress.base(result)

    def _repeat(self, trial: Trial, stored: Result) -> None:
        """Finish an exact repeat with the stored result, marked `same_as`, and an MLflow run of its own."""
        result = replace(
            stored,
            spec=replace(stored.spec, number=trial.number),
            duration_s=0.0,
            timings_s={},
            encoded={},
            same_as=stored.spec.number if stored.same_as is None else stored.same_as,
        )
        self._answer(trial, result)

    def _answer(self, trial: Trial, result: Result) -> None:
        """Finish a trial with a result that needed no worker."""
        params = self.store.wanted(trial)
        write_json(self.folder.trial(trial.number).result, result)
        self.store.tell(trial, result)
        self.tracking.log_trial(result.spec, params, result)
        self.progress.trial_finished(result, params)

    def _check_filters(self, result: Result) -> None:
        if result.reason == NO_IMAGES.name and not self.study.space.keys() & setting_names(Filters):
            raise SweepError(
                f"{result.message}, and no filter is searched, so no trial can have more; lora-sweep data "
                "shows what each of them keeps"
            )

    def _count_failure(self, result: Result) -> None:
        advice = failure(result.reason).advice
        if result.state == "complete" or not advice:
            self._failures_in_a_row = 0
            return
        self._failures_in_a_row += 1
        if self._failures_in_a_row == MAX_FAILURES_IN_A_ROW:
            raise SweepError(
                f"{MAX_FAILURES_IN_A_ROW} trials in a row failed, the last as {result.reason}: "
                f"{result.message}; {advice}; the same command goes on"
            )

    def _spec(self, trial: Trial) -> TrialSpec:
        return self.study.spec(trial.number, trial.params)

    def _log_study(self) -> None:
        """Log to MLflow what is known of the study by now; the base model's story is on the disk."""
        settings: dict[str, Value] = {
            "backbone": self.study.backbone,
            "precision": self.study.precision,
            "seed": self.study.seed,
            "story": self.study.story.value.title,
            "gate": self.study.objective.gate,
            "data": Path(self.study.data.value.source).name,
        }
        facts = StudyFacts(
            settings=settings,
            tags=self.fingerprint.tags,
            trials=[trial.number for trial in (*self.store.finished(), *self.store.running())],
            older_than=self.fingerprint.comparable_since,
        )
        self.tracking.log_study(facts)


def other_threads(results: Iterable[Result], ready: Ready) -> str:
    """A note where a CPU computes with another number of threads than earlier trials did; empty otherwise.

    The number comes from OMP_NUM_THREADS or the cores of a job, so it may differ between starts.
    """
    earlier = {result.threads for result in results if result.threads} - {ready.threads}
    if not earlier or ready.device != "cpu":
        return ""
    return (
        f"note: {ready.threads} threads compute now, {' or '.join(map(str, sorted(earlier)))} did for "
        "earlier trials: on a CPU scores are then equal within rounding only (OMP_NUM_THREADS sets it)"
    )

"""What the driver logs to MLflow: one parent run for the study, a child run for each trial; names as in study
files and tables.

MLflow may be dead, slow or full: everything is in the study's folder already, and a thread makes MLflow equal
to it, part by part. What it could not send is sent at the next start. Uses only `MlflowClient` with explicit
run ids: a global active run would stay open if the process dies.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial

from mlflow.exceptions import MlflowException

from core.folders import Runs, StudyFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.tracking.experiment import Experiment, StudyFacts
from sweep.tracking.store import TrackingError
from sweep.tracking.uri import plain_line, tracking_place

log = logging.getLogger(__name__)
START_S = 10.0  # how long a start waits for MLflow
END_S = 20.0  # how long the end waits without progress
STOPPED_S = 2.0  # how long the end may still take once the user asked to stop
LOOK_S = 0.2  # between two looks at whether the user asked to stop
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two tries while MLflow fails
REFUSED = "INVALID_PARAMETER_VALUE"  # a retry is useless: a param has another value, or the run was deleted
GONE = (REFUSED, "RESOURCE_DOES_NOT_EXIST")  # MLflow's answers about a run that was deleted, or purged
QUIET = {
    # We retry; MLflow 3.17 by itself would retry for four minutes before it raises.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the URI's password too
}


def open_tracking(runs: Runs, study: str, stop_asked: Callable[[], object] = lambda: False) -> "Tracking":
    """Start to send what a study has, and wait up to START_S for MLflow's first answer.

    Raises UserError if the tracking URI can never work, or (TrackingError) if the experiment was deleted.
    Once `stop_asked` is true, nothing waits for MLflow for longer than a few seconds.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what goes wrong reaches us as an exception
    tracking = Tracking(runs.study(study), Experiment(runs, study, tracking_place(runs)), stop_asked)
    tracking.start()
    error = tracking.first_error(START_S)
    if isinstance(error, TrackingError):
        tracking.close()
        raise error
    return tracking


class Tracking:
    """The study's experiment, and a thread that sends what changes. No call but `flush` and `finish_study`
    waits for MLflow, and none raises if it fails.

    What is due is kept by name, in the order in which the names came; each part is idempotent, and a newer
    one takes the place of the one that waits. It is lost with this process, and the disk has it already.
    """

    def __init__(self, folder: StudyFolder, experiment: Experiment, stop_asked: Callable[[], object]) -> None:
        self._folder, self._experiment, self._stop_asked = folder, experiment, stop_asked
        self._due: dict[str, Callable[[], None]] = {"the study": experiment.connect}
        self._changed = threading.Condition()
        self._error: Exception | None = None  # of the last try
        self._pause_s, self._not_before = 0.0, 0.0
        self._closed = False

    def start(self) -> None:
        """Start the thread; it first opens the store, and finds the study's runs there."""
        threading.Thread(target=self._run, name="tracking", daemon=True).start()

    def log_study(self, facts: StudyFacts) -> None:
        """Log the study's facts, file and base story on the parent run, which is at work now, and delete the
        runs of trials that it does not have; MLflow can restore them.
        """
        self._put("the study", partial(self._experiment.log_study, facts))

    def log_trial(self, spec: TrialSpec, sampled: Collection[str], result: Result | None = None) -> None:
        """Open the trial's run, or resume the one it has, and log the losses that its folder has by now.

        With a result, log scores, tags, images and the LoRA; the run's final status last. `sampled` are the
        settings that Optuna chose.
        """
        self._put(f"trial {spec.number}", partial(self._experiment.log_trial, spec, sampled, result))

    def sent(self) -> set[int]:
        """Trials that MLflow has as they are on the disk, so that nothing is left to send; none before MLflow
        has answered.
        """
        return self._experiment.sent()

    def finish_study(self, status: str, passed: Sequence[int] = ()) -> None:
        """End the parent run (FINISHED, FAILED or KILLED) and all open runs, and tag the winner among the
        trials that `passed` the gate, best first."""
        self._put("the end", partial(self._experiment.end_study, status, passed))
        if not self.flush(END_S):
            log.warning(
                "MLflow has not received everything yet; the rest is in %s, and the same command sends it",
                self._folder.path,
            )
        self.close()

    def close(self) -> None:
        """Send nothing more; an upload that is under way ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def first_error(self, timeout_s: float) -> Exception | None:
        """The first error; None if all succeeds, or if `timeout_s` passes or the user asks to stop first."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._due and not (self._error or self._stop_asked()):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(min(left_s, LOOK_S))
            return self._error

    def flush(self, patience_s: float) -> bool:
        """Send without further pause and wait until nothing is due -> False if there was no progress for
        `patience_s` seconds, or soon after the user asked to stop.
        """
        began, last, warned = time.monotonic(), float("inf"), False
        with self._changed:
            self._pause_s = self._not_before = 0.0
            self._changed.notify_all()
            while self._due:
                now = time.monotonic()
                if self._stop_asked():
                    last = min(last, now + STOPPED_S)
                left_s = min(max(began, self._experiment.moved_at) + patience_s, last) - now
                if left_s <= 0:
                    return False
                if now - began > patience_s and not warned:
                    log.warning(
                        "MLflow is slow, waiting until it has everything; Ctrl-C ends this, the same command "
                        "sends the rest"
                    )
                    warned = True
                self._changed.wait(min(left_s, LOOK_S))
            return True

    def _put(self, name: str, part: Callable[[], None]) -> None:
        with self._changed:
            self._due[name] = part
            self._changed.notify_all()

    def _run(self) -> None:
        while following := self._next():
            name, part = following
            error = self._try(part)
            # A run that was found earlier may have been deleted since; it is now looked for again.
            if _code(error) in GONE:
                error = self._try(part)
            if error and _code(error) == REFUSED:
                log.warning("MLflow refuses %s: %s", name, plain_line(error))
                error = None
            self._settle(name, part, error)

    def _next(self) -> tuple[str, Callable[[], None]] | None:
        """The first that is due, once the pause is over; None when closed."""
        with self._changed:
            while not self._closed:
                pause_s = self._not_before - time.monotonic()
                if self._due and pause_s <= 0:
                    return next(iter(self._due.items()))
                self._changed.wait(pause_s if self._due else None)
            return None

    def _try(self, part: Callable[[], None]) -> Exception | None:
        """Send one part -> the error, after which the experiment is looked at again."""
        try:
            part()
        # whatever a client raises for a dead, slow, full or foreign MLflow
        except Exception as error:
            self._experiment.forget()
            return error
        return None

    def _settle(self, name: str, part: Callable[[], None], error: Exception | None) -> None:
        now = time.monotonic()
        with self._changed:
            if error and not self._error:
                log.warning(
                    "MLflow takes nothing at the moment (%s); the sweep goes on, what is to be sent stays "
                    "in %s",
                    plain_line(error),
                    self._folder.path,
                )
            elif self._error and not error:
                log.warning("MLflow answers again; sending what waited")
            self._error = error
            if error:
                self._experiment.moved_at = min(self._experiment.moved_at, now)
                self._pause_s = min(max(2 * self._pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
                self._not_before = now + self._pause_s
            else:
                self._pause_s, self._experiment.moved_at = 0.0, now
                if self._due.get(name) is part:  # else a newer one came meanwhile
                    del self._due[name]
            self._changed.notify_all()


def _code(error: Exception | None) -> str | None:
    return str(error.error_code) if isinstance(error, MlflowException) else None

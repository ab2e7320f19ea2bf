"""What the driver tells MLflow: one parent run for the study, a child run for each trial; names as in study
files and tables.

MLflow may be dead, slow or full: the trial folders have everything already, and an `Outbox` brings MLflow up
to date behind the driver's back. What it could not send is sent at the next start. Only `MlflowClient` with
explicit run ids: no global active run that a death would leave behind.
"""

import logging
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from core.folders import Runs, StudyFolder, TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.tracking.outbox import Outbox, Refused, never
from sweep.tracking.record import Tracked
from sweep.tracking.store import TrackingError
from sweep.tracking.sync import Mirror, refused
from sweep.tracking.uri import plain_line, tracking_place

log = logging.getLogger(__name__)
START_S = 10.0  # how long a start waits for MLflow
END_S = 20.0  # and an end, from the last that MLflow took
# MLflow's answers about a run that was deleted, or purged
GONE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
QUIET = {
    # The outbox is patient in our place: MLflow 3.17 would retry for four minutes before it lets go.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the URI's password too
}


def open_tracking(runs: Runs, study: str, stop_asked: Callable[[], object] = never) -> "Tracking":
    """Begin to send what a study has, and wait a little for MLflow's first answer.

    Raises UserError if the tracking URI can never work, or (TrackingError) if the experiment was deleted.
    Once `stop_asked`, a start waits no longer for MLflow, and an end hardly.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what goes wrong reaches us as an exception
    folder, place = runs.study(study), tracking_place(runs)
    tracked = Tracked.read(folder, shared=place.kind != "own")
    outbox = Outbox("MLflow", str(folder.path))
    tracking = Tracking(folder, outbox, Mirror(runs, study, place, tracked, outbox.moves), stop_asked)
    outbox.start()
    tracking.connect()
    error = outbox.first_error(START_S, stop_asked)
    if isinstance(error, TrackingError):
        outbox.close()
        raise error
    return tracking


class Tracking:
    """The study's experiment. No call waits for MLflow, apart from the start and the end, and none fails
    because of it.
    """

    def __init__(
        self, folder: StudyFolder, outbox: Outbox, mirror: Mirror, stop_asked: Callable[[], object]
    ) -> None:
        self._folder, self._outbox, self._mirror, self._stop_asked = folder, outbox, mirror, stop_asked
        self._sampled: dict[int, str] = {}
        self._specs: dict[int, TrialSpec] = {}

    def connect(self) -> None:
        """Open the store, and find the study's runs there."""
        self._put("the study", self._mirror.connect)

    def start_study(self, settings: dict[str, Any], study_file: Path) -> None:
        self._put("the study", partial(self._mirror.start_study, settings, study_file))

    def keep_only(self, numbers: Collection[int]) -> None:
        """Only these trials are left: runs of others are deleted, which MLflow can undo."""
        self._put("the runs without a trial", partial(self._mirror.keep_only, set(numbers)))

    def tag_study(self, tags: dict[str, str]) -> None:
        """Accepted changes, on the parent run."""
        if tags:
            self._put("the study's tags", partial(self._mirror.tag_study, tags))

    def tag_older(self, since: int) -> None:
        """After an accepted change: which runs do not compare with those from trial `since` on."""
        if since:
            self._put("the tags of older trials", partial(self._mirror.tag_older, since))

    def log_base(self, result: Result, folder: TrialFolder) -> None:
        """The base model's own story, on the parent run."""
        self._put("the base model's story", partial(self._mirror.base, result, folder))

    def start_trial(self, spec: TrialSpec, sampled: dict[str, Any]) -> None:
        """Open the trial's run, or go on in the one it has."""
        self._specs[spec.number], self._sampled[spec.number] = spec, ",".join(sampled)
        self._put_trial(spec, self._folder.trial(spec.number))

    def log_losses(self, number: int) -> None:
        """The losses that the trial's folder has by now."""
        self._put_trial(self._specs[number], self._folder.trial(number))

    def finish_trial(self, result: Result, folder: TrialFolder) -> None:
        """Scores, tags, losses, pictures and the LoRA; the run's final status last."""
        self._put_trial(result.spec, folder, result)

    def sent(self) -> set[int]:
        """Trials that MLflow has whole, as they lie on the disk: nothing about them is left to send. None
        before MLflow has answered.

        A trial that is finished a second time with the same result costs nothing.
        """
        return self._mirror.whole() if self._mirror.sure else set()

    def flush(self, patience_s: float) -> bool:
        """Send what waits, now; False if MLflow took none of it for `patience_s`, or the user asked to stop
        meanwhile.
        """
        return self._outbox.flush(patience_s, self._stop_asked)

    def finish_study(self, status: str, passed: Sequence[int] = ()) -> None:
        """End the parent run (FINISHED, FAILED or KILLED), with it what is still open, and mark the winner of
        the trials that `passed` the gate, best first."""
        self._put("the end", partial(self._mirror.end_study, status, passed))
        if not self.flush(END_S):
            log.warning(
                "MLflow has not received everything yet; the rest is in %s, and the same command sends it",
                self._folder.path,
            )
        self.close()

    def close(self) -> None:
        """Send nothing more."""
        self._outbox.close()

    def _put_trial(self, spec: TrialSpec, folder: TrialFolder, result: Result | None = None) -> None:
        sampled = self._sampled.get(spec.number, "")
        self._put(f"trial {spec.number}", partial(self._mirror.trial, spec, sampled, folder, result))

    def _put(self, key: str, send: Callable[[], None]) -> None:
        self._outbox.put(key, partial(self._carefully, send))

    def _carefully(self, send: Callable[[], None]) -> None:
        """After a failure the mirror looks again; its message becomes one line without passwords."""
        try:
            try:
                send()
            except MlflowException as error:
                if error.error_code not in GONE:
                    raise
                self._mirror.forget()
                # once more: a run may have been deleted since it was found, and what is looked for afresh is
                # not
                send()
        except Exception as error:
            self._mirror.forget()
            if isinstance(error, TrackingError):
                raise
            kind = Refused if isinstance(error, MlflowException) and refused(error) else ConnectionError
            raise kind(plain_line(error)) from None

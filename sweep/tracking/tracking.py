"""What the driver logs to MLflow: one parent run for the study, a child run for each trial; names as in study
files and tables.

MLflow may be dead, slow or full: everything is in the trial folders already, and an `Outbox` sends it from a
thread of its own. What it could not send is sent at the next start. Uses only `MlflowClient` with explicit
run ids: a global active run would stay open if the process dies.
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
from sweep.tracking.outbox import Outbox, Rejected, never
from sweep.tracking.record import Tracked
from sweep.tracking.store import TrackingError
from sweep.tracking.sync import Mirror, refused
from sweep.tracking.uri import plain_line, tracking_place

log = logging.getLogger(__name__)
START_S = 10.0  # how long a start waits for MLflow
END_S = 20.0  # how long the end waits without progress
# MLflow's answers about a run that was deleted, or purged
GONE = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
QUIET = {
    # The outbox retries; MLflow 3.17 by itself would retry for four minutes before it raises.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # it would print the URI's password too
}


def open_tracking(runs: Runs, study: str, stop_asked: Callable[[], object] = never) -> "Tracking":
    """Start to send what a study has, and wait up to START_S for MLflow's first answer.

    Raises UserError if the tracking URI can never work, or (TrackingError) if the experiment was deleted.
    Once `stop_asked` is true, nothing waits for MLflow for longer than a few seconds.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what goes wrong reaches us as an exception
    folder, place = runs.study(study), tracking_place(runs)
    tracked = Tracked.read(folder, shared=place.kind != "own")
    outbox = Outbox("MLflow", str(folder.path))
    tracking = Tracking(folder, outbox, Mirror(runs, study, place, tracked, outbox.progressed), stop_asked)
    outbox.start()
    tracking.connect()
    error = outbox.first_error(START_S, stop_asked)
    if isinstance(error, TrackingError):
        outbox.close()
        raise error
    return tracking


class Tracking:
    """The study's experiment. No call but `flush` and `finish_study` waits for MLflow, and none raises if it
    fails.
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
        """Mark the parent run as running, with the study's fixed settings as params and its file."""
        self._put("the study", partial(self._mirror.start_study, settings, study_file))

    def keep_only(self, numbers: Collection[int]) -> None:
        """Delete the runs of all other trials; MLflow can restore them."""
        self._put("the runs without a trial", partial(self._mirror.keep_only, set(numbers)))

    def tag_study(self, tags: dict[str, str]) -> None:
        """Set tags of the parent run, such as the accepted changes."""
        if tags:
            self._put("the study's tags", partial(self._mirror.tag_study, tags))

    def tag_older(self, since: int) -> None:
        """After an accepted change: tag the runs of trials before `since`, whose scores no longer compare."""
        if since:
            self._put("the tags of older trials", partial(self._mirror.tag_older, since))

    def log_base(self, result: Result, folder: TrialFolder) -> None:
        """Log the base model's own story on the parent run."""
        self._put("the base model's story", partial(self._mirror.base, result, folder))

    def start_trial(self, spec: TrialSpec, sampled: dict[str, Any]) -> None:
        """Open the trial's run, or resume the one it has; `sampled` are the settings that Optuna chose."""
        self._specs[spec.number], self._sampled[spec.number] = spec, ",".join(sampled)
        self._put_trial(spec, self._folder.trial(spec.number))

    def log_losses(self, number: int) -> None:
        """Send the losses that the trial's folder has by now."""
        self._put_trial(self._specs[number], self._folder.trial(number))

    def finish_trial(self, result: Result, folder: TrialFolder) -> None:
        """Send scores, tags, losses, images and the LoRA; the run's final status last."""
        self._put_trial(result.spec, folder, result)

    def sent(self) -> set[int]:
        """Trials that MLflow has as they are on the disk, so that nothing is left to send; none before MLflow
        has answered.
        """
        return self._mirror.fully_sent() if self._mirror.verified else set()

    def flush(self, patience_s: float) -> bool:
        """Send what waits now -> False if there was no progress for `patience_s` seconds, or if the user
        asked to stop meanwhile.
        """
        return self._outbox.flush(patience_s, self._stop_asked)

    def finish_study(self, status: str, passed: Sequence[int] = ()) -> None:
        """End the parent run (FINISHED, FAILED or KILLED) and all open runs, and tag the winner among the
        trials that `passed` the gate, best first."""
        self._put("the end", partial(self._mirror.end_study, status, passed))
        if not self.flush(END_S):
            log.warning(
                "MLflow has not received everything yet; the rest is in %s, and the same command sends it",
                self._folder.path,
            )
        self.close()

    def close(self) -> None:
        """Send nothing more; the rest is sent at the next start."""
        self._outbox.close()

    def _put_trial(self, spec: TrialSpec, folder: TrialFolder, result: Result | None = None) -> None:
        sampled = self._sampled.get(spec.number, "")
        self._put(f"trial {spec.number}", partial(self._mirror.trial, spec, sampled, folder, result))

    def _put(self, key: str, send: Callable[[], None]) -> None:
        self._outbox.put(key, partial(self._carefully, send))

    def _carefully(self, send: Callable[[], None]) -> None:
        """Run `send`; after a failure the mirror reconnects, and the error becomes a line without secrets."""
        try:
            try:
                send()
            except MlflowException as error:
                if error.error_code not in GONE:
                    raise
                self._mirror.forget()
                # Retry once: a run that was found earlier may have been deleted since, and is now looked for
                # again.
                send()
        except Exception as error:
            self._mirror.forget()
            if isinstance(error, TrackingError):
                raise
            kind = Rejected if isinstance(error, MlflowException) and refused(error) else ConnectionError
            raise kind(plain_line(error)) from None

"""MLflow as a mirror of the disk: makes the runs of a study equal to its folders.

Everything here is idempotent, also after a failure in the middle: MLflow keeps one of two metric points with
equal key, step, timestamp and value; params, tags and artifacts are the same when sent again; a run is looked
for before it is created; and the final status comes last.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from core.folders import Runs, TrialFolder
from core.trial.result import Result
from core.trial.spec import TrialSpec
from sweep.tracking.record import (
    STUDY_ID,
    Tracked,
    TrackedRun,
    artifact_files,
    as_params,
    loss_points,
    result_points,
    result_tags,
    started_ms,
    written_ms,
)
from sweep.tracking.store import open_experiment, store_id
from sweep.tracking.uri import TrackingPlace

log = logging.getLogger(__name__)
MAX_METRICS = 1000  # MLflow's own limit for one call
SLOWEST_BYTES_PER_S = 250_000  # an upload slower than this counts as no progress
CHILDREN = "tags.trial_number LIKE '%'"
OLDEST_FIRST = ["start_time ASC", "run_id ASC"]


@dataclass(frozen=True, slots=True)
class Child:
    """A trial's run, and the metrics that MLflow had for it when it was found."""

    run_id: str
    started_ms: int
    loss_steps: set[int]  # grows as losses are sent
    metrics: dict[str, float]


class Mirror:
    """One study's experiment: a parent run, a child run for each trial. Used from one thread at a time.

    `progressed` is called after every part that has arrived with 0, and before a file with the seconds that
    its upload may take.
    """

    def __init__(
        self,
        runs: Runs,
        study: str,
        place: TrackingPlace,
        tracked: Tracked,
        progressed: Callable[[float], None],
    ) -> None:
        self._runs, self._study, self._place, self._tracked = runs, study, place, tracked
        self._progressed = progressed
        self._folder = runs.study(study)
        self._client: MlflowClient | None = None
        self._children: dict[int, Child] = {}
        # by file: False after a failed attempt, True when sent
        self._uploads: dict[tuple[Any, ...], bool] = {}
        # to repeat should the user delete the parent run
        self._of_the_parent: dict[str, Callable[[], None]] = {}
        self._parent_is_empty = False
        self.verified = False  # whether `tracked` was checked against this store

    def connect(self) -> None:
        """Open the store, the experiment and the parent run, once. Raises TrackingError."""
        if self._client:
            return
        client, experiment = open_experiment(self._runs, self._study, self._place)
        if not self.verified:
            self._leave_to_the_other_folder(client, experiment)
        found = self._find(client, experiment, "tags.kind = 'study'") or self._claim(client, experiment)
        for lost in found[1:]:  # created by a request that had timed out here
            client.delete_run(lost.info.run_id)
        known, store = {run.info.run_id for run in found}, store_id(client)
        if self._tracked.parent not in known and (store is None or self._tracked.store != store):
            self._tracked.trials = {}  # another store, or a new one: it has none of them
        self._parent = (
            found[0]
            if found
            else client.create_run(
                experiment, run_name=self._study, tags={"kind": "study"} | self._tracked.new_mark()
            )
        )
        self._tracked.store, self._tracked.parent = store, self._parent.info.run_id
        self._parent_is_empty = self._parent_is_empty or not found
        self._experiment, self._client = experiment, client
        self.verified = True
        if self._parent_is_empty:  # it is new, or replaces one that the user deleted
            self._adopt_children(client)
            for send in list(self._of_the_parent.values()):
                send()
            self._parent_is_empty = False

    def forget(self) -> None:
        """After a failure: connect again, and look again at what MLflow has."""
        self._client = None
        self._children.clear()

    def start_study(self, settings: dict[str, Any], study_file: Path) -> None:
        """Mark the parent run as running, and end the trials' runs that an earlier start left open."""
        self._describe(settings, study_file)
        self._end_open_children()
        client, run_id = self._connected()
        client.update_run(run_id, status="RUNNING")

    def _describe(self, settings: dict[str, Any], study_file: Path) -> None:
        client, run_id = self._connected()
        self._upload(run_id, study_file, None)
        if not self._parent.data.params:
            client.log_batch(run_id, params=as_params(settings), synchronous=True)
        self._of_the_parent["settings"] = partial(self._describe, settings, study_file)

    def keep_only(self, numbers: set[int]) -> None:
        """Delete the runs of trials that the study does not have, such as those of a lost study.db."""
        client, _ = self._connected()
        for run in self._find(client, self._experiment, CHILDREN):
            number = int(run.data.tags["trial_number"])
            if number not in numbers:
                self._tracked.forget(number)
                client.delete_run(run.info.run_id)
        # their runs were deleted by the user; a new trial may get the same number
        for number in self._tracked.trials.keys() - numbers:
            self._tracked.forget(number)

    def tag_study(self, tags: dict[str, str]) -> None:
        """Set tags of the parent run."""
        client, run_id = self._connected()
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()], synchronous=True)
        self._of_the_parent["tags"] = partial(self.tag_study, tags)

    def tag_older(self, since: int) -> None:
        """Mark the runs of trials before `since`: their scores do not compare with later ones."""
        client, _ = self._connected()
        for run in self._find(client, self._experiment, CHILDREN):
            if int(run.data.tags["trial_number"]) < since and "older" not in run.data.tags:
                client.set_tag(run.info.run_id, "older", "true", synchronous=True)

    def base(self, result: Result, folder: TrialFolder) -> None:
        """Log the base model's own story on the parent run; its metrics are sent last, as the mark that the
        image has arrived.
        """
        client, run_id = self._connected()
        points = _missing(result_points(result, folder, "base_"), self._parent.data.metrics)
        if points:
            self._upload(run_id, folder.sheet, "base")
            client.log_batch(run_id, metrics=points, synchronous=True)
        self._of_the_parent["base"] = partial(self.base, result, folder)

    def trial(self, spec: TrialSpec, sampled: str, folder: TrialFolder, result: Result | None) -> None:
        """Send everything that `folder` has by now; with a result the whole trial, its final status last."""
        client, parent = self._connected()
        if self._is_left_alone(spec.number) or (result and self._is_sent(spec.number)):
            return
        child = self._child(spec, sampled, folder)
        if child is None:
            return
        points = result_points(result, folder) if result else []
        # the trial was run again: MLflow would keep the old points beside the new ones
        if folder.result.exists() and _contradicts(points, child.metrics):
            self._delete(child.run_id, spec.number)
            child = self._child(spec, sampled, folder)
            assert child
        made = self._folder.made(result) if result else folder
        self._log_losses(child, spec, made)
        if result is None:
            return
        for path, where in artifact_files(result, made):
            self._upload(child.run_id, path, where)
        tags = result_tags(result) | {MLFLOW_PARENT_RUN_ID: parent}
        client.log_batch(
            child.run_id,
            metrics=_missing(points, child.metrics),
            tags=[RunTag(key, value) for key, value in tags.items() if value],
            synchronous=True,
        )
        ended_ms = written_ms(folder)
        status = "FINISHED" if result.state == "complete" else "FAILED"
        # not before its start: a clock may have been set back
        client.set_terminated(child.run_id, status, max(child.started_ms, ended_ms))
        del self._children[spec.number]
        self._tracked.note(spec.number, TrackedRun(child.run_id, ended_ms))

    def fully_sent(self) -> set[int]:
        """Trials of which nothing is left to send: the result that is on the disk was sent with its images
        and LoRA, or the user deleted the run."""
        return {
            number for number in self._tracked.trials if self._is_left_alone(number) or self._is_sent(number)
        }

    def end_study(self, status: str, passed: Sequence[int]) -> None:
        """End the parent run and all runs of trials that are still open. Tag the winner: the first of
        `passed` (best first) whose run the user has not deleted."""
        client, parent = self._connected()
        self._end_open_children()
        runs, tracked = self._find(client, self._experiment, CHILDREN), self._tracked.trials
        there = {run.info.run_id for run in runs}
        winner = next(
            (number for number in passed if number not in tracked or tracked[number].run_id in there), None
        )
        best = tracked[winner].run_id if winner is not None and self._is_sent(winner) else None
        for run in runs:
            won = run.info.run_id == best
            if won or run.data.tags.get("winner") == "true":
                client.set_tag(run.info.run_id, "winner", str(won).lower(), synchronous=True)
        client.set_terminated(parent, status, max(self._parent.info.start_time, _now_ms()))

    def _connected(self) -> tuple[MlflowClient, str]:
        """The client and the parent run's id."""
        self.connect()
        assert self._client
        return self._client, self._parent.info.run_id

    def _child(self, spec: TrialSpec, sampled: str, folder: TrialFolder) -> Child | None:
        """The trial's run, found or created, open and with its params; None if the user deleted it."""
        if spec.number in self._children:
            return self._children[spec.number]
        client, parent = self._connected()
        found = self._find(client, self._experiment, f"tags.trial_number = '{spec.number}'")
        params = as_params(spec.all_params())
        if found and any(found[0].data.params.get(param.key, param.value) != param.value for param in params):
            # It was started with other settings, and MLflow never changes a logged param.
            self._delete(found.pop(0).info.run_id, spec.number)
        for lost in found[1:]:
            client.delete_run(lost.info.run_id)
        if not found and spec.number in self._tracked.trials:
            self._tracked.note_deleted(spec.number)
            log.warning(
                "MLflow: the run of trial %d was deleted there; it stays deleted, its folder has everything",
                spec.number,
            )
            return None
        name = f"trial-{spec.number:04d}"
        run = (
            found[0]
            if found
            else client.create_run(
                # when the trial started; this request may come much later
                self._experiment,
                start_time=started_ms(folder),
                run_name=name,
                tags={
                    MLFLOW_PARENT_RUN_ID: parent,
                    MLFLOW_RUN_NAME: name,
                    "trial_number": str(spec.number),
                    "state": "running",
                    "sampled": sampled,
                }
                | self._tracked.new_mark(),
            )
        )
        run_id = run.info.run_id
        # also if the trial was started again: it is no longer fully sent
        self._tracked.note(spec.number, TrackedRun(run_id))
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        params = [param for param in params if run.data.params.get(param.key) != param.value]
        if params:
            client.log_batch(run_id, params=params, synchronous=True)
        steps = {point.step for point in client.get_metric_history(run_id, "train_loss")} if found else set()
        self._children[spec.number] = Child(run_id, run.info.start_time, steps, run.data.metrics)
        return self._children[spec.number]

    def _log_losses(self, child: Child, spec: TrialSpec, folder: TrialFolder) -> None:
        """Send the losses of the finished epochs, but for the steps that MLflow has already."""
        client, _ = self._connected()
        points = [point for point in loss_points(spec, folder) if point.step not in child.loss_steps]
        for start in range(0, len(points), MAX_METRICS):
            batch = points[start : start + MAX_METRICS]
            client.log_batch(child.run_id, metrics=batch, synchronous=True)
            child.loss_steps.update(point.step for point in batch)
            self._progressed(0.0)

    def _upload(self, run_id: str, path: Path, where: str | None) -> None:
        """Send one file, once. A file that is too large for the server or a proxy is skipped with a warning,
        so that it does not block the queue.
        """
        client, _ = self._connected()
        found = path.stat()
        upload = run_id, path, where, found.st_mtime_ns, found.st_size
        if self._uploads.get(upload):
            return
        if upload not in self._uploads:  # a retry is no progress
            self._progressed(found.st_size / SLOWEST_BYTES_PER_S)
            self._uploads[upload] = False
        try:
            client.log_artifact(run_id, str(path), where)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            log.warning("MLflow's server takes no file as large as %s; it stays where it is", path)
        self._uploads[upload] = True
        self._progressed(0.0)

    def _end_open_children(self) -> None:
        client, _ = self._connected()
        for run in self._find(client, self._experiment, f"attributes.status = 'RUNNING' AND {CHILDREN}"):
            run_id = run.info.run_id
            known = self._tracked.trials.get(int(run.data.tags["trial_number"]))
            # created by a request that had timed out here
            if known and known.written_ms is not None and known.run_id != run_id:
                client.delete_run(run_id)
            else:
                client.set_terminated(run_id, "KILLED", max(run.info.start_time, _now_ms()))

    def _leave_to_the_other_folder(self, client: MlflowClient, experiment: str) -> None:
        """Take a new id where another folder sends runs under this study's id: one of the two folders is a
        copy of the other.
        """
        if self._tracked.id and not all(
            map(self._tracked.is_own, _search(client, experiment, self._of_this_study("")))
        ):
            self._tracked.take_new_id()
            log.warning(
                "MLflow: a copy of %s, or the folder that it was copied from, "
                "sends its trials under the same id; this folder gets an id of its own, and sends all its "
                "trials anew",
                self._folder.path,
            )

    def _adopt_children(self, client: MlflowClient) -> None:
        for run in self._find(client, self._experiment, CHILDREN):
            client.set_tag(run.info.run_id, MLFLOW_PARENT_RUN_ID, self._parent.info.run_id, synchronous=True)

    def _find(self, client: MlflowClient, experiment: str, where: str) -> list[Run]:
        """This study's runs that match a filter. In a shared store, runs of a study of the same name in
        another runs folder are left out.
        """
        return [
            run
            for run in _search(client, experiment, self._of_this_study(where))
            if self._tracked.is_own(run)
        ]

    def _of_this_study(self, where: str) -> str:
        mine = f"tags.{STUDY_ID} = '{self._tracked.id}'" if self._tracked.id else ""
        return " AND ".join(filter(None, (where, mine)))

    def _claim(self, client: MlflowClient, experiment: str) -> list[Run]:
        """Tag the runs that this study logged before it had an id -> its parent run, or none."""
        parents = [
            run
            for run in _search(client, experiment, "tags.kind = 'study'")
            if self._tracked.id and run.info.run_id == self._tracked.parent and STUDY_ID not in run.data.tags
        ]
        for parent in parents:
            children = _search(client, experiment, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'")
            for run in (*children, parent):  # the parent last, so that an interrupted claim is repeated
                client.set_tag(run.info.run_id, STUDY_ID, self._tracked.id, synchronous=True)
        return parents

    def _delete(self, run_id: str, number: int) -> None:
        """Delete a trial's run that is to be created anew. It is removed from the record first, or it would
        count as deleted by the user.
        """
        client, _ = self._connected()
        self._tracked.forget(number)
        client.delete_run(run_id)
        self._children.pop(number, None)

    def _is_sent(self, number: int) -> bool:
        run, folder = self._tracked.trials.get(number), self._folder.trial(number)
        if run is None or run.written_ms is None:
            return False
        return run.written_ms == written_ms(folder) or not folder.result.exists()

    def _is_left_alone(self, number: int) -> bool:
        return number in self._tracked.trials and self._tracked.trials[number].deleted


def refused(error: MlflowException) -> bool:
    """Whether a retry is useless: a param has another value already, or the user deleted the run."""
    return str(error.error_code) == "INVALID_PARAMETER_VALUE"


def _search(client: MlflowClient, experiment: str, where: str) -> list[Run]:
    """All runs that match a filter, oldest first; MLflow returns a thousand at a time."""
    page = client.search_runs([experiment], where, order_by=OLDEST_FIRST)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment], where, order_by=OLDEST_FIRST, page_token=page.token)
        runs += page
    return runs


def _now_ms() -> int:
    return round(time.time() * 1000)


def _contradicts(points: list[Metric], known: dict[str, float]) -> bool:
    """Whether MLflow has other values for these metrics, apart from the rounding of some databases."""
    return any(
        not math.isclose(point.value, known.get(point.key, point.value), rel_tol=1e-9) for point in points
    )


def _missing(points: list[Metric], known: dict[str, float]) -> list[Metric]:
    return [point for point in points if known.get(point.key) != point.value]

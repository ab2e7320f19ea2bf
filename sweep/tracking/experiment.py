"""A study's experiment in MLflow, made equal to the study's folder: a parent run, a child run for each trial.

Everything here is idempotent, also after a failure in the middle: the study's runs are looked at once after
connecting, and only what they lack is logged; a run is looked for before it is created; MLflow keeps one of
two metric points with equal key, step, timestamp and value; and the final status comes last.
"""

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from core.folders import Runs
from core.trial.result import Result
from core.trial.spec import TrialSpec, Value
from sweep.tracking.entities import (
    artifact_files,
    as_params,
    loss_points,
    result_points,
    result_tags,
    started_ms,
    written_ms,
)
from sweep.tracking.record import STUDY_ID, Record, TrackedRun
from sweep.tracking.store import open_experiment, store_id
from sweep.tracking.uri import TrackingPlace

log = logging.getLogger(__name__)
SLOWEST_BYTES_PER_S = 250_000  # an upload slower than this counts as no progress
NOTHING: Mapping[str, str] = {}
MAX_RUNS = 50_000  # of one study; MLflow's own limit for one answer
OLDEST_FIRST = ["start_time ASC", "run_id ASC"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFacts:
    """What is known of a study apart from its folder.

    `settings` are those that all trials share. `trials` has the numbers of all trials so far. Scores of the
    trials before `older_than` do not compare with later ones.
    """

    settings: Mapping[str, Value]
    tags: Mapping[str, str]
    trials: Collection[int]
    older_than: int = 0


class Experiment:
    """One study's experiment. For one thread at a time, but for `sent`.

    `moved_at` is the time of the last progress, by time.monotonic; in the future while a file is uploaded,
    which may take until then.
    """

    _client: MlflowClient
    _id: str
    _parent: Run

    def __init__(self, runs: Runs, study: str, place: TrackingPlace) -> None:
        self._runs, self._study, self._place, self._folder = runs, study, place, runs.study(study)
        self._record = Record.open(self._folder, shared=place.kind != "own")
        self._connected = False
        self._verified = False  # whether the record was checked against this store
        self._started = False
        self._facts: StudyFacts | None = None
        self._children: dict[int, Run] = {}
        self._loss_steps: dict[int, set[int]] = {}  # that MLflow has of the trials at work
        # by run, file and time of writing: False after a failed attempt, True when sent
        self._uploads: dict[tuple[str, Path, int], bool] = {}
        self.moved_at = 0.0

    def connect(self) -> None:
        """Open the store and the experiment, and look at the study's runs, once. Raises TrackingError."""
        if self._connected:
            return
        self._client, self._id = open_experiment(self._runs, self._study, self._place)
        runs, record = self._own_runs(), self._record
        parents = [run for run in runs if run.data.tags.get("kind") == "study"]
        store = store_id(self._client)
        same_store = store is not None and store == record.store
        if not same_store and record.parent not in {run.info.run_id for run in parents}:
            record.trials = {}  # another store, or a new one: it has none of them
        for lost in parents[1:]:  # created by a request that had timed out here
            self._client.delete_run(lost.info.run_id)
        self._parent = parents[0] if parents else self._create(self._study, {"kind": "study"})
        record.store, record.parent = store, self._parent.info.run_id
        recorded = {run.run_id for run in record.trials.values()}
        children = [run for run in runs if "trial_number" in run.data.tags]
        for run in sorted(children, key=lambda run: run.info.run_id not in recorded):
            if self._children.setdefault(int(run.data.tags["trial_number"]), run) is run:
                self._add(run, tags={MLFLOW_PARENT_RUN_ID: record.parent})
            else:
                self._client.delete_run(run.info.run_id)
        self._connected = self._verified = True
        if self._facts:  # the user may have deleted the parent run; older trials may have been sent since
            self._log_parent(self._facts)

    def forget(self) -> None:
        """After a failure: connect again, and look again at what MLflow has."""
        self._connected = False
        self._children, self._loss_steps = {}, {}

    def log_study(self, facts: StudyFacts) -> None:
        """Log the study's file, facts and base story on its parent run, and mark the older trials. The first
        time, mark the parent run as running, end the trials' runs that an earlier start left open, and delete
        those of trials that the study does not have, such as those of a lost study.db.
        """
        self.connect()
        self._log_parent(facts)
        self._facts = facts
        if self._started:
            return
        # also from the record, where the user deleted the run: a new trial may get the same number
        for number in (self._children.keys() | self._record.trials.keys()) - set(facts.trials):
            self._delete(number)
        self._end_open_children()
        self._client.update_run(self._parent.info.run_id, status="RUNNING")
        self._started = True

    def _log_parent(self, facts: StudyFacts) -> None:
        self._upload(self._parent, self._folder.frozen)
        self._add(self._parent, params=as_params(facts.settings), tags=facts.tags)
        for number, run in self._children.items():
            if number < facts.older_than:
                self._add(run, tags={"older": "true"})
        base = self._folder.base.read_result()
        if base and base.state == "complete":
            points = result_points(base, self._folder.base, "base_")
            if _missing(points, self._parent.data.metrics):
                self._upload(self._parent, self._folder.base.sheet, "base")
            self._add(self._parent, points=points)

    def log_trial(self, spec: TrialSpec, sampled: Collection[str], result: Result | None) -> None:
        """Log everything that the trial's folder has by now; with a result the whole trial, its final status
        last. `sampled` are the settings that Optuna chose.
        """
        self.connect()
        number, folder = spec.number, self._folder.trial(spec.number)
        known = self._record.trials.get(number)
        if known and (known.deleted or (result and self._is_sent(number))):
            return
        points = result_points(result, folder) if result else []
        run = self._open(spec, sampled, points if folder.result.exists() else [])
        if run is None:
            return
        made = self._folder.artifacts_of(result) if result else folder
        steps = self._loss_steps[number]
        losses = [point for point in loss_points(spec, made) if point.step not in steps]
        self._client.log_batch(run.info.run_id, losses, synchronous=True)
        steps.update(point.step for point in losses)
        if result is None:
            return
        for path, where in artifact_files(result, made):
            self._upload(run, path, where)
        self._add(run, points=points, tags=result_tags(result))
        ended_ms = written_ms(folder)
        self._end(run, "FINISHED" if result.state == "complete" else "FAILED", ended_ms)
        del self._loss_steps[number]
        self._record.note(number, TrackedRun(run.info.run_id, ended_ms))

    def sent(self) -> set[int]:
        """Trials of which nothing is left to send: the result that is on the disk was sent with its images
        and LoRA, or the user deleted the run. None before MLflow has answered.
        """
        trials = self._record.trials if self._verified else {}
        return {number for number, run in trials.items() if run.deleted or self._is_sent(number)}

    def end_study(self, status: str, passed: Sequence[int]) -> None:
        """End the parent run and all runs of trials that are still open. Tag the winner: the first of
        `passed` (best first) whose run the user has not deleted.
        """
        self.forget()  # the user may have deleted runs meanwhile
        self.connect()
        self._end_open_children()
        left = (n for n in passed if n in self._children or n not in self._record.trials)
        winner = next(left, None)
        for number, run in self._children.items():
            won = number == winner and self._is_sent(number)
            if won or run.data.tags.get("winner") == "true":
                self._add(run, tags={"winner": str(won).lower()})
        self._end(self._parent, status, _now_ms())

    def _own_runs(self) -> list[Run]:
        """All runs of this study, oldest first. In a shared store, runs of a study of the same name in
        another runs folder are left out.
        """
        record = self._record
        runs = self._search(f"tags.{STUDY_ID} = '{record.id}'" if record.id else "")
        if record.id and not self._verified and not all(map(record.is_own, runs)):
            # Another folder sends runs under this id: one of the two is a copy of the other.
            record.take_new_id()
            log.warning(
                "MLflow: a copy of %s, or the folder that it was copied from, "
                "sends its trials under the same id; this folder gets an id of its own, and sends all its "
                "trials anew",
                self._folder.path,
            )
        own = [run for run in runs if record.is_own(run)]
        if record.id and record.parent and not any(run.info.run_id == record.parent for run in own):
            own += self._claim(record.id, record.parent)
        return own

    def _claim(self, study_id: str, parent: str) -> list[Run]:
        """Tag the runs that this study logged before it had an id -> these."""
        runs = [run for run in self._search("") if STUDY_ID not in run.data.tags]
        parents = [run for run in runs if run.info.run_id == parent]
        children = [run for run in runs if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent]
        # the parent last, so that an interrupted claim is repeated
        claimed = [*children, *parents] if parents else []
        for run in claimed:
            self._add(run, tags={STUDY_ID: study_id})
        return claimed

    def _search(self, where: str) -> list[Run]:
        """All runs that match a filter, oldest first."""
        return list(self._client.search_runs([self._id], where, max_results=MAX_RUNS, order_by=OLDEST_FIRST))

    def _create(self, name: str, tags: dict[str, str], start_ms: int | None = None) -> Run:
        return self._client.create_run(self._id, start_ms, tags | self._record.new_mark(), name)

    def _open(self, spec: TrialSpec, sampled: Collection[str], points: list[Metric]) -> Run | None:
        """The trial's run, found or created, open and with its params; None if the user deleted it."""
        number, record = spec.number, self._record
        params, run = as_params(spec.all_params()), self._children.get(number)
        if run and (
            any(run.data.params.get(param.key, param.value) != param.value for param in params)
            or _contradicts(points, run.data.metrics)
        ):
            # It was run with other settings, or again. MLflow never changes a logged param, and would keep
            # the old points beside the new ones.
            self._delete(number)
            run = None
        if run and number in self._loss_steps:
            return run
        if not run and number in record.trials:
            record.note(number, record.trials[number]._replace(deleted=True))
            log.warning(
                "MLflow: the run of trial %d was deleted there; it stays deleted, its folder has everything",
                number,
            )
            return None
        if not run:
            tags = {"trial_number": str(number), "state": "running", "sampled": ",".join(sampled)}
            tags |= {MLFLOW_PARENT_RUN_ID: self._parent.info.run_id}
            # when the trial started: this request may come much later
            run = self._create(f"trial-{number:04d}", tags, started_ms(self._folder.trial(number)))
        run_id = run.info.run_id
        # also if the trial was started again: it is no longer fully sent
        record.note(number, TrackedRun(run_id))
        self._client.update_run(run_id, status="RUNNING")
        self._add(run, params=params)
        history = self._client.get_metric_history(run_id, "train_loss")
        self._children[number], self._loss_steps[number] = run, {point.step for point in history}
        return run

    def _add(
        self,
        run: Run,
        *,
        params: Sequence[Param] = (),
        points: Sequence[Metric] = (),
        tags: Mapping[str, str] = NOTHING,
    ) -> None:
        """Log what the run lacks: params that it does not have, other values of metrics and tags."""
        known = run.data
        params = [param for param in params if param.key not in known.params]
        points = _missing(points, known.metrics)
        new_tags = [RunTag(key, value) for key, value in tags.items() if known.tags.get(key) != value]
        if params or points or new_tags:
            self._client.log_batch(run.info.run_id, points, params, new_tags, synchronous=True)
            known.params.update((param.key, param.value) for param in params)
            known.metrics.update((point.key, point.value) for point in points)
            known.tags.update(tags)

    def _upload(self, run: Run, path: Path, where: str | None = None) -> None:
        """Send one file, once. A file that is too large for the server or a proxy is skipped with a warning,
        so that it does not block the queue.
        """
        found = path.stat()
        upload = run.info.run_id, path, found.st_mtime_ns
        if self._uploads.get(upload):
            return
        if upload not in self._uploads:  # a retry is no progress
            self._progressed(found.st_size / SLOWEST_BYTES_PER_S)
            self._uploads[upload] = False
        try:
            self._client.log_artifact(run.info.run_id, str(path), where)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            log.warning("MLflow's server takes no file as large as %s; it stays where it is", path)
        self._uploads[upload] = True
        self._progressed()

    def _progressed(self, takes_s: float = 0.0) -> None:
        self.moved_at = time.monotonic() + takes_s

    def _end_open_children(self) -> None:
        for run in self._children.values():
            if run.info.status == "RUNNING":
                self._end(run, "KILLED", _now_ms())

    def _end(self, run: Run, status: str, at_ms: int) -> None:
        """End the run, not before its start: a clock may have been set back."""
        self._client.set_terminated(run.info.run_id, status, max(run.info.start_time, at_ms))

    def _delete(self, number: int) -> None:
        """Delete a trial's run. It is removed from the record first, or it would count as deleted by the
        user.
        """
        self._record.note(number, None)
        self._loss_steps.pop(number, None)
        if run := self._children.pop(number, None):
            self._client.delete_run(run.info.run_id)

    def _is_sent(self, number: int) -> bool:
        run, folder = self._record.trials.get(number), self._folder.trial(number)
        sent_ms = run.written_ms if run else None
        return sent_ms is not None and (sent_ms == written_ms(folder) or not folder.result.exists())


def _now_ms() -> int:
    return round(time.time() * 1000)


def _contradicts(points: list[Metric], known: Mapping[str, float]) -> bool:
    """Whether MLflow has other values for these metrics, apart from the rounding of some databases."""
    return any(
        not math.isclose(point.value, known.get(point.key, point.value), rel_tol=1e-9) for point in points
    )


def _missing(points: Sequence[Metric], known: Mapping[str, float]) -> list[Metric]:
    return [point for point in points if known.get(point.key) != point.value]

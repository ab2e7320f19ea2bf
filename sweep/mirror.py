"""MLflow as a mirror of the disk: makes the runs of a study equal to its folders.

Everything here may be repeated, after a failure in the middle too: what MLflow has already is neither doubled nor missed.
MLflow keeps one of two metric points with equal key, step, timestamp and value; params, tags and artifacts are the same when
sent again; a run is looked for before it is made; and the final status comes last.
"""
import logging
import math
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from core.files import read_json, write_json, write_text
from core.folders import Runs, StudyFolder, TrialFolder
from core.settings import Result, TrialSpec
from sweep.tracking_store import open_experiment
from sweep.tracking_uri import VARIABLE, tracking_uri
from sweep.trial_record import artifact_files, as_params, loss_points, result_points, result_tags, started_ms, written_ms

log = logging.getLogger(__name__)
MAX_METRICS = 1000  # MLflow's own limit for one call
SLOWEST_BYTES_PER_S = 250_000  # a line that carries files slower than this counts as standing still
CHILDREN = "tags.trial_number LIKE '%'"
OLDEST_FIRST = ["start_time ASC", "run_id ASC"]


@dataclass(frozen=True, slots=True)
class Child:
    """A trial's run, and what it had when it was found."""
    run_id: str
    started_ms: int
    loss_steps: set[int]  # grows as losses are sent
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Sent:
    """A trial that MLflow has whole, with the result that was written then."""
    run_id: str
    written_ms: int


class Mirror:
    """One study's experiment: a parent run, a child run for each trial. Used from one thread at a time.

    `moves` is told of every part that has arrived, and before a file of the seconds that it may take.
    """

    def __init__(self, runs: Runs, study: str, moves: Callable[[float], None]) -> None:
        self._runs, self._study, self._uri, self._moves = runs, study, tracking_uri(runs), moves
        self._folder = runs.study(study)
        self._client: MlflowClient | None = None
        self._children: dict[int, Child] = {}
        self._uploads: dict[tuple[Any, ...], bool] = {}  # whether a file that was tried has arrived
        self._parent_of_sent, self.sent = _read_sent(self._folder.tracked)
        self._id = _tracking_id(self._folder) if os.environ.get(VARIABLE) else None  # a store of its own needs none
        self.sure = False  # whether `sent` is about this store: MLflow was seen to have its parent run

    def connect(self) -> None:
        """Open the store, the experiment and the parent run, once. Raises TrackingError."""
        if self._client:
            return
        client, experiment = open_experiment(self._runs, self._study, self._uri)
        found = self._find(client, experiment, "tags.kind = 'study'") or self._claim(client, experiment)
        for lost in found[1:]:  # made by a request that we gave up too early
            client.delete_run(lost.info.run_id)
        self._parent = found[0] if found else client.create_run(
            experiment, run_name=self._study, tags={"kind": "study"} | self._mark)
        self._experiment, self._client = experiment, client
        if self._parent.info.run_id != self._parent_of_sent:  # another store, or a new one: it has none of the trials
            self._parent_of_sent, self.sent = self._parent.info.run_id, {}
        self.sure = True

    def forget(self) -> None:
        """After a failure nothing is certain: look again at what MLflow has."""
        self._client = None
        self._children.clear()

    def start_study(self, settings: dict[str, Any], study_file: Path) -> None:
        """The parent run is at work; what an earlier run of the sweep left open is not."""
        client, run_id = self._connected()
        self._upload(run_id, study_file, None)
        if not self._parent.data.params:
            client.log_batch(run_id, params=as_params(settings))
        self._end_open_children()
        client.update_run(run_id, status="RUNNING")

    def keep_only(self, numbers: set[int]) -> None:
        """Delete the runs of trials that the study knows no more, such as those of a study.db that was lost."""
        client, _ = self._connected()
        for run in self._find(client, self._experiment, CHILDREN):
            number = int(run.data.tags["trial_number"])
            if number not in numbers:
                if number in self.sent:
                    self._forget_sent(number)
                client.delete_run(run.info.run_id)

    def tag_study(self, tags: dict[str, str]) -> None:
        client, run_id = self._connected()
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def tag_older(self, since: int) -> None:
        """Mark the runs of trials before `since`: their scores do not compare with later ones."""
        client, _ = self._connected()
        for run in self._find(client, self._experiment, CHILDREN):
            if int(run.data.tags["trial_number"]) < since and "older" not in run.data.tags:
                client.set_tag(run.info.run_id, "older", "true")

    def base(self, result: Result, folder: TrialFolder) -> None:
        """The base model's own story, on the parent run; its numbers come last and say that the rest is there."""
        client, run_id = self._connected()
        points = _missing(result_points(result, folder, "base_"), self._parent.data.metrics)
        if points:
            self._upload(run_id, folder.sheet, "base")
            client.log_batch(run_id, metrics=points)

    def trial(self, spec: TrialSpec, sampled: str, folder: TrialFolder, result: Result | None) -> None:
        """Everything that `folder` has by now; with a result the whole trial, its final status last."""
        client, parent = self._connected()
        if result and self._is_sent(spec.number):
            return
        if spec.number in self.sent:  # the trial was started again
            self._forget_sent(spec.number)
        child = self._child(spec, sampled, folder)
        points = result_points(result, folder) if result else []
        if folder.result.exists() and _contradicts(points, child.metrics):  # done again: old points would stay beside new ones
            client.delete_run(child.run_id)
            del self._children[spec.number]
            child = self._child(spec, sampled, folder)
        made = self._folder.made(result) if result else folder
        self._log_losses(child, spec, made)
        if result is None:
            return
        for path, where in artifact_files(result, made):
            self._upload(child.run_id, path, where)
        tags = result_tags(result) | {MLFLOW_PARENT_RUN_ID: parent}
        client.log_batch(child.run_id, metrics=_missing(points, child.metrics),
                         tags=[RunTag(key, value) for key, value in tags.items() if value])
        ended_ms = written_ms(folder)
        client.set_terminated(child.run_id, "FINISHED" if result.state == "complete" else "FAILED",
                              max(child.started_ms, ended_ms))  # a clock may have been set back
        del self._children[spec.number]
        self._keep_sent(self.sent | {spec.number: Sent(child.run_id, ended_ms)})

    def whole(self) -> set[int]:
        """Trials whose result, as it lies on the disk, was sent with all that belongs to it."""
        return {number for number in self.sent if self._is_sent(number)}

    def end_study(self, status: str, winner: int | None) -> None:
        """End the parent run and whatever is still open under it, and mark the winner."""
        client, parent = self._connected()
        self._end_open_children()
        best = self.sent[winner].run_id if winner in self.sent else None
        for run in self._find(client, self._experiment, "tags.winner = 'true'"):
            if run.info.run_id != best:
                client.set_tag(run.info.run_id, "winner", "false")
        if best:
            client.set_tag(best, "winner", "true")
        client.set_terminated(parent, status, max(self._parent.info.start_time, _now_ms()))

    def _connected(self) -> tuple[MlflowClient, str]:
        """The client and the parent run's id."""
        self.connect()
        assert self._client
        return self._client, self._parent.info.run_id

    def _child(self, spec: TrialSpec, sampled: str, folder: TrialFolder) -> Child:
        """The trial's one run, open and with its params: found, or made."""
        if spec.number in self._children:
            return self._children[spec.number]
        client, parent = self._connected()
        found = self._find(client, self._experiment, f"tags.trial_number = '{spec.number}'")
        params = as_params(spec.all_params())
        if found and any(found[0].data.params.get(param.key, param.value) != param.value for param in params):
            client.delete_run(found.pop(0).info.run_id)  # begun under other words, and MLflow never changes a logged param
        for lost in found[1:]:
            client.delete_run(lost.info.run_id)
        name = f"trial-{spec.number:04d}"
        run = found[0] if found else client.create_run(
            self._experiment, start_time=started_ms(folder), run_name=name, tags={  # MLflow may hear of it much later
                MLFLOW_PARENT_RUN_ID: parent, MLFLOW_RUN_NAME: name, "trial_number": str(spec.number), "state": "running",
                "sampled": sampled} | self._mark)
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        params = [param for param in params if run.data.params.get(param.key) != param.value]
        if params:
            client.log_batch(run_id, params=params)
        steps = {point.step for point in client.get_metric_history(run_id, "train_loss")} if found else set()
        self._children[spec.number] = Child(run_id, run.info.start_time, steps, run.data.metrics)
        return self._children[spec.number]

    def _log_losses(self, child: Child, spec: TrialSpec, folder: TrialFolder) -> None:
        """Losses of the epochs done; steps that an earlier attempt logged are left as they are."""
        client, _ = self._connected()
        points = [point for point in loss_points(spec, folder) if point.step not in child.loss_steps]
        for start in range(0, len(points), MAX_METRICS):
            batch = points[start:start + MAX_METRICS]
            client.log_batch(child.run_id, metrics=batch)
            child.loss_steps.update(point.step for point in batch)
            self._moves(0.0)

    def _upload(self, run_id: str, path: Path, where: str | None) -> None:
        """Send one file, once. A size that the server or a proxy will never take must not hold up all that is behind it."""
        client, _ = self._connected()
        found = path.stat()
        upload = run_id, path, where, found.st_mtime_ns, found.st_size
        if self._uploads.get(upload):
            return
        if upload not in self._uploads:  # a second try is no progress
            self._moves(found.st_size / SLOWEST_BYTES_PER_S)
            self._uploads[upload] = False
        try:
            client.log_artifact(run_id, str(path), where)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise
            log.warning("MLflow's server takes no file as large as %s; it stays where it is", path)
        self._uploads[upload] = True
        self._moves(0.0)

    def _end_open_children(self) -> None:
        client, _ = self._connected()
        for run in self._find(client, self._experiment, f"attributes.status = 'RUNNING' AND {CHILDREN}"):
            run_id = run.info.run_id
            sent = self.sent.get(int(run.data.tags["trial_number"]))
            if sent and sent.run_id != run_id:  # made by a request that we gave up too early
                client.delete_run(run_id)
            else:
                client.set_terminated(run_id, "KILLED", max(run.info.start_time, _now_ms()))

    @property
    def _mark(self) -> dict[str, str]:
        return {"study_id": self._id} if self._id else {}

    def _find(self, client: MlflowClient, experiment: str, where: str) -> list[Run]:
        """This study's runs: on a store that others use too, one of the same name in another runs folder has its own."""
        return _search(client, experiment, where + "".join(f" AND tags.{key} = '{value}'" for key, value in self._mark.items()))

    def _claim(self, client: MlflowClient, experiment: str) -> list[Run]:
        """What this folder sent before it had a mark, as to the same store while that was its own."""
        parents = [run for run in _search(client, experiment, "tags.kind = 'study'")
                   if self._mark and run.info.run_id == self._parent_of_sent]
        for parent in parents:
            children = _search(client, experiment, f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'")
            for run in (*children, parent):  # the parent last, so that a claim that broke off is made again
                client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in self._mark.items()])
        return parents

    def _is_sent(self, number: int) -> bool:
        sent, folder = self.sent.get(number), self._folder.trial(number)
        return sent is not None and (sent.written_ms == written_ms(folder) or not folder.result.exists())

    def _forget_sent(self, number: int) -> None:
        self._keep_sent({other: sent for other, sent in self.sent.items() if other != number})

    def _keep_sent(self, sent: dict[int, Sent]) -> None:
        """On the disk first: what could not be noted there is sent again, which changes nothing."""
        trials = {number: [one.run_id, one.written_ms] for number, one in sent.items()}
        write_json(self._folder.tracked, {"parent": self._parent_of_sent, "trials": trials})
        self.sent = sent


def refused(error: MlflowException) -> bool:
    """Whether sending the same again is useless: a param that differs, a run that the user deleted."""
    return error.error_code == "INVALID_PARAMETER_VALUE"


def _search(client: MlflowClient, experiment: str, where: str) -> list[Run]:
    """Runs, oldest first; MLflow answers a thousand at a time."""
    page = client.search_runs([experiment], where, order_by=OLDEST_FIRST)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment], where, order_by=OLDEST_FIRST, page_token=page.token)
        runs += page
    return runs


def _tracking_id(folder: StudyFolder) -> str:
    """What tells this study from others of its name; made once."""
    if not folder.tracking_id.exists():
        write_text(folder.tracking_id, uuid.uuid4().hex)
    return folder.tracking_id.read_text(encoding="ascii")


def _now_ms() -> int:
    return round(time.time() * 1000)


def _contradicts(points: list[Metric], known: dict[str, float]) -> bool:
    """Whether MLflow has other values already; equal up to what a foreign database may round."""
    return any(not math.isclose(point.value, known.get(point.key, point.value), rel_tol=1e-9) for point in points)


def _missing(points: list[Metric], known: dict[str, float]) -> list[Metric]:
    return [point for point in points if known.get(point.key) != point.value]


def _read_sent(path: Path) -> tuple[str | None, dict[int, Sent]]:
    """The parent run and the trials that were sent under it; whatever cannot be read is sent again."""
    try:
        stored = read_json(path)
        return stored["parent"], {int(number): Sent(*sent) for number, sent in stored["trials"].items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None, {}

"""MLflow as a mirror of the disk: makes the runs of a study equal to its folders.

Everything here may be repeated, after a failure in the middle too: what MLflow has already is neither doubled nor missed.
MLflow itself keeps one of two metric points with equal key, step, timestamp and value, so timestamps come from the files,
never from the clock; params and artifacts are the same when sent again, and the final status always comes last.
"""
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from core.files import read_json, write_json, write_whole
from core.folders import Runs, TrialFolder
from core.settings import Result, TrialSpec
from sweep.tracking_uri import VARIABLE, masked, tracking_uri

METRICS = 1000  # MLflow's own limits for one call
PARAMS = 100
LOCK_S = 60.0


class TrackingError(ValueError):
    """Only the user can help: the words of the tracking URI, or a deleted experiment."""


@dataclass(frozen=True, slots=True)
class Child:
    """A trial's run, and what it had when it was found."""
    run_id: str
    started_ms: int
    loss_steps: set[int]  # grows as losses are sent
    metrics: dict[str, float]


class Mirror:
    """One study's experiment: a parent run, a child run for each trial. Used from one thread at a time."""

    def __init__(self, runs: Runs, study: str) -> None:
        self._runs, self._study, self._uri = runs, study, tracking_uri(runs)
        self._folder = runs.study(study)
        self._client: MlflowClient | None = None
        self._children: dict[int, Child] = {}
        self._parent_of_sent, self.sent = _read_sent(self._folder.tracked)

    def connect(self) -> None:
        """Open the store, the experiment and the parent run, once. Raises TrackingError."""
        if self._client:
            return
        try:
            client = self._open_store()
            experiment = self._open_experiment(client)
        except (ImportError, sqlalchemy.exc.ArgumentError, InvalidUrlException) as error:
            raise TrackingError(f"{VARIABLE} is {masked(self._uri)!r}, which cannot work: {masked(str(error))}") from None
        found = client.search_runs([experiment], "tags.kind = 'study'", order_by=["start_time ASC", "run_id ASC"])
        for lost in found[1:]:  # made by a request that we gave up too early
            client.delete_run(lost.info.run_id)
        self._parent = found[0] if found else client.create_run(experiment, run_name=self._study, tags={"kind": "study"})
        self._experiment, self._client = experiment, client
        if self._parent.info.run_id != self._parent_of_sent:  # another store, or a new one: it has none of the trials
            self._parent_of_sent, self.sent = self._parent.info.run_id, {}

    def forget(self) -> None:
        """After a failure nothing is certain: look again at what MLflow has."""
        self._client = None
        self._children.clear()

    def start_study(self, settings: dict[str, Any], study_file: Path) -> None:
        """The parent run is at work; what an earlier run of the sweep left open is not."""
        client, run_id = self._connected()
        client.log_artifact(run_id, str(study_file))
        if not self._parent.data.params:
            client.log_batch(run_id, params=_params(settings))
        self._end_open_children()
        client.update_run(run_id, status="RUNNING")

    def base(self, result: Result, folder: TrialFolder) -> None:
        """The base model's own story, on the parent run; its numbers come last and say that the rest is there."""
        client, run_id = self._connected()
        metrics = {f"base_{name}": value for name, value in _metrics(result).items()}
        if self._parent.data.metrics.items() >= metrics.items():
            return
        client.log_artifact(run_id, str(folder.sheet), "base")
        client.log_batch(run_id, metrics=_points(metrics, folder, self._parent.data.metrics))

    def trial(self, spec: TrialSpec, sampled: str, folder: TrialFolder, result: Result | None, tags: dict[str, str]) -> None:
        """Everything that `folder` has by now; with a result the whole trial, its final status last."""
        client, parent = self._connected()
        if self.sent.pop(spec.number, None):
            self._write_sent()
        child = self._child(spec, sampled, folder)
        self._log_losses(child, spec, folder)
        if result is None:
            return
        for path, where in _artifacts(result, folder):
            client.log_artifact(child.run_id, str(path), where)
        tags = _tags(result) | tags | {MLFLOW_PARENT_RUN_ID: parent}
        client.log_batch(child.run_id, metrics=_points(_metrics(result), folder, child.metrics),
                         tags=[RunTag(key, value) for key, value in tags.items() if value])
        client.set_terminated(child.run_id, "FINISHED" if result.state == "complete" else "FAILED",
                              max(child.started_ms, _written_ms(folder)))  # not later, but a clock may have been set back
        self.sent[spec.number] = child.run_id
        self._write_sent()

    def end_study(self, status: str, winner: int | None) -> None:
        """End the parent run and whatever is still open under it, and mark the winner."""
        client, parent = self._connected()
        self._end_open_children()
        best = self.sent.get(winner) if winner is not None else None
        for run in client.search_runs([self._experiment], "tags.winner = 'true'"):
            if run.info.run_id != best:
                client.set_tag(run.info.run_id, "winner", "false")
        if best:
            client.set_tag(best, "winner", "true")
        client.set_terminated(parent, status)

    def _open_store(self) -> MlflowClient:
        """Made by one process at a time: MLflow 3.17 fails when several find the same database empty."""
        self._runs.path.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self._runs.tracking_lock, timeout=LOCK_S):
            database = self._runs.tracking_db
            if not os.environ.get(VARIABLE) and not database.exists():
                for half in database.parent.glob(f".{database.name}.*"):  # with its journal, from a process that was killed
                    half.unlink()
                write_whole(database, lambda to: MlflowClient(f"sqlite:///{to.resolve()}"))
            return MlflowClient(self._uri)

    def _open_experiment(self, client: MlflowClient) -> str:
        experiment = client.get_experiment_by_name(self._study)
        if experiment is None:
            ours = not os.environ.get(VARIABLE)
            return client.create_experiment(self._study, self._runs.artifacts.resolve().as_uri() if ours else None)
        if experiment.lifecycle_stage != "active":
            raise TrackingError(f"MLflow's experiment {self._study!r} was deleted: restore it there, "
                                f"or give the study another name")
        return experiment.experiment_id

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
        found = client.search_runs([self._experiment], f"tags.trial_number = '{spec.number}'",
                                   order_by=["start_time ASC", "run_id ASC"])
        for lost in found[1:]:
            client.delete_run(lost.info.run_id)
        run = found[0] if found else self._new_child(client, parent, spec, sampled, folder)
        run_id = run.info.run_id
        if run.info.status != "RUNNING":
            client.update_run(run_id, status="RUNNING")
        missing = {name: value for name, value in _texts(spec.params()).items() if run.data.params.get(name) != value}
        if missing:
            client.log_batch(run_id, params=_params(missing))
        steps = {point.step for point in client.get_metric_history(run_id, "train_loss")} if found else set()
        self._children[spec.number] = Child(run_id, run.info.start_time, steps, run.data.metrics)
        return self._children[spec.number]

    def _new_child(self, client: MlflowClient, parent: str, spec: TrialSpec, sampled: str, folder: TrialFolder) -> Run:
        name = f"trial-{spec.number:04d}"
        events = _events(folder)
        started_ms = _ms(events[0]["time"] if events else time.time())  # MLflow may hear of it much later
        return client.create_run(self._experiment, start_time=started_ms, run_name=name, tags={
            MLFLOW_PARENT_RUN_ID: parent, MLFLOW_RUN_NAME: name, "trial_number": str(spec.number), "state": "running",
            "sampled": sampled,
        })

    def _log_losses(self, child: Child, spec: TrialSpec, folder: TrialFolder) -> None:
        """Losses of the epochs done; steps that an earlier attempt logged are left as they are."""
        client, _ = self._connected()
        points = [point for point in _losses(spec, folder) if point.step not in child.loss_steps]
        for start in range(0, len(points), METRICS):
            batch = points[start:start + METRICS]
            client.log_batch(child.run_id, metrics=batch)
            child.loss_steps.update(point.step for point in batch)

    def _end_open_children(self) -> None:
        client, _ = self._connected()
        for run in client.search_runs([self._experiment], "attributes.status = 'RUNNING'"):
            run_id, number = run.info.run_id, run.data.tags.get("trial_number")
            if number is None:  # the parent
                continue
            if self.sent.get(int(number), run_id) != run_id:  # made by a request that we gave up too early
                client.delete_run(run_id)
            else:
                client.set_terminated(run_id, "KILLED")

    def _write_sent(self) -> None:
        write_json(self._folder.tracked, {"parent": self._parent_of_sent, "trials": self.sent})


def refused(error: MlflowException) -> bool:
    """Whether sending the same again is useless: a param that differs, a run that the user deleted."""
    return error.error_code == "INVALID_PARAMETER_VALUE"


def _read_sent(path: Path) -> tuple[str | None, dict[int, str]]:
    """The parent run and the trials that were sent under it; whatever cannot be read is sent again."""
    try:
        stored = read_json(path)
        return stored["parent"], {int(number): run_id for number, run_id in stored["trials"].items()}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None, {}


def _artifacts(result: Result, folder: TrialFolder) -> list[tuple[Path, str | None]]:
    """Files and the artifact folder of each; weights may have been tidied away since."""
    if result.state == "failed":
        wanted: list[tuple[Path, str | None]] = [(folder.path / "traceback.txt", None)]
    else:
        pictures = [folder.picture(number) for number in range(1, len(result.spec.story.scenes) + 1)]
        wanted = [(folder.sheet, None), (folder.recipe, None), (folder.lora, "lora"), *((path, "story") for path in pictures)]
    return [(path, where) for path, where in wanted if path.exists()]


def _tags(result: Result) -> dict[str, str]:
    tags = {"state": result.state, "scorer": result.scorer, "device": result.device, "micro_batch": str(result.micro_batch)}
    if result.state == "complete":
        return tags | {"gate": "pass" if result.passed_gate else "fail"}
    return tags | {"reason": result.reason or "", "message": result.message or ""}


def _metrics(result: Result) -> dict[str, float]:
    values = {"aesthetic_mean": result.aesthetic_mean, "aesthetic_min": result.aesthetic_min,
              "aesthetic_std": result.aesthetic_std, "coherence": result.coherence, "duration_s": result.duration_s}
    values |= {f"aesthetic_{number}": value for number, value in enumerate(result.aesthetic, start=1)}
    return {name: value for name, value in values.items() if value is not None}


def _points(metrics: dict[str, float], folder: TrialFolder, known: dict[str, float]) -> list[Metric]:
    at_ms = _written_ms(folder)
    return [Metric(name, value, at_ms, 0) for name, value in metrics.items() if known.get(name) != value]


def _written_ms(folder: TrialFolder) -> int:
    """When the result was written; the folder of a trial that was told long ago may be gone."""
    return _ms(folder.result.stat().st_mtime if folder.result.exists() else time.time())


def _losses(spec: TrialSpec, folder: TrialFolder) -> list[Metric]:
    """One point a step; of an epoch that was done twice the first."""
    if spec.train is None:
        return []
    points: dict[int, Metric] = {}
    for event in _events(folder):
        if event["event"] == "epoch":
            first = event["epoch"] * spec.train.steps_per_epoch - len(event["losses"]) + 1
            for step, loss in enumerate(event["losses"], start=first):
                points.setdefault(step, Metric("train_loss", loss, _ms(event["time"]), step))
    return [points[step] for step in sorted(points)]


def _events(folder: TrialFolder) -> list[dict[str, Any]]:
    """What the worker has noted so far; a line that is not whole (yet) counts as not there."""
    if not folder.events.exists():
        return []
    events = []
    for line in folder.events.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events


def _texts(values: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _params(values: dict[str, Any]) -> list[Param]:
    assert len(values) <= PARAMS
    return [Param(name, value) for name, value in _texts(values).items()]


def _ms(time_s: float) -> int:
    return int(time_s * 1000)

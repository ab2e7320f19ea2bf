"""MLflow: one parent run for the study, a child run for each trial; names as in study files and tables.

Only `MlflowClient` with explicit run ids: no global active run that a death would leave behind.
"""
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from core.folders import Runs, TrialFolder
from core.settings import Result, TrialSpec

BATCH = 1000   # MLflow's own limit of metrics in one call
PARAMS = 100   # and of params


def tracking_uri(runs: Runs) -> str:
    """MLFLOW_TRACKING_URI if it is set, else the SQLite store under `runs`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.tracking_db.resolve()}"


class Tracking:
    """The study's experiment; every call may be repeated without doubling what it logs."""

    def __init__(self, runs: Runs, study: str) -> None:
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.ERROR)
        self._client = MlflowClient(tracking_uri(runs))
        self._experiment = self._open_experiment(runs, study)
        found = self._client.search_runs([self._experiment], max_results=1000)
        self._children = {int(run.data.tags["trial_number"]): run for run in found if "trial_number" in run.data.tags}
        parents = [run for run in found if run.data.tags.get("kind") == "study"]
        self._parent = parents[0] if parents else self._client.create_run(
            self._experiment, run_name=study, tags={"kind": "study"})

    def start_study(self, settings: dict[str, Any], study_file: Path) -> None:
        run_id = self._parent.info.run_id
        if not self._parent.data.params:
            self._client.log_batch(run_id, params=_params(settings))
        self._client.log_artifact(run_id, str(study_file))  # as it is now: ranges and accepted changes
        self._client.update_run(run_id, status="RUNNING")

    def tag_study(self, tags: dict[str, str]) -> None:
        self._client.log_batch(self._parent.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_base(self, result: Result, folder: TrialFolder) -> None:
        """The base model's own story, on the parent run."""
        if self._parent.data.metrics.get("base_aesthetic_mean") == result.aesthetic_mean:
            return
        run_id, now = self._parent.info.run_id, _now_ms()
        metrics = {f"base_{name}": value for name, value in _metrics(result).items()}
        self._client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
        self._client.log_artifact(run_id, str(folder.sheet), "base")

    def start_trial(self, spec: TrialSpec, sampled: dict[str, Any]) -> None:
        """Open the trial's run, or go on in the one it has."""
        params = _params(spec.params())
        if spec.number in self._children:
            run = self._client.get_run(self._children[spec.number].info.run_id)
            if run.data.params == {param.key: param.value for param in params}:
                self._client.update_run(run.info.run_id, status="RUNNING")
                return
            self._client.delete_run(run.info.run_id)  # begun under other words, and MLflow never changes a logged param
        name = f"trial-{spec.number:04d}"
        run = self._client.create_run(self._experiment, run_name=name, tags={
            MLFLOW_PARENT_RUN_ID: self._parent.info.run_id, MLFLOW_RUN_NAME: name,
            "trial_number": str(spec.number), "state": "running", "sampled": ",".join(sampled),
        })
        self._client.log_batch(run.info.run_id, params=params)
        self._children[spec.number] = run

    def log_losses(self, number: int, last_step: int, losses: list[float]) -> None:
        """One epoch's losses in batches; steps that an earlier attempt logged are left as they are."""
        run_id, now, first = self._children[number].info.run_id, _now_ms(), last_step - len(losses) + 1
        known = self._children[number].data.metrics.get("train_loss")
        logged = max((m.step for m in self._client.get_metric_history(run_id, "train_loss")), default=0) if known else 0
        points = [Metric("train_loss", loss, now, first + i) for i, loss in enumerate(losses) if first + i > logged]
        for start in range(0, len(points), BATCH):
            self._client.log_batch(run_id, metrics=points[start:start + BATCH])

    def finish_trial(self, result: Result, folder: TrialFolder, extra_tags: dict[str, str] | None = None) -> None:
        """Scores, tags, pictures and the LoRA; the run's final status last."""
        number = result.spec.number
        run_id, now = self._children[number].info.run_id, _now_ms()
        complete = result.state == "complete"
        tags = {"state": result.state, "scorer": result.scorer, "device": result.device,
                "micro_batch": str(result.micro_batch)} | (extra_tags or {})
        if complete:
            tags["gate"] = "pass" if result.passed_gate else "fail"
        else:
            tags |= {"reason": result.reason or "", "message": result.message or ""}
        self._client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in _metrics(result).items()],
                               tags=[RunTag(key, value) for key, value in tags.items() if value])
        if complete:
            self._client.log_artifact(run_id, str(folder.sheet))
            self._client.log_artifact(run_id, str(folder.recipe))
            self._client.log_artifact(run_id, str(folder.lora), "lora")
            self._client.log_artifacts(run_id, str(folder.pictures), "story")
        elif (folder.path / "traceback.txt").exists():
            self._client.log_artifact(run_id, str(folder.path / "traceback.txt"))
        self._client.set_terminated(run_id, "FINISHED" if complete else "FAILED")
        self._children[number] = self._client.get_run(run_id)

    def unfinished(self) -> list[int]:
        """Trials whose runs are not in a final status."""
        return [number for number, run in self._children.items() if run.info.status not in ("FINISHED", "FAILED")]

    def known(self) -> set[int]:
        return set(self._children)

    def finish_study(self, status: str, winner: int | None) -> None:
        """End the parent run (FINISHED, FAILED or KILLED), with it what is still open, and mark the winner."""
        for number, run in self._children.items():
            if number == winner or run.data.tags.get("winner") == "true":
                self._client.set_tag(run.info.run_id, "winner", "true" if number == winner else "false")
            if self._client.get_run(run.info.run_id).info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")
        self._client.set_terminated(self._parent.info.run_id, status)

    def _open_experiment(self, runs: Runs, study: str) -> str:
        experiment = self._client.get_experiment_by_name(study)
        if experiment is None:
            ours = not os.environ.get("MLFLOW_TRACKING_URI")
            return self._client.create_experiment(study, runs.artifacts.resolve().as_uri() if ours else None)
        if experiment.lifecycle_stage != "active":
            raise ValueError(f"MLflow's experiment {study!r} was deleted: restore it there, or give the study another name")
        return experiment.experiment_id


def _metrics(result: Result) -> dict[str, float]:
    values = {"aesthetic_mean": result.aesthetic_mean, "aesthetic_min": result.aesthetic_min,
              "aesthetic_std": result.aesthetic_std, "coherence": result.coherence, "duration_s": result.duration_s}
    values |= {f"aesthetic_{number}": value for number, value in enumerate(result.aesthetic, start=1)}
    return {name: value for name, value in values.items() if value is not None}


def _params(values: dict[str, Any]) -> list[Param]:
    assert len(values) <= PARAMS
    return [Param(name, value if isinstance(value, str) else json.dumps(value)) for name, value in values.items()]


def _now_ms() -> int:
    return int(time.time() * 1000)

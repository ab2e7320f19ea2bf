"""A real MLflow server, and everything that a user can see of a study in a store."""
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from core.folders import Runs
from tests.reports.conftest import STUDY

ROOT = Path(__file__).resolve().parents[2]
Content = dict[str, dict[str, Any]]


@dataclass
class Server:
    """`lora-sweep ui`, which becomes a real `mlflow server`; it can be killed and started again."""
    runs: Runs
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "sweep.cli", "ui", "--runs", str(self.runs.path), "--port", str(self.port)]
        clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
        with (self.runs.path / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=clean, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, (self.runs.path / "server.log").read_text()
            time.sleep(0.1)  # a foreign program says nothing when it is ready
        raise TimeoutError("mlflow server")

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def store_uri(runs: Runs) -> str:
    return f"sqlite:///{runs.tracking_db}"


def content(uri: str, study: str = STUDY, study_id: str | None = None) -> Content:
    """Everything that a user can see of a study, by the name of the run; every point of every metric.

    Where several runs folders share the store, `study_id` says whose.
    """
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment
    found = client.search_runs([experiment.experiment_id], f"tags.study_id = '{study_id}'" if study_id else "")
    names = {run.info.run_id: run.info.run_name for run in found}
    assert len(set(names.values())) == len(found), "a run twice"
    return {run.info.run_name: {
        "status": run.info.status, "params": run.data.params,
        "parent": names.get(run.data.tags.get("mlflow.parentRunId")),
        "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.") and key != "study_id"},
        "metrics": {key: sorted((point.step, point.value, point.timestamp)
                                for point in client.get_metric_history(run.info.run_id, key)) for key in run.data.metrics},
        "artifacts": artifacts(uri, run.info.run_id),
    } for run in found}


def artifacts(uri: str, run_id: str) -> dict[str, str]:
    if not MlflowClient(uri).list_artifacts(run_id):
        return {}
    folder = Path(download_artifacts(run_id=run_id, tracking_uri=uri))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}

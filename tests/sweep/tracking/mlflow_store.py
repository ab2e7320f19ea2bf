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

import psutil
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from core.files.install import ROOT
from core.folders import Runs
from tests.examples import STUDY
from tests.prepared import HALF_UPLOADED

Content = dict[str, dict[str, Any]]


@dataclass
class Server:
    """`lora-sweep ui` and its real `mlflow server`; it can be killed and started again."""

    runs: Runs
    port: int
    store: str = ""  # instead of the runs folder's own
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.runs.path / "server.log"

    def begin(self) -> None:
        command = [
            sys.executable,
            "-m",
            "sweep.cli",
            "ui",
            "--runs",
            str(self.runs.path),
            "--port",
            str(self.port),
        ]
        clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | {
            "PYTHONPATH": str(ROOT)
        }
        if self.store:
            clean |= {"MLFLOW_TRACKING_URI": self.store}
        with self.log.open("wb") as log:
            # Ctrl-C is to be heard although whoever started the tests in the background had it ignored.
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=clean,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    def start(self) -> None:
        self.begin()
        assert self.process
        deadline = time.monotonic() + 120
        while f"MLflow on {self.uri}" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                process.kill()
            self.process.wait()


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
    found = client.search_runs(
        [experiment.experiment_id], f"tags.study_id = '{study_id}'" if study_id else ""
    )
    names = {run.info.run_id: run.info.run_name for run in found}
    assert len(set(names.values())) == len(found), "a run twice"
    return {
        run.info.run_name: {
            "status": run.info.status,
            "params": run.data.params,
            "parent": names.get(run.data.tags.get("mlflow.parentRunId")),
            "tags": {
                key: value
                for key, value in run.data.tags.items()
                if not key.startswith("mlflow.") and key not in ("study_id", "request_id")
            },
            "metrics": {
                key: sorted(
                    (point.step, point.value, point.timestamp)
                    for point in client.get_metric_history(run.info.run_id, key)
                )
                for key in run.data.metrics
            },
            "artifacts": artifacts(uri, run.info.run_id),
        }
        for run in found
    }


def artifacts(uri: str, run_id: str) -> dict[str, str]:
    if not MlflowClient(uri).list_artifacts(run_id):
        return {}
    folder = Path(download_artifacts(run_id=run_id, tracking_uri=uri))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(HALF_UPLOADED)
    }

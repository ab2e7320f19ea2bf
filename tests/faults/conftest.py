"""One undisturbed sweep to compare with, and the means to disturb another."""
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import pytest
from mlflow import MlflowClient

from core.files import sha256
from core.folders import Runs, StudyFolder

ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: faults
story: {root}/studies/stories/lake_painter.yaml
data: {{source: {root}/studies/data/watercolor, caption: "{{prompt}}, watercolor style", filters: {{max_images: 6}}}}
train: {{steps_per_epoch: 3, batch_size: 2}}
render: {{steps: 1, cfg_scale: 1, size_px: 128}}
space:
  lora_rank: {{choices: [2, 4]}}
  lora_alpha: {{low: 1, high: 8}}
  epochs: {{low: 2, high: 3}}
  learning_rate: {{low: 1.0e-4, high: 1.0e-3, log: true}}
first: [{{lora_rank: 2, lora_alpha: 4, learning_rate: 5.0e-4}}]
budget: {{trials: {trials}}}
sampler: {{startup_trials: 1}}
storage: {{checkpoint_every_s: 0}}
"""
Done = subprocess.CompletedProcess[str]


class Sweeps:
    """Starts of one study in one folder, each through the real command line."""

    def __init__(self, folder: Path, trials: int = 2) -> None:
        self.folder, self.runs = folder, Runs(folder / "runs")
        self.study: StudyFolder = self.runs.study("faults")
        self.file = folder / "faults.yaml"
        self.file.write_text(STUDY.format(root=ROOT, trials=trials))

    def command(self, *words: object) -> list[str]:
        return [sys.executable, "-m", "sweep.cli", "run", str(self.file), "--runs", str(self.runs.path), *map(str, words)]

    def environment(self, **env: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        return clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"} | env

    def run(self, fail: str = "", *, once: bool = True, words: tuple[object, ...] = (), **env: str) -> Done:
        """One start; `fail` is the order for the fail points."""
        if fail:
            env["LORA_SWEEP_FAIL"] = fail
            if once:
                env["LORA_SWEEP_FAIL_ONCE"] = str(self.folder / "failed")
        return subprocess.run(self.command(*words), capture_output=True, text=True, env=self.environment(**env), timeout=240)

    @property
    def failed(self) -> bool:
        """Whether the fail point was reached."""
        return (self.folder / "failed").exists()

    def optuna(self) -> list[tuple]:
        trials = optuna.load_study(storage=f"sqlite:///{self.study.db}", study_name="faults").trials
        return [(t.number, t.state.name, t.params, t.value, t.user_attrs.get("gate_constraint")) for t in trials]

    def leaderboard(self) -> list[tuple]:
        return [(r.spec.number, r.state, r.reason, r.spec.params(), r.aesthetic, r.coherence, r.train_loss, r.lora_sha256,
                 [sha256(self.study.made(r).epoch_lora(e)) for e in range(1, r.spec.train.epochs + 1)] if r.lora_sha256 else [])
                for r in self.study.results()]

    def mlflow(self) -> dict[str, Any]:
        """Every run's status, params, metrics by step, tags and artifacts, without times and ids."""
        client = MlflowClient(f"sqlite:///{self.runs.tracking_db}")
        experiment = client.get_experiment_by_name("faults")
        return {run.info.run_name: (
            run.info.status, run.data.params,
            {key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
             for key in run.data.metrics if not key.endswith("duration_s")},
            {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
            self._artifacts(client, run.info.run_id),
        ) for run in client.search_runs([experiment.experiment_id])}

    def _artifacts(self, client: MlflowClient, run_id: str, path: str = "") -> dict[str, str]:
        found: dict[str, str] = {}
        for artifact in client.list_artifacts(run_id, path):
            if artifact.is_dir:
                found |= self._artifacts(client, run_id, artifact.path)
            else:
                local = Path(client.download_artifacts(run_id, artifact.path))
                found[artifact.path] = _digest(local)
        return found

    def story(self) -> tuple:
        """What Optuna, the disk and MLflow tell."""
        return self.optuna(), self.leaderboard(), self.mlflow()


def _digest(path: Path) -> str:
    """Content; of a recipe all but how long things took and how often they were tried."""
    if path.suffix != ".json":
        return sha256(path)
    return json.dumps(json.loads(path.read_text()), sort_keys=True)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """The sweep that nothing happened to; made once for all test processes."""
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else tmp_path_factory.getbasetemp()
    folder = shared / "undisturbed"
    with filelock.FileLock(shared / "undisturbed.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            sweeps = Sweeps(folder)
            done = sweeps.run()
            assert done.returncode == 0, done.stdout + done.stderr
            (folder / "done").touch()
    return Sweeps(folder)


@pytest.fixture
def sweeps(tmp_path: Path, undisturbed: Sweeps) -> Iterator[Sweeps]:
    """A fresh study whose pictures and words are encoded already."""
    made = Sweeps(tmp_path)
    shutil.copytree(undisturbed.runs.cache, made.runs.cache)
    yield made
    shutil.rmtree(tmp_path, ignore_errors=True)  # many sweeps, some megabytes each


@pytest.fixture
def make_sweeps(tmp_path: Path, undisturbed: Sweeps) -> Callable[[int], Sweeps]:
    def make(trials: int) -> Sweeps:
        made = Sweeps(tmp_path, trials)
        shutil.copytree(undisturbed.runs.cache, made.runs.cache)
        return made
    return make

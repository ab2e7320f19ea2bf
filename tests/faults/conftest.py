"""One undisturbed sweep to compare with, and the means to disturb another."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import optuna
import psutil
import pytest
from mlflow import MlflowClient

from core.files.files import sha256
from core.files.install import ROOT
from core.folders import Runs, StudyFolder
from tests.prepared import HALF_UPLOADED, make_empty_store, once, prepare

STUDY = """
name: {name}
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
"""  # noqa: E501  as in a file
TRIALS = 3
STEP_SILENCE_S = "16"  # allowed in a step: more than a slow one takes on a busy machine
Done = subprocess.CompletedProcess[str]


class Sweeps:
    """One study in one folder, started through the real command line as often as a test likes."""

    def __init__(self, folder: Path, trials: int = TRIALS, name: str = "faults") -> None:
        self.folder, self.name, self.runs = folder, name, Runs(folder / "runs")
        self.study: StudyFolder = self.runs.study(name)
        self.file = folder / f"{name}.yaml"
        self.starts = 0
        self.finished: dict[Path, bytes] = {}  # complete results, as they were after the start that made them
        self.file.write_text(STUDY.format(root=ROOT, name=name, trials=trials))

    def command(self, *arguments: object) -> list[str]:
        return [
            sys.executable,
            "-m",
            "sweep.cli",
            "run",
            str(self.file),
            "--runs",
            str(self.runs.path),
            *map(str, arguments),
        ]

    def environment(self, **env: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        return clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"} | env

    def run(
        self, fail: str = "", *, once: bool = True, arguments: tuple[object, ...] = (), **env: str
    ) -> Done:
        """One start to its end; `fail` has the orders for fail points."""
        env |= self.orders(fail, once=once) if fail else {}
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, env=self.environment(**env), timeout=600
        )
        for result in self.study.results():
            path = self.study.trial(result.spec.number).result
            self.finished.setdefault(path, path.read_bytes())
        return done

    def begin(self, fail: str, **env: str) -> subprocess.Popen[str]:
        """One start that runs beside the test."""
        env |= self.orders(fail)
        return subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**env),
        )

    def orders(self, fail: str, *, once: bool = True) -> dict[str, str]:
        self.starts += 1
        return {"LORA_SWEEP_FAIL": fail} | (
            {"LORA_SWEEP_FAIL_ONCE": str(self.folder / f"failed-{self.starts}")} if once else {}
        )

    def worker(self, driver: subprocess.Popen[str]) -> psutil.Process:
        """The worker process, as soon as there is one."""
        while True:
            for child in psutil.Process(driver.pid).children():
                with suppress(psutil.NoSuchProcess):  # a short-lived child, such as one that asks for the GPU
                    if "sweep.worker" in " ".join(child.cmdline()):
                        return child
            time.sleep(0.01)

    def nothing_done_twice(self) -> bool:
        """Whether every result that a start left complete is still the same, its duration included."""
        return all(path.read_bytes() == content for path, content in self.finished.items())

    def failed(self) -> list[str]:
        """The orders of the last start that were carried out."""
        return sorted(path.suffix.removeprefix(".") for path in self.folder.glob(f"failed-{self.starts}.*"))

    def optuna(self) -> list[tuple]:
        trials = optuna.load_study(storage=f"sqlite:///{self.study.db}", study_name=self.name).trials
        return [
            (t.number, t.state.name, t.params, t.value, t.user_attrs.get("gate_constraint")) for t in trials
        ]

    def leaderboard(self) -> list[tuple]:
        return [
            (
                r.spec.number,
                r.state,
                r.reason,
                r.spec.params(),
                r.aesthetic,
                r.coherence,
                r.train_loss,
                r.lora_sha256,
                [sha256(self.study.artifacts_of(r).epoch_lora(e)) for e in range(1, r.spec.train.epochs + 1)]
                if r.lora_sha256
                else [],
            )
            for r in self.study.results()
        ]

    def mlflow(self) -> dict[str, Any]:
        """Every run's status, parent, params, metrics by step, tags and artifacts, without times and ids."""
        client = MlflowClient(f"sqlite:///{self.runs.tracking_db}")
        experiment = client.get_experiment_by_name(self.name)
        found = client.search_runs([experiment.experiment_id])
        names = {run.info.run_id: run.info.run_name for run in found}
        assert len(set(names.values())) == len(found), f"a run twice: {sorted(names.values())}"
        return {
            run.info.run_name: (
                run.info.status,
                names.get(run.data.tags.get("mlflow.parentRunId")),
                run.data.params,
                {
                    key: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))
                    for key in run.data.metrics
                    if not key.endswith("duration_s")
                },
                {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
                _files(Path(unquote(urlparse(run.info.artifact_uri).path))),
            )
            for run in found
        }

    def story(self) -> tuple:
        """What Optuna, the disk and MLflow have."""
        return self.optuna(), self.leaderboard(), self.mlflow()


def _files(folder: Path) -> dict[str, str]:
    """A run's artifacts, where the store keeps them."""
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(HALF_UPLOADED)
    }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweeps:
    """A sweep without faults, and beside it an empty store."""

    def make(folder: Path) -> None:
        done = Sweeps(folder).run()
        assert done.returncode == 0, done.stdout + done.stderr
        make_empty_store(folder)

    return Sweeps(once(tmp_path_factory, "undisturbed", make))


@pytest.fixture
def sweeps(tmp_path: Path, undisturbed: Sweeps) -> Iterator[Sweeps]:
    """A study that was never started."""
    made = Sweeps(tmp_path)
    prepare(made.runs, undisturbed.folder)
    yield made
    shutil.rmtree(tmp_path, ignore_errors=True)  # many sweeps, some megabytes each


@pytest.fixture
def finished(sweeps: Sweeps, undisturbed: Sweeps) -> Sweeps:
    """A sweep that is complete; its MLflow store was left behind."""
    shutil.copytree(undisturbed.study.path, sweeps.study.path)
    sweeps.study.tracked.unlink()
    return sweeps


@pytest.fixture(scope="session")
def halted(tmp_path_factory: pytest.TempPathFactory, undisturbed: Sweeps) -> Sweeps:
    """A sweep whose driver was killed in the middle of trial 0."""

    def make(folder: Path) -> None:
        sweeps = Sweeps(folder)
        prepare(sweeps.runs, undisturbed.folder)
        assert sweeps.run("step#0@5=driver_SIGKILL").returncode < 0
        assert sweeps.study.trial(0).checkpoint.exists()

    return Sweeps(once(tmp_path_factory, "halted", make))


@pytest.fixture
def stopped(sweeps: Sweeps, halted: Sweeps) -> Sweeps:
    """The same in a folder of its own; its MLflow store was left behind."""
    shutil.copytree(halted.study.path, sweeps.study.path)
    sweeps.study.tracked.unlink(missing_ok=True)
    return sweeps


@pytest.fixture
def make_sweeps(tmp_path: Path, undisturbed: Sweeps) -> Callable[[int], Sweeps]:
    def make(trials: int) -> Sweeps:
        made = Sweeps(tmp_path, trials)
        prepare(made.runs, undisturbed.folder)
        return made

    return make

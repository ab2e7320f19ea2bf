"""Small studies of the real toy model, run through the real command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.files.install import ROOT
from core.folders import Runs
from tests.prepared import make_empty_store, once, prepare

STUDY = """
name: {name}
story: {root}/studies/stories/{story}.yaml
data: {{source: {root}/studies/data/watercolor, caption: "{{prompt}}, watercolor style", filters: {filters}}}
train: {{steps_per_epoch: 3, batch_size: 2}}
render: {{steps: 2, cfg_scale: 3, size_px: 128}}
space:
  lora_rank: {{choices: [2, 4]}}
  lora_alpha: {{low: 1, high: 8}}
  epochs: {{low: 1, high: 2}}
  learning_rate: {{low: 1.0e-4, high: 1.0e-3, log: true}}
objective: {{gate: {gate}}}
budget: {{trials: {trials}}}
sampler: {{startup_trials: 2}}
"""


@pytest.fixture(scope="session")
def write_study() -> Callable[..., Path]:
    def write(
        folder: Path,
        name: str = "quick",
        trials: int = 2,
        gate: float = 6.0,
        filters: str = "{}",
        story: str = "lake_painter",
    ) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(
            STUDY.format(root=ROOT, name=name, trials=trials, gate=gate, filters=filters, story=story)
        )
        return path

    return write


@pytest.fixture(scope="session")
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `lora-sweep` as a user does; returns code, stdout and stderr."""

    def call(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
        return subprocess.run(
            [sys.executable, "-m", "sweep.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | env,
            timeout=600,
        )

    return call


@pytest.fixture(scope="session")
def known(
    tmp_path_factory: pytest.TempPathFactory,
    write_study: Callable[..., Path],
    cli: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    """A folder for `prepare`: its runs folder knows the demo's images and the story's texts."""

    def make(folder: Path) -> None:
        done = cli("run", write_study(folder, trials=1), "--runs", folder / "runs")
        assert done.returncode == 0, done.stdout + done.stderr
        make_empty_store(folder)

    return once(tmp_path_factory, "known", make)


@pytest.fixture
def prepared(tmp_path: Path, known: Path) -> Runs:
    """The test's own runs folder, in which everything is encoded already and MLflow's tables exist."""
    return prepare(Runs(tmp_path / "runs"), known)


@pytest.fixture
def with_tables(tmp_path: Path, known: Path) -> Runs:
    """The test's own runs folder, in which MLflow's tables exist."""
    return prepare(Runs(tmp_path / "runs"), known, cache=False)

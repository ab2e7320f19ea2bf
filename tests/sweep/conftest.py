"""Small studies of the real toy model, run through the real command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.files.install import ROOT

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
            timeout=300,
        )

    return call

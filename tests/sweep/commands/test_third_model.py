"""A third base model needs a row and nothing else: every command carries it from its study to its score."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from core.files.install import ROOT
from core.folders import Runs

# The toy under another name, in another precision, with another scorer's name: what still asked for a name
# would tell.
LAUNCHER = """
import sys
from dataclasses import replace

import sweep  # puts the import path in order
from core.base_models import BASE_MODELS, TINY

BASE_MODELS["third"] = replace(
    TINY, name="third", precision="bf16", scorer="third-scorer-v1", architecture="third-unet"
)
if sys.argv[1:2] == ["worker"]:
    del sys.argv[1]  # what follows is the worker's setup
    from sweep.worker.worker import main
else:
    from sweep.worker import local
    from sweep.cli import main

    local.COMMAND = ("-P", __file__, "worker")
main()
"""


@pytest.fixture
def lora_sweep(tmp_path: Path) -> Callable[..., str]:
    """The command line, and its worker, in processes that know the third model; returns what was printed."""
    launcher = tmp_path / "launcher.py"
    launcher.write_text(LAUNCHER, encoding="utf-8")
    env = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}

    def call(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, launcher, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=env | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


@pytest.mark.usefixtures("prepared")
def test_a_third_model_goes_from_plan_to_score(
    tmp_path: Path, write_study: Callable[..., Path], lora_sweep: Callable[..., str]
):
    study = write_study(tmp_path, trials=1, gate=1.0)
    study.write_text(study.read_text(encoding="utf-8") + "backbone: third\n", encoding="utf-8")
    there = ("--runs", tmp_path / "runs")

    assert "a rough guess: two cores" in lora_sweep("plan", study, *there)
    found = lora_sweep("doctor", study, *there)
    assert found.startswith("ready for quick\n")
    assert "third's, shipped with lora-sweep" in found

    lora_sweep("run", study, *there)
    folder = Runs(tmp_path / "runs").study("quick")
    result = folder.trial(0).read_result()
    assert result is not None
    assert (result.spec.backbone, result.spec.precision, result.dtype) == ("third", "bf16", "bfloat16")
    assert result.scorer == "third-scorer-v1"
    with safe_open(folder.trial(0).lora, framework="np") as lora:
        assert lora.metadata()["modelspec.architecture"] == "third-unet/lora"

    lora_sweep("report", study, *there)
    page = folder.report.read_text(encoding="utf-8")
    assert "Scored by third-scorer-v1. These are images of the toy model, not of Kolors" in page
    lora_sweep("export", study, *there, "--team", "team", "--title", "title", "--out", tmp_path / "export")
    recipe = json.loads((tmp_path / "export" / "recipe.json").read_text(encoding="utf-8"))
    assert (recipe["spec"]["backbone"], recipe["scorer"]) == ("third", "third-scorer-v1")
    assert "toy-model" in (tmp_path / "export" / "README.md").read_text(encoding="utf-8")

    last = lora_sweep("score", tmp_path / "export").splitlines()[-1]
    assert (
        last
        == f"{result.aesthetic_mean:6.3f}  mean of 8 by third-scorer-v1; coherence {result.coherence:.3f}"
    )

"""`make gpu` needs a GPU; its self-test does the same work at toy shape here, so that the command cannot
rot.
"""

import json
from pathlib import Path

import pytest
import torch

from tests.core.test_imports import ROOT, imported_names
from tests.gpu.__main__ import main

MISSING = {"optuna", "mlflow", "typer", "rich"}  # a GPU box has the core's dependencies only


def test_the_gpu_command_imports_nothing_that_a_gpu_box_may_lack() -> None:
    paths = [*(ROOT / "tests" / "gpu").glob("*.py"), *(ROOT / "core").rglob("*.py")]
    # shows its progress with rich; a GPU check downloads nothing
    paths.remove(ROOT / "core" / "kolors" / "download.py")
    assert [path for path in paths if imported_names(path) & MISSING] == []


def test_the_gpu_command_does_all_its_work_at_toy_shape_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    torch.set_num_threads(1)
    assert main(["--self-test"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert not found["dropped"]
    assert [check["passed"] for check in found["checks"]] == [True] * 10
    rows = {
        (row["work"], row["way"], row["precision"], row["batch"], row["checkpointing"]): row
        for row in found["rows"]
    }
    bf16_steps = {key[3:] for key in rows if key[:3] == ("step", "ours", "bf16")}
    assert bf16_steps == {(batch, on) for batch in (1, 2, 4) for on in (False, True)}
    assert {
        ("step", "naive", "fp32", 1, True),
        ("step", "compiled", "fp32", 1, False),
        ("images", "naive", "fp32", 1, None),
        ("images", "ours", "fp32", 8, None),
        ("images", "ours", "bf16", 1, None),
    } <= rows.keys()
    assert all(row["seconds"] > 0 for row in rows.values())
    assert found["trial"]["ratio"] > 0

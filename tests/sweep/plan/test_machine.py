"""Whether torch can train on this machine, and the note where torch gives no answer."""

import sys
from pathlib import Path

import pytest

from core.folders import Runs
from sweep.doctor.gpu import check_gpu
from sweep.plan import machine
from sweep.plan.machine import NotKnown, refusal
from sweep.plan.plan import make_plan
from sweep.start.start import check_place
from sweep.study.study import load_study


def python_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: str) -> None:
    """As a slow disk or a broken installation makes it."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{commands}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(machine, "TORCH_TIMEOUT_S", 0.2)


@pytest.mark.parametrize(
    ("commands", "why"),
    [
        ("exec sleep 5", "torch gave no answer in 0.2 s"),
        (
            "echo Traceback >&2; echo 'ImportError: libcudart.so' >&2; exit 1",
            "torch cannot be asked: ImportError: libcudart.so",
        ),
        ("kill -9 $$", "torch cannot be asked: its process ended with -9"),
    ],
)
def test_torch_without_an_answer_is_not_taken_for_a_yes(tmp_path, monkeypatch, commands, why):
    python_that(tmp_path, monkeypatch, commands)
    with pytest.raises(NotKnown) as raised:
        refusal("kolors", "auto", "fp16")
    assert str(raised.value) == why


def test_a_python_that_cannot_be_started_is_not_taken_for_a_yes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    with pytest.raises(NotKnown, match=r"Python cannot be started \(No such file or directory\)"):
        refusal("kolors", "auto", "fp16")


def test_run_and_doctor_say_that_it_is_not_known(tmp_path, monkeypatch, write_study, capsys):
    study = write_study(tmp_path)
    study.write_text(study.read_text() + "precision: fp16\n")
    python_that(tmp_path, monkeypatch, "exec sleep 5")
    loaded = load_study(str(study))
    check_place(loaded, tmp_path / "runs", "auto")
    assert (
        "note: whether tiny can train on this machine is not known (torch gave no answer in 0.2 s); going on "
        "without knowing" in " ".join(capsys.readouterr().out.split())
    )
    check = check_gpu(make_plan(loaded, Runs(tmp_path)))
    assert (check.state, check.found) == (
        "warn",
        "whether tiny can train here is not known: torch gave no answer in 0.2 s",
    )

"""Torn files, files that went, a full disk: one start of the same command, and nothing is lost that was told."""
import resource
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from core.train_state import load_state
from tests.faults.conftest import Sweeps

WRITTEN = ["spec.json", "checkpoint.safetensors", "lora.safetensors", "1.png", "story.png", "recipe.json", "result.json"]


def stop_in_trial_0(sweeps: Sweeps) -> None:
    assert sweeps.run("step@5=driver_SIGKILL").returncode < 0
    assert sweeps.study.trial(0).checkpoint.exists()


@pytest.mark.parametrize("tear", [lambda b: b"", lambda b: b[:len(b) // 2], lambda b: b[:-1] + bytes([b[-1] ^ 1])],
                         ids=["emptied", "cut", "flipped"])
def test_a_torn_checkpoint_is_not_believed(sweeps: Sweeps, undisturbed: Sweeps, tear: Callable[[bytes], bytes]) -> None:
    stop_in_trial_0(sweeps)
    path = sweeps.study.trial(0).checkpoint
    path.write_bytes(tear(path.read_bytes()))
    assert load_state(path, "anything") is None
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert "goes on from step" not in again.stdout
    assert sweeps.story() == undisturbed.story()


@pytest.mark.parametrize("tear", [lambda text: "", lambda text: text[:100]], ids=["emptied", "cut"])
def test_a_torn_result_is_written_again_from_what_optuna_keeps(
        sweeps: Sweeps, undisturbed: Sweeps, tear: Callable[[str], str]) -> None:
    assert sweeps.run().returncode == 0
    path = sweeps.study.trial(1).result
    path.write_text(tear(path.read_text()))
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert "trial 1: write the result again" in again.stdout
    assert sweeps.story() == undisturbed.story()


def test_a_torn_study_file_is_written_again(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    assert sweeps.run("told=SIGKILL").returncode < 0
    sweeps.study.frozen.write_text("name: fau")
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert sweeps.story() == undisturbed.story()


def test_the_folder_of_an_unfinished_trial_may_go(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    stop_in_trial_0(sweeps)
    shutil.rmtree(sweeps.study.trial(0).path)
    assert sweeps.run().returncode == 0
    assert sweeps.story() == undisturbed.story()


def test_the_folder_of_a_told_trial_may_go_and_its_numbers_stay(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    assert sweeps.run().returncode == 0
    shutil.rmtree(sweeps.study.trial(1).path)
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert sweeps.optuna() == undisturbed.optuna()
    assert sweeps.mlflow() == undisturbed.mlflow()
    assert [r.aesthetic for r in sweeps.study.results()] == [r.aesthetic for r in undisturbed.study.results()]


def test_a_lost_study_db_sets_the_folders_aside(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    assert sweeps.run().returncode == 0
    sweeps.study.db.unlink()
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert "trial 1: move the folder aside" in again.stdout
    assert sweeps.leaderboard() == undisturbed.leaderboard()


@pytest.mark.parametrize("name", WRITTEN)
def test_a_disk_that_is_full_for_a_moment_costs_one_trial(make_sweeps: Callable[[int], Sweeps], name: str) -> None:
    sweeps = make_sweeps(2)
    done = sweeps.run(f"write {name}#0=disk_full", once=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(r.state, r.reason) for r in sweeps.study.results()][-1] == ("complete", None)
    assert sweeps.optuna()[0][1] == "FAIL"
    assert sweeps.mlflow()["trial-0000"][3]["reason"] == "disk_full"
    assert not list(sweeps.study.path.rglob(".*.tmp"))
    assert sweeps.run().returncode == 0


def test_a_limit_on_file_sizes_is_a_full_disk(sweeps: Sweeps) -> None:
    """A real refusal by the system, in the middle of a write: the worker's files end at 50 kB, a checkpoint is larger."""
    with subprocess.Popen(sweeps.command(), stdout=subprocess.PIPE, text=True, env=sweeps.environment()) as driver:
        for line in driver.stdout:
            if line.startswith("worker ready"):
                worker, = (p for p in psutil.Process(driver.pid).children() if "sweep.worker" in " ".join(p.cmdline()))
                resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    assert [(r.state, r.reason) for r in sweeps.study.results()] == [("failed", "disk_full")] * 2
    assert not list(sweeps.study.path.rglob(".*.tmp"))


def test_a_study_db_that_another_process_locks_is_waited_for(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    assert sweeps.run("asked@2=SIGKILL").returncode < 0
    other = sqlite3.connect(sweeps.study.db, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    started = time.monotonic()
    threading.Timer(60, other.rollback).start()
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started > 60
    assert sweeps.story() == undisturbed.story()


def test_old_half_written_files_are_swept_up(sweeps: Sweeps, tmp_path: Path) -> None:
    stop_in_trial_0(sweeps)
    left = sweeps.study.trial(0).path / ".checkpoint.safetensors.1.tmp"
    left.write_bytes(b"half")
    assert sweeps.run().returncode == 0
    assert not left.exists()

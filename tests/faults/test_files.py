"""Torn and lost files, a full disk: after one more start of the same command no reported result is lost."""

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable

from tests.faults.conftest import Sweeps

# One for each trial; with an empty name it is left alone.
WRITTEN = [
    "spec.json",
    "checkpoint.safetensors",
    "",
    "lora.safetensors",
    "1.png",
    "",
    "story.png",
    "recipe.json",
    "",
    "result.json",
]


def test_a_torn_checkpoint_is_not_believed(stopped: Sweeps, undisturbed: Sweeps) -> None:
    path = stopped.study.trial(0).checkpoint
    path.write_bytes(path.read_bytes()[:-1000])
    again = stopped.run()
    assert again.returncode == 0, again.stderr
    assert "resumes from step" not in again.stdout
    assert stopped.story() == undisturbed.story()


def test_the_folder_of_an_unfinished_trial_may_go(stopped: Sweeps, undisturbed: Sweeps) -> None:
    shutil.rmtree(stopped.study.trial(0).path)
    assert stopped.run().returncode == 0
    assert stopped.story() == undisturbed.story()


def test_torn_words_and_old_half_written_files_do_not_matter(stopped: Sweeps, undisturbed: Sweeps) -> None:
    stopped.study.frozen.write_text("name: fau")
    left = stopped.study.trial(0).path / ".checkpoint.safetensors.1.tmp"
    left.write_bytes(b"half")
    again = stopped.run()
    assert again.returncode == 0, again.stderr
    assert "trial 0: resumes from step" in again.stdout
    assert not left.exists()
    assert stopped.story() == undisturbed.story()


def test_torn_and_emptied_results_are_written_again_from_what_optuna_keeps(
    finished: Sweeps, undisturbed: Sweeps
) -> None:
    first, second = (finished.study.trial(number).result for number in (0, 1))
    first.write_text("")
    second.write_text(second.read_text()[:100])
    again = finished.run()
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("is written again from Optuna's copy") == 2
    assert finished.story() == undisturbed.story()


def test_the_folder_of_a_told_trial_may_go_and_its_numbers_stay(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    assert sweeps.run().returncode == 0
    shutil.rmtree(sweeps.study.trial(1).path)
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert sweeps.optuna() == undisturbed.optuna()
    assert sweeps.mlflow() == undisturbed.mlflow()
    assert [r.aesthetic for r in sweeps.study.results()] == [r.aesthetic for r in undisturbed.study.results()]


def test_a_lost_study_db_sets_the_folders_aside(finished: Sweeps, undisturbed: Sweeps) -> None:
    finished.study.db.unlink()
    again = finished.run()
    assert again.returncode == 0, again.stderr
    assert "trial 1 is unknown to Optuna; its folder is moved aside" in again.stdout
    assert finished.leaderboard() == undisturbed.leaderboard()
    assert finished.mlflow() == undisturbed.mlflow()


def test_a_disk_that_is_full_for_a_moment_costs_one_trial_each_time(
    make_sweeps: Callable[[int], Sweeps],
) -> None:
    """Two trials in a row at the most: a third would stop the sweep."""
    sweeps = make_sweeps(len(WRITTEN))
    done = sweeps.run(
        ";".join(f"write {name}#{number}=disk_full" for number, name in enumerate(WRITTEN) if name),
        once=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = ["disk_full" if name else None for name in WRITTEN]
    runs = sweeps.mlflow()
    assert [r.reason for r in sweeps.study.results()] == reasons
    assert [row[1] for row in sweeps.optuna()] == ["FAIL" if name else "COMPLETE" for name in WRITTEN]
    assert [runs[f"trial-{number:04d}"][4].get("reason") for number in range(len(WRITTEN))] == reasons
    assert not list(sweeps.study.path.rglob(".*.tmp"))


def test_a_limit_on_file_sizes_is_a_full_disk(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    """A real refusal by the system, in the middle of a write: the worker's files end at 50 kB, a checkpoint
    is larger.
    """
    shutil.copytree(undisturbed.study.base.path, sweeps.study.base.path)
    with subprocess.Popen(
        sweeps.command("--trials", 2), stdout=subprocess.PIPE, text=True, env=sweeps.environment()
    ) as driver:
        resource.prlimit(sweeps.worker(driver).pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        driver.communicate(timeout=300)
    assert [(r.state, r.reason) for r in sweeps.study.results()] == [("failed", "disk_full")] * 2
    assert not list(sweeps.study.path.rglob(".*.tmp"))


def test_a_study_db_that_another_process_locks_is_waited_for(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    """A minute of it does no harm, and Ctrl-C works meanwhile."""
    driver = subprocess.Popen(
        sweeps.command(),
        stderr=subprocess.PIPE,
        text=True,
        env=sweeps.environment(LORA_SWEEP_FAIL="tell@2=SIGSTOP"),
    )
    os.waitpid(driver.pid, os.WUNTRACED)
    other = sqlite3.connect(sweeps.study.db, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    driver.send_signal(signal.SIGCONT)
    time.sleep(2)  # until it waits
    asked = time.monotonic()
    driver.send_signal(signal.SIGINT)
    _, stderr = driver.communicate(timeout=180)
    assert (driver.returncode, stderr) == (
        130,
        "lora-sweep: interrupted; the same command goes on from here\n",
    )
    assert time.monotonic() - asked < 10

    started = time.monotonic()
    threading.Timer(60, other.rollback).start()
    again = sweeps.run()
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - started > 60
    assert sweeps.story() == undisturbed.story()

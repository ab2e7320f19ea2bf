"""Unattended sweeps: MLflow is away for hours, the clock is set back, two start at once, the disk is full.

Real sweeps of the toy model through the real command line; afterwards MLflow is compared with the files.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from mlflow import MlflowClient

from core.files.files import read_json, sha256
from core.trial.result import Result
from tests.faults.conftest import ROOT, Done, Sweeps
from tests.prepared import make_empty_store, prepare
from tests.sweep.tracking.mlflow_store import Server, content, free_port, store_uri

CLOCK = '''
"""Python's time.time, and the times of files written whole, are an hour back once a file appears."""
import os
import time

now_s, now_ns, replace = time.time, time.time_ns, os.replace


def back_s():
    return 3600 * os.path.exists(os.environ["CLOCK_SET_BACK"])


def replace_and_date(source, target, **words):
    replace(source, target, **words)
    os.utime(target, (time.time(), time.time()))


time.time = lambda: now_s() - back_s()
time.time_ns = lambda: now_ns() - back_s() * 10**9
os.replace = replace_and_date
'''


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweeps, Sweeps]:
    """Two studies started for the first time at once on a fresh runs folder: one store, one cache."""
    folder = tmp_path_factory.mktemp("at_once")
    first, second = (Sweeps(folder, name=name) for name in ("faults", "other"))
    with started(first, "locked=SIGSTOP") as one, started(second, "locked=SIGSTOP") as two:
        with halted(one), halted(two):  # until both have reached the fail point
            assert not first.runs.tracking_db.exists()
            assert not first.runs.cache.exists()
        for done in (ended(one), ended(two)):
            assert (done.returncode, done.stderr) == (0, "")
    return first, second


@pytest.fixture(scope="module")
def undisturbed(at_once: tuple[Sweeps, Sweeps]) -> Sweeps:
    """The sweep that the others are compared with, and beside it an empty store: to make MLflow's tables
    takes seconds.
    """
    make_empty_store(at_once[0].folder)
    return at_once[0]


def fresh(folder: Path, undisturbed: Sweeps, trials: int) -> Sweeps:
    """A study that was never started; its images and texts are encoded already, and the store is empty."""
    sweeps = Sweeps(folder, trials)
    prepare(sweeps.runs, undisturbed.folder)
    return sweeps


@contextmanager
def started(sweeps: Sweeps, fail: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """One start that runs beside the test."""
    driver = subprocess.Popen(
        sweeps.command(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=sweeps.environment(LORA_SWEEP_FAIL=fail, **env),
    )
    try:
        yield driver
    finally:
        driver.kill()
        driver.communicate()


@contextmanager
def halted(driver: subprocess.Popen[str]) -> Iterator[None]:
    """Wait until the driver has stopped itself at a fail point, and have it go on afterwards."""
    _, status = os.waitpid(driver.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), driver.communicate()
    yield
    driver.send_signal(signal.SIGCONT)


def ended(driver: subprocess.Popen[str]) -> Done:
    stdout, stderr = driver.communicate(timeout=600)
    return subprocess.CompletedProcess(driver.args, driver.returncode, stdout, stderr)


def catch_up(sweeps: Sweeps, done: Done, **env: str) -> None:
    """MLflow was away in this start; what a busy machine had no time to upload, the next start uploads."""
    assert done.returncode == 0, done.stderr
    assert "MLflow takes nothing at the moment" in done.stderr
    if "MLflow has not received everything yet" in done.stderr:
        assert sweeps.run(**env).returncode == 0


def check_mlflow(sweeps: Sweeps, uri: str) -> None:
    """MLflow has one run for each trial, with everything that the trial's files have, once."""
    held = content(uri, sweeps.name)
    parent = held.pop(sweeps.name)
    assert parent["status"] == "FINISHED"
    assert parent["artifacts"] == {
        "study.yaml": sha256(sweeps.study.frozen),
        "base/story.png": sha256(sweeps.study.base.sheet),
    }
    results = sweeps.study.results()
    assert held.keys() == {f"trial-{result.spec.number:04d}" for result in results}
    for result in results:
        run, complete = held[f"trial-{result.spec.number:04d}"], result.state == "complete"
        assert (run["status"], run["parent"]) == ("FINISHED" if complete else "FAILED", sweeps.name)
        assert (run["tags"]["state"], run["tags"].get("reason")) == (result.state, result.reason)
        assert run["params"] == {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in result.spec.all_params().items()
        }
        points = {key: [point[:2] for point in points] for key, points in run["metrics"].items()}
        assert points.pop("train_loss", []) == losses(sweeps, result)
        assert points == numbers(result)
        assert run["artifacts"] == (files(sweeps, result) if complete else {})


def losses(sweeps: Sweeps, result: Result) -> list[tuple[int, float]]:
    """The loss of each step, as in the worker's journal."""
    epochs = {
        event["epoch"]: event["losses"]
        for event in events(sweeps, result.spec.number)
        if event["event"] == "epoch"
    }
    return list(enumerate((loss for epoch in sorted(epochs) for loss in epochs[epoch]), start=1))


def events(sweeps: Sweeps, number: int) -> list[dict]:
    journal = sweeps.study.trial(number).events
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def numbers(result: Result) -> dict[str, list[tuple[int, float]]]:
    values = {
        "duration_s": result.duration_s,
        "aesthetic_mean": result.aesthetic_mean,
        "aesthetic_min": result.aesthetic_min,
        "aesthetic_std": result.aesthetic_std,
        "coherence": result.coherence,
    }
    values |= {f"aesthetic_{number}": value for number, value in enumerate(result.aesthetic, start=1)}
    return {name: [(0, value)] for name, value in values.items() if value is not None}


def files(sweeps: Sweeps, result: Result) -> dict[str, str]:
    made = sweeps.study.artifacts_of(result)
    images = [made.image(number) for number in range(1, len(result.spec.story.scenes) + 1)]
    return {
        "lora/lora.safetensors": sha256(made.lora),
        **{path.name: sha256(path) for path in (made.recipe, made.sheet)},
        **{f"story/{path.name}": sha256(path) for path in images},
    }


def test_two_studies_started_for_the_first_time_at_once_are_both_whole(
    at_once: tuple[Sweeps, Sweeps],
) -> None:
    first, second = at_once
    assert [r.aesthetic for r in first.study.results()] == [r.aesthetic for r in second.study.results()]
    for sweeps in at_once:
        assert [row[1] for row in sweeps.optuna()] == ["COMPLETE"] * 3
        check_mlflow(sweeps, store_uri(sweeps.runs))
    assert not list(first.folder.rglob(".*.tmp"))


def test_an_mlflow_server_that_is_gone_for_the_middle_third_misses_nothing(
    tmp_path: Path, undisturbed: Sweeps
) -> None:
    sweeps = fresh(tmp_path, undisturbed, trials=6)
    server = Server(sweeps.runs, free_port())
    try:
        server.start()
        # The later order first: an order that fires hides the point from those behind it.
        with started(sweeps, "told@4=SIGSTOP;told@2=SIGSTOP", MLFLOW_TRACKING_URI=server.uri) as driver:
            with halted(driver):
                server.kill()
            with halted(driver):
                server.start()
            done = ended(driver)
        catch_up(sweeps, done, MLFLOW_TRACKING_URI=server.uri)
        assert [row[1] for row in sweeps.optuna()] == ["COMPLETE"] * 6
        check_mlflow(sweeps, server.uri)
    finally:
        server.kill()


def test_a_clock_that_is_set_back_an_hour_disturbs_nothing(tmp_path: Path, undisturbed: Sweeps) -> None:
    sweeps = fresh(tmp_path, undisturbed, trials=3)
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK)
    # The mark of an order that has fired sets the clocks of driver and worker back; at this point nan does
    # nothing.
    clock = {
        "PYTHONPATH": f"{tmp_path / 'clock'}{os.pathsep}{ROOT}",
        "CLOCK_SET_BACK": str(tmp_path / "failed-1.0"),
    }
    morning = (datetime.now() + timedelta(hours=2)).strftime("%H:%M")
    done = sweeps.run("step#1@2=nan", arguments=("--until", morning), **clock)
    assert (done.returncode, done.stderr) == (0, "")

    journal = events(sweeps, 1)
    assert journal[-1]["time"] < journal[0]["time"], "the worker's clock was not set back"
    client = MlflowClient(store_uri(sweeps.runs))
    experiment = client.get_experiment_by_name(sweeps.name)
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'study'")
    assert parent.info.end_time == parent.info.start_time, "the driver's clock was not set back"
    assert "stopped" not in done.stdout
    assert [[event["event"] for event in events(sweeps, number)].count("started") for number in range(3)] == [
        1,
        1,
        1,
    ]
    assert [result.retried for result in sweeps.study.results()] == [(), (), ()]
    assert (sweeps.optuna(), sweeps.leaderboard()) == (undisturbed.optuna(), undisturbed.leaderboard())
    check_mlflow(sweeps, store_uri(sweeps.runs))

    shown, report = (command(sweeps, word, **clock) for word in ("status", "report"))
    assert "faults: not running, 3 of 3 trials done" in shown.stdout, shown.stderr
    assert sweeps.study.report.exists(), report.stderr


def command(sweeps: Sweeps, word: str, **env: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "sweep.cli", word, "faults", "--runs", str(sweeps.runs.path)],
        capture_output=True,
        text=True,
        env=sweeps.environment(**env),
        timeout=180,
    )


def test_an_mlflow_db_for_which_there_is_no_room_is_made_once_there_is(
    tmp_path: Path, undisturbed: Sweeps
) -> None:
    """A write fails in the middle of MLflow's tables: no other file of the sweep is as large."""
    sweeps = fresh(tmp_path, undisturbed, trials=3)
    sweeps.runs.tracking_db.unlink()
    with started(sweeps, "told@2=SIGSTOP;locked=SIGSTOP") as driver:
        with halted(driver):
            resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
        with halted(driver):
            assert not sweeps.runs.tracking_db.exists()
            resource.prlimit(
                driver.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
        done = ended(driver)
    catch_up(sweeps, done)
    assert "MLflow answers again" in done.stderr
    assert (sweeps.optuna(), sweeps.leaderboard()) == (undisturbed.optuna(), undisturbed.leaderboard())
    check_mlflow(sweeps, store_uri(sweeps.runs))
    assert not list(tmp_path.rglob(".*.tmp*"))


def test_a_disk_that_is_full_for_the_cache_or_the_journal_costs_one_trial_each_time(
    tmp_path: Path, undisturbed: Sweeps
) -> None:
    sweeps = fresh(tmp_path, undisturbed, trials=7)
    audited, encoded = (next((sweeps.runs.cache / kind).iterdir()) for kind in ("audit", "latents"))
    audited.unlink()
    encoded.unlink()
    full = [
        f"{audited.name}#0",
        f"{encoded.name}#1",
        "",
        "events.jsonl#3@1",
        "events.jsonl#4@4",
        "",
        "traceback.txt#6",
    ]
    orders = [f"write {name}=disk_full" for name in full if name]
    done = sweeps.run(";".join([*orders, "image#6=a_mistake"]), once=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = ["disk_full" if name else None for name in full]
    assert [r.reason for r in sweeps.study.results()] == [*reasons[:6], "bug"]
    assert not sweeps.study.trial(6).traceback.exists()
    assert audited.exists()
    assert encoded.exists()
    check_mlflow(sweeps, store_uri(sweeps.runs))
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_full_disk_ends_the_driver_with_one_line_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: Sweeps
) -> None:
    sweeps = fresh(tmp_path, undisturbed, trials=2)
    for fail in ("step#1=oom;write attempt.json=disk_full", "write recovered.json=disk_full"):
        done = sweeps.run(fail)
        assert done.returncode == 1, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "its files cannot be read or written ([Errno 28] No space left on device)" in done.stderr
    # MLflow has the trial, only the note of it is missing: it is uploaded again
    done = sweeps.run("write tracked.json=disk_full")
    assert sweeps.failed() == ["0"]
    assert done.returncode == 0, done.stderr
    assert read_json(sweeps.study.tracked, dict)["trials"].keys() == {"0", "1"}
    refused, taken = done.stderr.splitlines()
    assert "MLflow takes nothing at the moment ([Errno 28] No space left on device" in refused
    assert "MLflow answers again" in taken
    assert [(r.state, r.retried) for r in sweeps.study.results()] == [
        ("complete", ()),
        ("complete", ("cuda_oom",)),
    ]
    assert sweeps.leaderboard()[0] == undisturbed.leaderboard()[0]
    check_mlflow(sweeps, store_uri(sweeps.runs))
    assert not list(tmp_path.rglob(".*.tmp"))


def test_a_study_db_that_is_full_ends_with_one_line_and_the_same_command_goes_on(
    tmp_path: Path, undisturbed: Sweeps
) -> None:
    """A real refusal by the system: once while Optuna's tables are made, once in the middle of the sweep."""
    sweeps = fresh(tmp_path, undisturbed, trials=3)
    for point, room in (("locked", 50_000), ("told@1", 4096)):
        with started(sweeps, f"{point}=SIGSTOP") as driver:
            with halted(driver):
                resource.prlimit(driver.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            done = ended(driver)
        assert done.returncode == 1, done.stdout + done.stderr
        # its database is as full
        lines = [line for line in done.stderr.splitlines() if not line.startswith("MLflow ")]
        assert len(lines) == 1, done.stderr
        assert "its files cannot be read or written" in lines[0]
    done = sweeps.run()
    assert done.returncode == 0, done.stderr
    assert (sweeps.optuna(), sweeps.leaderboard()) == (undisturbed.optuna(), undisturbed.leaderboard())
    check_mlflow(sweeps, store_uri(sweeps.runs))

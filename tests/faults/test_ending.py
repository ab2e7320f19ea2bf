"""Asked to stop, everything is resumable, and the next start ends where an undisturbed sweep ends."""

import signal
import subprocess
import time
from dataclasses import asdict
from datetime import datetime, timedelta

from rich.console import Console

from core.files.files import write_json
from core.trial.result import Result
from core.trial.spec import TrialSpec
from reports.units import duration
from sweep.driver import run_sweep
from sweep.progress import Progress
from sweep.stop import Hour, StopRequest
from sweep.study.study import load_study
from tests.faults.conftest import Sweeps


def test_one_signal_stops_with_everything_resumable(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    for name, step in (("SIGINT", "0@2"), ("SIGTERM", "1@5")):
        done = sweeps.run(f"step#{step}=driver_{name}")
        assert done.returncode == 130
        assert f"stopped by {name}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        trial = int(step[0])
        assert sweeps.study.trial(trial).checkpoint.exists()
        assert sweeps.optuna()[trial][1] == "RUNNING"
        assert {run[0] for run in sweeps.mlflow().values()} <= {"KILLED", "FINISHED"}
    again = sweeps.run()
    assert "trial 1: resumes from step 5" in again.stdout
    assert sweeps.story() == undisturbed.story()


def test_a_worker_that_does_not_answer_is_not_waited_for(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    with sweeps.begin("step#0@5=driver_SIGINT+SIGSTOP") as driver:
        asked = when_failed(sweeps)
        _, stderr = driver.communicate(timeout=180)
        assert driver.returncode == 130, stderr
        assert time.monotonic() - asked < 10

    # Asked a second time it stops at once, without the grace that an unanswered first one has.
    with sweeps.begin("step#0@1=driver_SIGINT+SIGSTOP") as driver:
        when_failed(sweeps)
        time.sleep(0.5)  # the system would fold two signals into one
        driver.send_signal(signal.SIGINT)
        asked = time.monotonic()
        _, stderr = driver.communicate(timeout=180)
        assert driver.returncode == 130
        assert "Traceback" not in stderr
        assert time.monotonic() - asked < 5
    assert sweeps.run().returncode == 0
    assert sweeps.story() == undisturbed.story()


def test_the_hour_is_kept(finished: Sweeps, undisturbed: Sweeps) -> None:
    """A trial that the measured pace says cannot finish is left for the next start; exit 0."""
    results = finished.study.results()
    for result in results:  # as if trials took more than a day each
        write(finished, result, timings_s={"prepare": 1e5, "train": 1e5, "render": 1e5, "score": 1e5})
    hour = (datetime.now() + timedelta(hours=2)).strftime("%H:%M")
    done = finished.run(arguments=("--trials", 4, "--until", hour))
    assert done.returncode == 0, done.stderr
    assert "trial 3 takes about" in done.stdout
    assert "the next start begins with it" in done.stdout
    *told, left = finished.optuna()
    assert (told, left[1]) == (undisturbed.optuna(), "RUNNING")
    for result in results:
        write(finished, result)
    assert finished.run(arguments=("--trials", 4)).returncode == 0
    *told, carried_out = finished.optuna()
    assert told == undisturbed.optuna()
    assert (carried_out[1], carried_out[2]) == ("COMPLETE", left[2])
    assert finished.leaderboard()[:3] == undisturbed.leaderboard()


def test_the_hour_strikes_in_the_middle_of_a_trial(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    """The step at work is finished and kept; nothing but the rest of the trial is done by the next start."""
    hour = Hour("07:00", time.time() + 3600)

    class Struck(Progress):
        def epoch(self, spec: TrialSpec, epoch: int, step: int, losses: list[float]) -> None:
            object.__setattr__(hour, "moment", time.time())

    summary = run_sweep(
        load_study(str(sweeps.file)), sweeps.runs, "cpu", Struck(Console(quiet=True)), until=hour
    )
    assert (summary.stopped, summary.finished) == (StopRequest("07:00", by_signal=False), 0)
    assert summary.closing("") == (
        f"stopped at 07:00: 0 trials in {duration(summary.wall_s)}, 0 in all, none passes the "
        "gate yet; the same command goes on",
        0,
    )
    assert sweeps.study.trial(0).checkpoint.exists()
    assert [row[1] for row in sweeps.optuna()] == ["RUNNING"]
    assert {run[0] for run in sweeps.mlflow().values()} == {"KILLED"}
    again = sweeps.run(arguments=("--trials", 1))
    assert "trial 0: resumes from step" in again.stdout
    assert (sweeps.optuna(), sweeps.leaderboard()) == (
        undisturbed.optuna()[:1],
        undisturbed.leaderboard()[:1],
    )


def test_a_second_driver_names_the_first(sweeps: Sweeps) -> None:
    with subprocess.Popen(sweeps.command(), env=sweeps.environment(), stdout=subprocess.DEVNULL) as first:
        while not sweeps.study.driver.exists():
            time.sleep(0.01)
        second = sweeps.run()
        assert second.returncode == 2
        assert f"process {first.pid} on " in second.stderr
        assert len(second.stderr.splitlines()) == 1
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=300) == 130


def when_failed(sweeps: Sweeps) -> float:
    while not sweeps.failed():
        time.sleep(0.01)
    return time.monotonic()


def write(sweeps: Sweeps, result: Result, **changed: object) -> None:
    write_json(sweeps.study.trial(result.spec.number).result, asdict(result) | changed)

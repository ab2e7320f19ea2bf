"""Being asked to stop: everything is left resumable, and the next start ends where an undisturbed sweep ends."""
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.faults.conftest import Sweeps


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_one_signal_stops_with_everything_resumable(sweeps: Sweeps, undisturbed: Sweeps, name: str) -> None:
    done = sweeps.run(f"step@4=driver_{name}")
    assert done.returncode == 130
    assert f"stopped by {name}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert sweeps.study.trial(0).checkpoint.exists()
    assert sweeps.optuna()[0][1] == "RUNNING"
    assert {run[0] for run in sweeps.mlflow().values()} == {"KILLED"}
    again = sweeps.run()
    assert "trial 0: goes on from step" in again.stdout
    assert sweeps.story() == undisturbed.story()


def test_a_worker_that_does_not_answer_is_not_waited_for(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    with subprocess.Popen(sweeps.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=order(sweeps, "step@5=driver_SIGINT+SIGSTOP")) as driver:
        asked = when_failed(sweeps)
        _, stderr = driver.communicate(timeout=60)
        assert driver.returncode == 130, stderr
        assert time.monotonic() - asked < 10
    assert sweeps.run().returncode == 0
    assert sweeps.story() == undisturbed.story()


def test_a_second_signal_stops_at_once(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    with subprocess.Popen(sweeps.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=order(sweeps, "step@5=driver_SIGINT+SIGSTOP")) as driver:
        when_failed(sweeps)
        time.sleep(0.5)  # the system would fold two signals into one
        driver.send_signal(signal.SIGINT)
        asked = time.monotonic()
        _, stderr = driver.communicate(timeout=60)
        assert driver.returncode == 130
        assert "Traceback" not in stderr
        assert time.monotonic() - asked < 5  # and not the grace that an unanswered first one has
    assert sweeps.run().returncode == 0
    assert sweeps.story() == undisturbed.story()


def order(sweeps: Sweeps, fail: str) -> dict[str, str]:
    return sweeps.environment(LORA_SWEEP_FAIL=fail, LORA_SWEEP_FAIL_ONCE=str(sweeps.folder / "failed"))


def when_failed(sweeps: Sweeps) -> float:
    while not sweeps.failed:
        time.sleep(0.01)
    return time.monotonic()


def test_a_second_driver_names_the_first(make_sweeps: Callable[[int], Sweeps]) -> None:
    sweeps = make_sweeps(1)
    with subprocess.Popen(sweeps.command(), env=sweeps.environment(), stdout=subprocess.DEVNULL) as first:
        while not sweeps.study.driver.exists():
            time.sleep(0.01)
        second = sweeps.run()
        assert second.returncode == 2
        assert f"process {first.pid} on " in second.stderr
        assert len(second.stderr.splitlines()) == 1
        assert first.wait(timeout=120) == 0


def test_the_lock_of_a_dead_driver_is_taken_over(sweeps: Sweeps) -> None:
    assert sweeps.run("asked=SIGKILL").returncode < 0
    assert sweeps.study.driver.exists()  # its note is still there, its lock is not
    assert sweeps.run().returncode == 0
    assert not sweeps.study.driver.exists()

"""SIGKILL at many points of a trial: after one more start everything is as in an undisturbed sweep."""

import signal
import time

import psutil
import pytest

from tests.faults.conftest import Sweeps

# One point in each trial, for each trial is retried once; the first `spec` is of the base model's story
WORKER = [
    ("spec@1", "encoded#0@1", "step#1@2", "checkpoint_written#2@4"),
    ("spec_written#0@1", "result_unsaid#0@1", "image#1@3", "write result.json#2@1"),
]
DRIVER = [  # each start is killed a little further on than the one before
    ["locked", "enqueued", "asked", "sent", "heard_epoch", "tell", "finish_study"],
    ["frozen", "opened", "constrain", "tracked", "told", "logged"],
]
BOTH = ["epoch_saved#0@1", "result_written#0@1", "write checkpoint.safetensors#1@5"]


@pytest.mark.parametrize("points", WORKER, ids=" and ".join)
def test_a_killed_worker_is_replaced_and_nothing_shows(
    sweeps: Sweeps, undisturbed: Sweeps, points: tuple[str, ...]
) -> None:
    done = sweeps.run(";".join(f"{point}=SIGKILL" for point in points))
    assert len(sweeps.failed()) == len(points), "a point was never reached"
    assert done.returncode == 0, done.stdout + done.stderr
    # its work was done
    tried_again = len([point for point in points if not point.startswith("result_unsaid")])
    assert done.stdout.count("the worker was killed by SIGKILL") == tried_again
    assert sweeps.story() == undisturbed.story()


@pytest.mark.parametrize("points", DRIVER, ids=" then ".join)
def test_a_killed_driver_is_started_again(sweeps: Sweeps, undisturbed: Sweeps, points: list[str]) -> None:
    for point in points:
        assert sweeps.run(f"{point}=SIGKILL").returncode == -signal.SIGKILL, point
    assert sweeps.study.driver.exists()  # the dead one's note; its lock is taken over
    again = sweeps.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert sweeps.nothing_done_twice()
    assert sweeps.story() == undisturbed.story()
    assert not sweeps.study.driver.exists()


def test_a_driver_killed_in_the_middle_of_the_worker_s_work(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    """First while the worker hangs in a step, so that it cannot see by itself that its driver is gone."""
    with sweeps.begin("step#0@2=SIGSTOP") as driver:
        worker = sweeps.worker(driver)
        while worker.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        driver.kill()
    psutil.wait_procs([worker], timeout=10)
    assert not worker.is_running()
    for point in BOTH:
        assert sweeps.run(f"{point}=driver_SIGKILL").returncode == -signal.SIGKILL, point
    again = sweeps.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert sweeps.nothing_done_twice()
    assert sweeps.story() == undisturbed.story()

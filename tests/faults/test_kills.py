"""SIGKILL at every point of a trial; one start of the same command, and everything tells the undisturbed story."""
import signal

import pytest

from tests.faults.conftest import Sweeps

# The base model's story is the worker's first work, so its points are passed once before trial 0 gets there.
WORKER = ["spec@2", "spec_written@2", "write spec.json@2", "encoded", "step@2", "step@5", "epoch@1", "epoch@2", "epoch_saved",
          "checkpoint@2", "checkpoint_written@4", "write lora.safetensors@3", "picture@9", "picture@12", "write story.png@2",
          "score@2", "recipe@2", "result@2", "write result.json@2", "result_written@2", "result_unsaid@2"]
DRIVER = ["locked", "frozen", "enqueued", "tracked", "asked", "asked@2", "sent", "opened", "heard_epoch@1", "heard_epoch@2",
          "tell", "constrain", "told", "logged", "logged@2", "finish_study"]
BOTH = ["step@4", "epoch_saved@2", "picture@10", "result_written@2"]


@pytest.mark.parametrize("point", WORKER)
def test_a_killed_worker_is_replaced_and_nothing_shows(sweeps: Sweeps, undisturbed: Sweeps, point: str) -> None:
    done = sweeps.run(f"{point}=SIGKILL")
    assert sweeps.failed, "the point was never reached"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the worker was killed by SIGKILL" in done.stdout
    assert sweeps.run().returncode == 0
    assert sweeps.story() == undisturbed.story()


@pytest.mark.parametrize("point", DRIVER)
def test_a_killed_driver_is_started_again(sweeps: Sweeps, undisturbed: Sweeps, point: str) -> None:
    assert sweeps.run(f"{point}=SIGKILL").returncode == -signal.SIGKILL
    again = sweeps.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert sweeps.story() == undisturbed.story()


@pytest.mark.parametrize("point", BOTH)
def test_a_driver_killed_in_the_middle_of_the_worker_s_work(sweeps: Sweeps, undisturbed: Sweeps, point: str) -> None:
    assert sweeps.run(f"{point}=driver_SIGKILL").returncode == -signal.SIGKILL
    again = sweeps.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert sweeps.story() == undisturbed.story()

"""Driver and worker are suspended together (`docker pause`, SLURM, a closed lid): the worker is not hung."""

import signal
import time

import psutil

from tests.faults.conftest import STEP_SILENCE_S, Sweeps

PAUSE_S = float(STEP_SILENCE_S) + 3


def test_time_in_which_both_stood_still_counts_for_nobody(sweeps: Sweeps, undisturbed: Sweeps) -> None:
    """Twice in one trial, each time longer than the watchdog allows; the driver wakes first."""
    both = "driver_SIGSTOP+SIGSTOP"
    with sweeps.begin(f"step#0@2={both};step#0@4={both}", LORA_SWEEP_STEP_SILENCE_S=STEP_SILENCE_S) as driver:
        for _ in range(2):
            worker = sweeps.worker(driver)
            for process in (psutil.Process(driver.pid), worker):
                while process.status() != psutil.STATUS_STOPPED:
                    time.sleep(0.01)
            time.sleep(PAUSE_S)
            driver.send_signal(signal.SIGCONT)
            time.sleep(0.5)
            worker.send_signal(signal.SIGCONT)
        stdout, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    assert "heartbeat" not in stdout
    assert len(sweeps.failed()) == 2
    assert [result.retried for result in sweeps.study.results()] == [(), (), ()]
    assert sweeps.story() == undisturbed.story()

"""A failure inside one trial costs one trial only, and the leaderboard names its class."""

from collections.abc import Callable

import pytest

from core.verdict import FAILED_CONSTRAINT
from tests.faults.conftest import STEP_SILENCE_S, Sweeps

SICK = {  # trial: the order of its fail point, the class in the table, Optuna's state, a part of the message
    1: ("step#1=oom", "cuda_oom", "PRUNED", "CUDA out of memory"),
    2: ("loss#2=nan", "nan_loss", "PRUNED", "the loss was no number"),
    4: ("step#4=SIGSTOP", "hung", "FAIL", "no heartbeat for"),
    5: ("step#5=SIGKILL", "killed", "FAIL", "killed by SIGKILL"),
}
TRIALS = 7


def test_each_sick_trial_costs_itself_alone(make_sweeps: Callable[[int], Sweeps]) -> None:
    sweeps = make_sweeps(TRIALS)
    orders = ";".join(order for order, *_ in SICK.values())
    done = sweeps.run(orders, once=False, LORA_SWEEP_STEP_SILENCE_S=STEP_SILENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    rows, results, runs = sweeps.optuna(), sweeps.study.results(), sweeps.mlflow()
    for number in range(TRIALS):
        status, _, _, _, tags, _ = runs[f"trial-{number:04d}"]
        if number not in SICK:
            assert (rows[number][1], results[number].state, status) == ("COMPLETE", "complete", "FINISHED")
            continue
        _, reason, state, message = SICK[number]
        assert (rows[number][1], rows[number][4]) == (state, FAILED_CONSTRAINT)
        assert (results[number].state, results[number].reason) == ("failed", reason)
        assert (status, tags["state"], tags["reason"]) == ("FAILED", "failed", reason)
        assert message in tags["message"]


def test_oom_is_answered_with_a_smaller_micro_batch_and_a_hang_from_the_checkpoint(
    sweeps: Sweeps, undisturbed: Sweeps
) -> None:
    done = sweeps.run("step#0@2=oom;step#1@5=SIGSTOP", LORA_SWEEP_STEP_SILENCE_S=STEP_SILENCE_S)
    assert len(sweeps.failed()) == 2
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 1: resumes from step 4" in done.stdout
    first, second, *_ = sweeps.study.results()
    plain, unhung, *_ = undisturbed.study.results()
    assert (first.state, first.micro_batch, first.retried) == ("complete", 1, ("cuda_oom",))
    assert first.train_loss == pytest.approx(plain.train_loss, rel=1e-4)
    assert first.aesthetic == pytest.approx(plain.aesthetic, abs=0.05)
    tags = sweeps.mlflow()["trial-0000"][4]
    assert (tags["micro_batch"], tags["micro_batch_changed"]) == ("1", "2 -> 1")
    assert (second.micro_batch, second.retried) == (2, ("hung",))
    assert (second.lora_sha256, second.aesthetic) == (unhung.lora_sha256, unhung.aesthetic)


def test_three_in_a_row_stop_the_sweep_with_advice(make_sweeps: Callable[[int], Sweeps]) -> None:
    sweeps = make_sweeps(4)
    done = sweeps.run("encoded#*=a_mistake", once=False)
    assert done.returncode == 1
    assert "3 trials in a row failed, the last as bug: a_mistake" in done.stderr
    assert "traceback.txt says where" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "traceback.txt" in sweeps.mlflow()["trial-0000"][5]
    assert sweeps.run().returncode == 0
    assert [r.state for r in sweeps.study.results()] == ["failed"] * 3 + ["complete"]


def test_parameters_that_fail_never_stop_a_sweep(make_sweeps: Callable[[int], Sweeps]) -> None:
    sweeps = make_sweeps(4)
    done = sweeps.run("loss#0=nan;latents#1=nan;latents#2=nan;loss#3=nan", once=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = ["nan_loss", "black_pictures", "black_pictures", "nan_loss"]
    assert [r.reason for r in sweeps.study.results()] == reasons
    assert [(row[1], row[4]) for row in sweeps.optuna()] == [("PRUNED", FAILED_CONSTRAINT)] * 4
    runs = sweeps.mlflow()
    assert [runs[f"trial-{number:04d}"][4]["reason"] for number in range(4)] == reasons

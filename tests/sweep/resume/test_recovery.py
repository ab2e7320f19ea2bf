"""One table decides what is done with a trial of an earlier start."""

from dataclasses import replace
from itertools import product

import pytest

from core.files.files import write_json
from core.folders import TrialFolder
from sweep.events import Attempt
from sweep.resume.recovery import Found, Step, _take_back_retried, reconcile
from tests.sweep.search.test_optuna_study import failed


def found(*, known=True, allowed=True, finished=False, stored=False, result=False, checkpoint=False):
    return Found(
        known=known, allowed=allowed, finished=finished, stored=stored, result=result, checkpoint=checkpoint
    )


@pytest.mark.parametrize(
    ("left", "step"),
    [
        (found(finished=True, result=True), Step.NOTHING),
        (found(finished=True, stored=True), Step.RESTORE),
        (found(finished=True), Step.LOST),
        (found(result=True), Step.ADOPT),
        (found(result=True, checkpoint=True), Step.ADOPT),
        (found(checkpoint=True), Step.GO_ON),
        (found(), Step.AGAIN),
        (found(allowed=False, checkpoint=True), Step.FAIL),
        (found(allowed=False, result=True), Step.ADOPT),
        (found(known=False, result=True), Step.SET_ASIDE),
    ],
)
def test_each_leftover_has_one_step(left, step):
    assert reconcile(left) is step


def test_the_table_has_an_answer_for_everything():
    names = ("known", "allowed", "finished", "stored", "result", "checkpoint")
    for values in product((False, True), repeat=len(names)):
        left = Found(**dict(zip(names, values, strict=True)))
        step = reconcile(left)
        assert (step is Step.SET_ASIDE) == (not left.known)
        if left.known and not left.finished and left.result:
            assert step is Step.ADOPT  # finished work is never done twice
        if left.known and left.finished:
            assert step in (Step.NOTHING, Step.RESTORE, Step.LOST)  # nor told to Optuna twice


def test_a_retry_that_was_only_half_noted_is_still_owed_and_owed_once(tmp_path):
    """The driver was killed after it recorded the next attempt and before it deleted the failed result."""
    trial = TrialFolder(tmp_path)
    first = failed(0, "device_lost")
    write_json(trial.result, first)
    Attempt(micro_batch=1, retried=("device_lost",)).save(trial.attempt)
    _take_back_retried(first.spec, trial)
    assert trial.read_result() is None
    assert Attempt.load(trial.attempt, 1) == Attempt(micro_batch=1, retried=("device_lost",))

    second = replace(first, retried=("device_lost",))
    write_json(trial.result, second)
    _take_back_retried(first.spec, trial)
    assert trial.read_result() == second

"""One table decides what becomes of a leftover."""
from itertools import product

import pytest

from sweep.recovery import Found, Step, reconcile


def found(*, known=True, told=False, stored=False, result=False, checkpoint=False):
    return Found(known=known, told=told, stored=stored, result=result, checkpoint=checkpoint)


@pytest.mark.parametrize(("left", "step"), [
    (found(told=True, result=True), Step.NOTHING),
    (found(told=True, stored=True), Step.RESTORE),
    (found(told=True), Step.LOST),
    (found(result=True), Step.ADOPT),
    (found(result=True, checkpoint=True), Step.ADOPT),
    (found(checkpoint=True), Step.GO_ON),
    (found(), Step.AGAIN),
    (found(known=False, result=True), Step.SET_ASIDE),
])
def test_each_leftover_has_one_step(left, step):
    assert reconcile(left) is step


def test_the_table_has_an_answer_for_everything():
    names = ("known", "told", "stored", "result", "checkpoint")
    for values in product((False, True), repeat=len(names)):
        left = Found(**dict(zip(names, values, strict=True)))
        step = reconcile(left)
        assert (step is Step.SET_ASIDE) == (not left.known)
        if left.known and not left.told and left.result:
            assert step is Step.ADOPT  # finished work is never done twice
        if left.known and left.told:
            assert step in (Step.NOTHING, Step.RESTORE, Step.LOST)  # nor told twice

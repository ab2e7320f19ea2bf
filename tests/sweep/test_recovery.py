import pytest

from sweep.recovery import Step, reconcile
from tests.sweep.test_store import complete


@pytest.mark.parametrize(("told", "result", "run_open", "step"), [
    (False, True, True, Step.ADOPT), (False, False, True, Step.AGAIN), (False, False, False, Step.AGAIN),
    (True, True, True, Step.LOG), (True, False, True, Step.LOG), (True, True, False, Step.NOTHING),
])
def test_each_leftover_has_one_step(told, result, run_open, step):
    assert reconcile(told=told, result=complete(0, 6.0) if result else None, run_open=run_open) is step

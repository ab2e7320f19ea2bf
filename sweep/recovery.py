"""What to do with a trial that an earlier run left: decided once, from what Optuna, the disk and MLflow say."""
from enum import Enum

from core.settings import Result


class Step(Enum):
    ADOPT = "tell the finished result"
    AGAIN = "start again under the same number with the same parameters"
    LOG = "write the told result to MLflow"
    NOTHING = "all agree"


def reconcile(*, told: bool, result: Result | None, run_open: bool) -> Step:
    """`told`: Optuna has its outcome; `result`: what lies on the disk; `run_open`: MLflow has no final status yet."""
    if not told:
        return Step.ADOPT if result else Step.AGAIN
    return Step.LOG if run_open else Step.NOTHING

"""What to do with what an earlier run left: decided once per trial, from what Optuna, the disk and MLflow say."""
from dataclasses import dataclass
from enum import Enum


class Step(Enum):
    ADOPT = "tell the finished result"
    GO_ON = "go on from the checkpoint"
    AGAIN = "start again under the same number with the same parameters"
    RESTORE = "write the result again from what Optuna keeps of it"
    LOST = "its result is gone from the disk; Optuna and MLflow keep what they have"
    SET_ASIDE = "move the folder aside: Optuna never asked for it"
    NOTHING = "all agree"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One trial as three witnesses tell it."""
    known: bool          # Optuna asked for a trial of this number
    told: bool           # and its outcome
    stored: bool         # Optuna keeps a copy of its result
    result: bool         # a whole result.json lies in its folder
    checkpoint: bool     # and a checkpoint


def reconcile(found: Found) -> Step:
    """The one table. MLflow has no row of its own: it is made equal to the disk afterwards, whatever the step was."""
    if not found.known:
        return Step.SET_ASIDE
    if found.told:
        if found.result:
            return Step.NOTHING
        return Step.RESTORE if found.stored else Step.LOST
    if found.result:
        return Step.ADOPT
    return Step.GO_ON if found.checkpoint else Step.AGAIN

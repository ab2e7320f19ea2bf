"""Who wins: what passes the gate, which scores compare, how trials rank. Pure functions over results."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.fingerprint import Change
from core.trial.result import Result

# Raise it with any change of training, rendering or scoring that changes the scores of the same study,
# weights and seeds: a study started under another version is then continued only if the user agrees.
SCORING_VERSION = 2
CHALLENGE_GATE = 6.0  # the Kolors LoRA story challenge's own; a study may set another
BASE_PASSES = (
    "the base model's own story passes the gate already: compare a story with that mean, not with the gate"
)
SCORES_AGREE = (
    0.01  # points between two scores of one image: rounding on another processor, not another scorer
)
FAILED_CONSTRAINT = 20.0  # of a trial without a story: further from feasible than any story


def passes(mean: float, gate: float) -> bool:
    """Whether a story with this mean aesthetic score passes the gate; both on the scale from 1 to 10."""
    return mean >= gate


def constraint(mean: float, gate: float) -> float:
    """Optuna's constraint value of a complete story: how far its mean is below the gate; feasible at <= 0."""
    return gate - mean


def drift(before: Sequence[float], now: Sequence[float]) -> float:
    """By how many points the scores of the same images differ at most; 0 where either was never taken."""
    return max((abs(old - new) for old, new in zip(before, now, strict=False)), default=0.0)


def notes_on_gate(gate: float) -> list[str]:
    """A warning where the study's gate is not the challenge's; else nothing."""
    return (
        [f"objective.gate is {gate:g}, but the challenge's gate is {CHALLENGE_GATE:g}"]
        if gate != CHALLENGE_GATE
        else []
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseStory:
    """The base model's story for one range of trials: those before `until` that no earlier one covers.

    `until` is None in the newest. `result` is None where the story is not
    finished or its file cannot be read.
    """

    until: int | None
    result: Result | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Trials whose scores compare, best first: those from one accepted change to the next.

    `until` is the first trial after the next change, None in the newest group. `base` is the base model's
    story to compare with, None where a newer group has the same one.
    """

    until: int | None
    base: BaseStory | None
    results: list[Result]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The finished trials of a study, grouped and ranked.

    `results` are in the order of trial numbers. `changes` are those after which scores do not compare.
    `bases` are the base model's stories in the order of `until`, the present one last.
    """

    results: tuple[Result, ...]
    changes: tuple[Change, ...]
    bases: tuple[BaseStory, ...]

    @property
    def comparable_since(self) -> int:
        """Number of the first trial whose score compares with those of new trials."""
        return comparable_since(self.changes)

    @property
    def base(self) -> Result | None:
        """The base model's story that new trials compare with."""
        return self.bases[-1].result

    def base_of(self, number: int) -> BaseStory:
        """The base model's story that trial `number` compares with."""
        return next(base for base in self.bases if base.until is None or base.until > number)

    @property
    def groups(self) -> list[Group]:
        """All groups, newest first; the newest even without trials, older ones only with some."""
        starts = sorted({0, *(change.from_trial for change in self.changes)})
        found: list[Group] = []
        shown: set[int | None] = set()
        for start, until in reversed(list(zip(starts, [*starts[1:], None], strict=True))):
            results = sorted(
                (
                    result
                    for result in self.results
                    if result.spec.number >= start and (until is None or result.spec.number < until)
                ),
                key=_rank,
            )
            base = self.base_of(max((result.spec.number for result in results), default=start))
            if until is None or results:
                found.append(
                    Group(
                        until=until,
                        base=base if base.result and base.until not in shown else None,
                        results=results,
                    )
                )
                shown.add(base.until)
        return found

    @property
    def ranked(self) -> list[Result]:
        """Every finished trial in the leaderboard's order."""
        return [result for group in self.groups for result in group.results]

    @property
    def passed(self) -> list[Result]:
        """Results of the newest group that passed the gate, best first."""
        return [result for result in self.groups[0].results if result.passed_gate]

    @property
    def winner(self) -> Result | None:
        """The passed result with the highest mean, the earlier trial of two equals; None if none passed."""
        return next(iter(self.passed), None)


def comparable_since(changes: tuple[Change, ...]) -> int:
    """The first trial after the last of `changes`; earlier ones had other captions, images or weights."""
    return max((change.from_trial for change in changes), default=0)


def _rank(result: Result) -> tuple[int, float, int]:
    """Sort key: passed, then below the gate, each by falling mean, then failed; equals by trial number."""
    if result.aesthetic_mean is None:
        return 2, 0.0, result.spec.number
    return 0 if result.passed_gate else 1, -result.aesthetic_mean, result.spec.number
